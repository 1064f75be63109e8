"""A network that is ready to run, with its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from featpipe.models._card import ModelCard
from featpipe.models._hooks import Tap, Tapped


@dataclass(frozen=True)
class Backbone:
    """A network that is ready to run.

    Parameters
    ----------
    card : ModelCard
    module : nn.Module
        In eval mode; its parameters need no gradient.
    model : str
        ``ZOO:NAME`` with the tag, which builds the same architecture again.
    files : tuple of str
        What was read to build it.
    """

    card: ModelCard
    module: nn.Module
    model: str = ""
    files: tuple[str, ...] = ()

    def tapped(self, taps: Sequence[Tap]) -> Tapped:
        """Return a context manager that reads these layers; see `Tapped`."""
        return Tapped(self.module, taps, card=self.card)
