"""Dissimilarity as a small network over the maps of two images: an interleaved group convolution."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from featpipe.errors import RequestError

_BLOCK_VALUES = 1 << 23  # convolution outputs of pairs that are held at a time: 32 MiB


def interleave(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Put channel k of A before channel k of B: two (n, channels, …) become (n, 2 channels, …)."""
    return torch.stack([A, B], dim=2).flatten(1, 2)


class InterleavedHead(nn.Module):
    """Predict the dissimilarity of two images from their maps.

    Grouped convolution of the interleaved maps, ReLU, average pool of 2×2 with stride 2, one linear output ::

        g(A, B) = v · pool(relu(W * interleave(A, B) / scale + b)) + c
        d(A, B) = (g(A, B) + g(B, A)) / 2

    Interleaving gives each group the same channels of both images; of concatenated maps most groups would see
    one image only. ``g`` is not symmetric, so both orders are averaged. The convolution is linear, so what each
    image adds to it is computed once and summed for every pair: ``W * interleave(A, B) = W₀ * A + W₁ * B`` with
    the even and the odd inputs of each group.

    Parameters
    ----------
    shape : (channels, height, width)
        Of an image's maps.
    channels : int
        Outputs of the convolution.
    groups : int
    kernel : int
        Height and width of the convolution, without padding.
    symmetric : bool
        Average both orders; False predicts ``g(A, B)``.
    generator : torch.Generator, optional
        Draws the weights, as torch draws those of its layers.

    Raises
    ------
    RequestError
        Groups that divide neither side evenly, or maps smaller than the kernel.

    Attributes
    ----------
    scale : tensor of shape ()
        A buffer, 1 at first: see `scale_to`.

    References
    ----------
    Jacob & Katti (2019), figure 1: 256×6×6 maps of AlexNet, 512 → 32 channels in 16 groups, 3×3, and 128 → 1.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        channels: int = 32,
        groups: int = 16,
        kernel: int = 3,
        symmetric: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check(shape, channels, groups, kernel)
        n_maps, height, width = shape
        self.symmetric = symmetric
        self.convolution = nn.Conv2d(2 * n_maps, channels, kernel, groups=groups)
        across = (height - kernel + 1, width - kernel + 1)
        self._pool = (min(2, across[0]), min(2, across[1]))
        self._n_values = channels * math.prod(across)
        pooled = math.prod(side // size for side, size in zip(across, self._pool, strict=True))
        self.linear = nn.Linear(channels * pooled, 1)
        for layer in (self.convolution, self.linear):
            _draw(layer, generator)
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.ones(()))

    def scale_to(self, mean_square: torch.Tensor) -> None:
        """Divide maps from here on by the root of their mean square, so that random weights give outputs about 1.

        Layers differ a hundredfold in it, and from outputs of a hundred a training does not come back to [0, 1].
        """
        self.scale.copy_(mean_square.sqrt().clamp(min=1e-12))

    def forward(self, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        """Return the dissimilarity of each image of A and the one of B: (n,) of two (n, channels, height, width)."""
        one = self._tail(self.convolution(interleave(A, B) / self.scale))
        if not self.symmetric:
            return one
        return (one + self._tail(self.convolution(interleave(B, A) / self.scale))) / 2

    def of_pairs(self, maps: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the dissimilarity of pairs of images: (n_pairs,) of maps (n_images, …) and positions among them.

        Equals ``forward(maps[first], maps[second])``, and convolves each image once.
        """
        even, odd = self._responses(maps)
        one = self._tail(even[first] + odd[second])
        return (one + self._tail(even[second] + odd[first])) / 2 if self.symmetric else one

    def all_pairs(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the dissimilarity of all pairs of images, (n_images, n_images), in blocks of bounded memory.

        Not symmetric: entry (i, j) is ``g(A_i, A_j)``, the mean of both orders where the head is symmetric. On
        the diagonal stands what the head says of an image and itself, which need not be 0.
        """
        even, odd = self._responses(maps)
        step = max(1, _BLOCK_VALUES // (len(maps) * self._n_values))
        blocks = [
            self._tail((part[:, None] + odd).flatten(0, 1)).reshape(len(part), -1)
            for part in even.split(step)
        ]
        one = torch.cat(blocks)
        return (one + one.T) / 2 if self.symmetric else one

    def _responses(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what images add to the convolution as the first (with the bias) and the second of a pair."""
        maps = maps / self.scale
        weight, groups = self.convolution.weight, self.convolution.groups
        even = F.conv2d(maps, weight[:, 0::2], self.convolution.bias, groups=groups)
        return even, F.conv2d(maps, weight[:, 1::2], groups=groups)

    def _tail(self, convolved: torch.Tensor) -> torch.Tensor:
        pooled = F.avg_pool2d(convolved.relu(), self._pool)
        return self.linear(pooled.flatten(1))[:, 0]


def _check(shape: tuple[int, ...], channels: int, groups: int, kernel: int) -> None:
    if len(shape) != 3:
        raise RequestError(
            f"The layer gives rows of shape {shape}, and a group convolution needs maps (channels, height, width). "
            "Choose a convolutional layer without a reduction, or LAYER:grid:K."
        )
    n_maps, height, width = shape
    if n_maps % groups or channels % groups:
        shared = math.gcd(n_maps, channels)
        fit = ", ".join(str(n) for n in range(1, shared + 1) if shared % n == 0)
        raise RequestError(
            f"groups={groups} does not divide both the {n_maps} channels of the layer and channels={channels}. "
            f"Groups that do: {fit}."
        )
    if min(height, width) < kernel:
        raise RequestError(
            f"The layer gives maps of {height}×{width}, smaller than the {kernel}×{kernel} convolution. Choose an "
            "earlier layer, or a larger image_size."
        )


def _draw(layer: nn.Conv2d | nn.Linear, generator: torch.Generator | None) -> None:
    """Draw weights and bias uniformly within ±1/√n_inputs, as torch's layers draw theirs by the global generator."""
    bound = 1 / math.sqrt(layer.weight[0].numel())
    for parameter in (layer.weight, layer.bias):
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
