"""Low-rank changes of weights: few free parameters where stimuli are few.

The network starts as it came, since one of the two factors is zero.

References
----------
Hu et al. (2021), LoRA: Low-Rank Adaptation of Large Language Models, section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

from featpipe.errors import RequestError

_INSIDE = "parametrizations"  # where torch puts the factors of a layer


class LowRank(nn.Module):
    """``W + scale · B A`` for a weight W that is read as a matrix (n_out, n_in).

    Parameters
    ----------
    weight : tensor of shape (n_out, n_in) or (n_out, n_in, 1, 1)
    rank : int
        Capped at the smaller side of W.
    scale : float
    generator : torch.Generator
        On the CPU; A is uniform within ±1/√n_in, as a linear layer starts, and B is zero.
    """

    def __init__(self, weight: torch.Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        n_out, n_in = weight.shape[:2]
        rank = min(rank, n_out, n_in)
        bound = 1 / math.sqrt(n_in)
        drawn = torch.rand(rank, n_in, generator=generator) * 2 * bound - bound
        self.A = nn.Parameter(drawn.to(weight.device, weight.dtype))
        self.B = nn.Parameter(weight.new_zeros(n_out, rank))
        self.scale = scale

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the changed weight, in full precision also under autocast."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.B @ self.A).view_as(weight)


def tune_low_rank(
    module: nn.Module, rank: int, *, frozen: frozenset[str] = frozenset(), scale: float = 1.0, seed: int = 0
) -> None:
    """Train low-rank changes of linear layers and 1×1 convolutions, and nothing else of a network.

    They are the weights of every `Linear` and every `Conv2d` of one pixel and one group, and the packed
    projection of queries, keys and values of `MultiheadAttention`, outside the frozen layers. Names of layers
    stay as they are.

    Raises
    ------
    RequestError
        No layer can be tuned so.
    """
    generator = torch.Generator().manual_seed(seed)
    module.requires_grad_(False)
    changed = [found for found in _layers(module) if found[0] not in frozen]
    if not changed:
        raise RequestError(
            "Low-rank tuning changes linear layers and convolutions of 1×1 with one group, and this network has "
            "none outside its frozen layers. Freeze less, or leave lora_rank out to tune the weights themselves."
        )
    for _, layer, weight in changed:
        if not parametrize.is_parametrized(layer, weight):
            factors = LowRank(getattr(layer, weight).detach(), rank, scale, generator)
            parametrize.register_parametrization(layer, weight, factors)
        for factors in layer.parametrizations[weight]:
            factors.requires_grad_(True)


def merge(module: nn.Module) -> None:
    """Add low-rank changes to their weights for good: the network is plain again."""
    for layer in plain_modules(module).values():
        if parametrize.is_parametrized(layer):
            for weight in list(layer.parametrizations):
                parametrize.remove_parametrizations(layer, weight, leave_parametrized=True)


def merged(module: nn.Module) -> Iterator[tuple[str, torch.Tensor, tuple[nn.Parameter, ...]]]:
    """Yield (plain name, value, what it is made of) of every parameter, low-rank changes added to their weights."""
    for name, layer in plain_modules(module).items():
        prefix = f"{name}." if name else ""
        for own, parameter in layer.named_parameters(recurse=False):
            yield prefix + own, parameter, (parameter,)
        if parametrize.is_parametrized(layer):
            for own, parts in layer.parametrizations.items():
                yield prefix + own, getattr(layer, own), tuple(parts.parameters())


def plain_modules(module: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a network by name, without those that torch keeps low-rank factors in."""
    return {name: layer for name, layer in module.named_modules() if _INSIDE not in name.split(".")}


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield (name, layer, name of its weight) of all that can be changed."""
    for name, layer in plain_modules(module).items():
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and _mixes_channels(layer)):
            yield name, layer, "weight"
        elif isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None:
            yield name, layer, "in_proj_weight"


def _mixes_channels(layer: nn.Conv2d) -> bool:
    return tuple(layer.kernel_size) == (1, 1) and layer.groups == 1
