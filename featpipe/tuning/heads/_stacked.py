"""Layers of many networks of one shape as one: parameters stacked, (n_stack, …), batched products.

Every network of a stack begins with the weights that it would have alone, and all drop the same units at a
time, so that a network in a stack is trained as it would be by itself. Layers in front of batch normalisation
have no bias: the normalisation takes it away again, its gradient is rounding alone, and Adam would make steps
of full size of that.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


def uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator | None) -> torch.Tensor:
    """Draw weights or biases as `torch.nn.Linear` does; empty ones without a generator, to be loaded."""
    if generator is None:
        return torch.empty(shape)
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def stacked(n_stack: int, drawn: torch.Tensor) -> nn.Parameter:
    """Return one tensor for each network: (n_stack, …)."""
    return nn.Parameter(drawn.expand(n_stack, *drawn.shape).clone())


class StackedNorm(nn.Module):
    """Batch normalisation of each channel of each network: what `torch.nn.BatchNorm1d` does for one."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, n_stack: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_stack, width))
        self.bias = nn.Parameter(torch.zeros(n_stack, width))
        self.register_buffer("running_mean", torch.zeros(n_stack, width))
        self.register_buffer("running_var", torch.ones(n_stack, width))

    def forward(self, h: torch.Tensor, networks: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """Normalise (n_networks, width, …) over all later axes; in training always all networks."""
        flat = h.reshape(1, h.shape[0] * h.shape[1], -1)
        values = (self.running_mean, self.running_var, self.weight, self.bias)
        mean, var, weight, bias = (value[networks].reshape(-1) for value in values)  # views of the whole
        return F.batch_norm(flat, mean, var, weight, bias, training=self.training).reshape(h.shape)


class LinearBlock(nn.Module):
    """Linear, BatchNorm1d, LeakyReLU and dropout, or a residual of the first three: (n_stack, n_in, n_batch)."""

    def __init__(
        self,
        n_stack: int,
        n_in: int,
        n_out: int,
        *,
        dropout: float,
        residual: bool,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.weight = stacked(n_stack, uniform((n_out, n_in), n_in, generator))
        self.norm = StackedNorm(n_stack, n_out)
        self.dropout, self.residual = dropout, residual

    def forward(self, h: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Return (n_stack, n_out, n_batch)."""
        out = F.leaky_relu(self.norm(torch.bmm(self.weight, h)))
        return h + out if self.residual else drop(out, self.dropout, generator)


def drop(h: torch.Tensor, share: float, generator: torch.Generator | None) -> torch.Tensor:
    """Set a share of (n_stack, …) to 0, the same entries in every network, and scale up the others."""
    if generator is None or share == 0:
        return h
    kept = torch.rand(h.shape[1:], generator=generator, device=h.device) >= share
    return h * (kept / (1 - share))
