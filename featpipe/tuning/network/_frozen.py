"""Which layers of a network are trained."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def freeze(module: nn.Module, frozen: str | Sequence[str] | None) -> None:
    """Let everything be trained except the named layers."""
    names = [frozen] if isinstance(frozen, str) else list(frozen or ())
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    for name in names:
        module.get_submodule(name).requires_grad_(False)
