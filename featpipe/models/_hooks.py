"""Reading layers during a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from featpipe.models._card import ModelCard
from featpipe.spec import Reduction


@dataclass(frozen=True)
class Tap:
    """One layer's output and what to keep of it: ``layer``, which ``call``, which ``element``, ``reduction``."""

    layer: str
    call: int | None = None
    element: str = ""
    reduction: Reduction = Reduction("none")


class Tapped:
    """A network whose layers are read: ``with Tapped(module, taps, card=card) as tapped: tapped(batch)``.

    `dims` has the name of each axis of a row per tap after the first call.
    """

    def __init__(self, module: nn.Module, taps: Sequence[Tap], *, card: ModelCard | None = None) -> None:
        self.dims: dict[Tap, tuple[str, ...]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def __call__(self, batch: torch.Tensor) -> dict[Tap, torch.Tensor]:
        """Run one forward pass: {tap: float32 tensor of shape (n, *row)} on the batch's device."""
        raise NotImplementedError
