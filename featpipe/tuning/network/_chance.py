"""What is random within a network: the layers that drop."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

_PATHS = ("DropPath", "StochasticDepth")  # of timm and torchvision: whole branches, by image


def droppers(module: nn.Module, frozen: frozenset[str] = frozenset()) -> dict[str, nn.Module]:
    """Return the layers outside the frozen ones that drop units or branches in training."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if name not in frozen and (isinstance(layer, _DropoutNd) or type(layer).__name__ in _PATHS)
    }
