"""The trunk of the vertex-position model: from a map of features to a short vector."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from featpipe.tuning.heads._stacked import StackedNorm, stacked, uniform

SMALLEST = 8  # side of the map that is not halved any more


class ConvTrunk(nn.Module):
    """Conv2d of stride 2, BatchNorm and LeakyReLU until a map is at most 8 wide and high, for many networks.

    Parameters
    ----------
    n_stack : int
    shape : (int, int, int)
        Channels, height and width of the map.
    channels : int
        Of every convolution.
    generator : torch.Generator, optional
    """

    def __init__(
        self, n_stack: int, shape: tuple[int, ...], channels: int, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.weights, self.norms = nn.ParameterList(), nn.ModuleList()
        n_in, *sides = shape
        while not self.weights or max(sides) > SMALLEST:
            drawn = uniform((channels, n_in, 3, 3), 9 * n_in, generator)
            self.weights.append(stacked(n_stack, drawn))
            self.norms.append(StackedNorm(n_stack, channels))
            n_in, sides = channels, [(side + 1) // 2 for side in sides]
        self.width = channels * sides[0] * sides[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn maps (n_batch, channels, height, width) into vectors (n_stack, width, n_batch)."""
        h = x
        for number, (weight, norm) in enumerate(zip(self.weights, self.norms, strict=True)):
            n_stack, channels = weight.shape[:2]
            groups = 1 if number == 0 else n_stack  # the first sees the same map in every network
            h = F.conv2d(h, weight.flatten(0, 1), stride=2, padding=1, groups=groups)
            by_network = h.reshape(len(x), n_stack, channels, *h.shape[2:]).permute(1, 2, 0, 3, 4)
            h = F.leaky_relu(norm(by_network)).permute(2, 0, 1, 3, 4).flatten(1, 2)
        return h.reshape(len(x), n_stack, -1).permute(1, 2, 0)
