"""What is random within a network: which of its layers drop, and drawing the same again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

_PATHS = ("DropPath", "StochasticDepth")  # of timm and torchvision: whole branches, by image


def droppers(module: nn.Module, frozen: frozenset[str] = frozenset()) -> dict[str, nn.Module]:
    """Return the layers outside the frozen ones that drop units or branches in training."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if name not in frozen and (isinstance(layer, _DropoutNd) or type(layer).__name__ in _PATHS)
    }


def computed_twice(run: Callable[[], Any], generator: torch.Generator | None) -> Any:
    """Return what `run` returns and forget what led there; its gradient computes it again, all draws the same.

    Parameters
    ----------
    run : callable
        Draws from the generator and from torch's own.
    generator : torch.Generator or None
    """
    return checkpoint(_Replayed(run, generator), use_reentrant=False, preserve_rng_state=True)


class _Replayed:
    """A function that draws the same from a generator whenever it is called."""

    def __init__(self, run: Callable[[], Any], generator: torch.Generator | None) -> None:
        self._run, self._generator = run, generator
        self._start: torch.Tensor | None = None

    def __call__(self) -> Any:
        if self._generator is None:
            return self._run()
        now = self._generator.get_state()
        if self._start is None:
            self._start = now
            return self._run()
        self._generator.set_state(self._start)
        try:
            return self._run()
        finally:
            self._generator.set_state(now)
