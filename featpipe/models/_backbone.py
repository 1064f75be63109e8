"""A network that is ready to run, with its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from featpipe.models._card import ModelCard, ModelRequest
from featpipe.models._hooks import Tap, Tapped


@dataclass(frozen=True)
class Backbone:
    """A network in eval mode whose parameters need no gradient, and its card."""

    card: ModelCard
    module: nn.Module

    def tapped(self, taps: Sequence[Tap]) -> Tapped:
        """Return a context manager that reads these layers; see `Tapped`."""
        return Tapped(self.module, taps, card=self.card)


def load(request: ModelRequest, *, rehash: bool = False) -> Backbone:
    """Build the network that a request asks for and load its weights."""
    raise NotImplementedError
