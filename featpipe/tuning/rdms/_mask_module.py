"""A network with a coefficient per channel, and how far its dissimilarities are from measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from featpipe.rsa.mask._apply import channel_axis
from featpipe.rsa.mask._measured import Batch, Measured
from featpipe.rsa.mask._objective import Lines, least_scales, profile_lines
from featpipe.tuning.network import Body
from featpipe.tuning.rdms._losses import absolute_loss, pair_correlations, squared_loss
from featpipe.tuning.rdms._pairs import pairs_of, rdm_of_rows

EVALUATED = 32  # images at a time where no gradient is needed
_FEWEST_PAIRS = 3  # below it a correlation says nothing
_ROUNDING = 1e-6  # of the largest value, float32: what a constant varies by


class MaskedNetwork(nn.Module):
    """Layers of a network, every channel times its coefficient, side by side.

    Parameters
    ----------
    body : Body
    """

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        layout = list(zip(body.shapes, body.dims, strict=True))
        self.axes = [channel_axis(shape, dims) for shape, dims in layout]
        self.counts = [
            int(np.prod(shape)) if axis is None else shape[axis]
            for (shape, _), axis in zip(layout, self.axes, strict=True)
        ]
        self.coef = nn.Parameter(torch.ones(sum(self.counts), device=next(body.parameters()).device))

    def forward(self, rows: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Return the masked embedding of images by row, (n_batch, n_features), float32."""
        layers = self.body(rows, generator)
        with torch.autocast(self.coef.device.type, enabled=False):  # r near 1 needs the digits
            return torch.cat([m.flatten(1) for m in self._masked(layers)], dim=1)

    def rdm(self, rows: np.ndarray) -> np.ndarray:
        """Return 1 - Pearson's r of the masked embeddings of images, as they stand, (n_rows, n_rows), float64."""
        with torch.no_grad():
            parts = [self(part) for part in torch.as_tensor(rows).split(EVALUATED)]
            return rdm_of_rows(torch.cat(parts))

    def _masked(self, layers: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        coefs = self.coef.split(self.counts)
        return [
            layer.float() * _beside(coef, layer, axis)
            for layer, coef, axis in zip(layers, coefs, self.axes, strict=True)
        ]


def _beside(coef: torch.Tensor, layer: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Return coefficients in a shape that multiplies a layer (n_batch, *row) along an axis of the row."""
    shape = layer.shape[1:] if axis is None else [-1 if n == axis else 1 for n in range(layer.ndim - 1)]
    return coef.reshape(list(shape))


@dataclass(frozen=True, eq=False)
class PairLoss:
    """What 1 - r of some pairs is compared with: `featpipe.rsa.mask._objective.loss_of`, with a gradient.

    l1 and squared are weighted means over pairs and RDMs of ``|a + b d - y|`` and of its square, with a and b
    the offset and the scale of a target and stimulus set, 0 and 1 without lines; correlation is ``1 - mean
    over stimulus sets and RDMs of the weighted Pearson r of d and y``.

    Parameters
    ----------
    kind : {"l1", "squared", "correlation"}
    lines : Lines, optional
    """

    kind: str = "l1"
    lines: Lines | None = None

    def __call__(self, d: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss of dissimilarities d (n_pairs,), a tensor of shape ()."""
        values, weights = _like(d, batch.values), _like(d, batch.weights)  # (n_rdms, n_pairs)
        if self.kind == "correlation":
            return _correlation(d, values, weights, batch.stimulus_set)
        if self.lines is not None:
            place = np.ix_(batch.target, batch.stimulus_set)
            d = _like(d, self.lines.offset[place]) + _like(d, self.lines.scale[place]) * d
        return (absolute_loss if self.kind == "l1" else squared_loss)(d, values, weights)


def _correlation(
    d: torch.Tensor, values: torch.Tensor, weights: torch.Tensor, sets: np.ndarray
) -> torch.Tensor:
    total, count = d.sum() * 0, torch.zeros((), device=d.device)
    for name in np.unique(sets):
        pairs = torch.as_tensor(np.flatnonzero(sets == name), device=d.device)
        own = weights[:, pairs]
        # of each RDM: its pairs, and the chance of its time
        share = own.sum(1) * ((own > 0).sum(1) >= _FEWEST_PAIRS)
        total = total + share @ _weighted_r(d[pairs], values[:, pairs], own) / share.sum().clamp(min=1e-12)
        count = count + (share.sum() > 0)
    return 1 - total / count.clamp(min=1)


def _weighted_r(d: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return Pearson's r of d (n_pairs,) with each row of y (n_rdms, n_pairs), 0 where either is constant."""
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
    return (weights * _unit(d.expand_as(y), weights) * _unit(y, weights)).sum(1)


def _unit(y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    centred = y - (weights * y).sum(1, keepdim=True)
    variance = (weights * centred.square()).sum(1, keepdim=True)
    varies = variance > (_ROUNDING * y.detach().abs().amax(1, keepdim=True)) ** 2
    return torch.where(varies, centred, 0.0) / torch.where(varies, variance, 1.0).sqrt()


def _like(d: torch.Tensor, array: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(array, dtype=d.dtype).to(d.device, non_blocking=True)


class MaskObjective:
    """The loss of a batch of pairs, or of all pairs of a batch of stimuli.

    Parameters
    ----------
    module : MaskedNetwork
    measured : Measured
    pairs : (first, second), ndarray of int, shape (n_pairs,)
        Rows of the two images of each measured pair.
    kind : {"l1", "squared", "correlation"}
    line : bool
        Whether `fit_lines` gives each target and stimulus set its offset and scale.
    """

    def __init__(
        self,
        module: MaskedNetwork,
        measured: Measured,
        pairs: tuple[np.ndarray, np.ndarray],
        *,
        kind: str = "l1",
        line: bool = False,
    ) -> None:
        self.module, self.measured = module, measured
        self.loss = PairLoss(kind)
        self._first, self._second = pairs
        self._number = np.full((len(module.body.images),) * 2, -1)  # of the pair of two rows
        self._number[pairs] = self._number[pairs[::-1]] = np.arange(len(pairs[0]))
        self._least = least_scales(self._dissimilarities(), measured.all()) if line else None

    def __call__(
        self, batch: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (sum of losses, number of pairs), each of shape (1,), of pairs (n, 2) or stimuli (n,)."""
        rows, first, second = pairs_of(batch.cpu())
        numbers = self._number[rows[first], rows[second]]
        d = 1 - pair_correlations(self.module(rows, generator), first[numbers >= 0], second[numbers >= 0])
        drawn = self.measured.draw(numbers[numbers >= 0], _numpy_generator(generator))
        count = torch.tensor([float(len(d))], device=d.device)
        return self.loss(d, drawn) * count, count

    def fit_lines(self) -> None:
        """Bring the lines to their best for the network as it stands, where lines are wanted."""
        if self._least is not None:
            d, kind = self._dissimilarities(), self.loss.kind
            lines = profile_lines(d, self.measured.all(), loss=kind, least=self._least)
            self.loss = PairLoss(kind, lines)

    def _dissimilarities(self) -> np.ndarray:
        """Return 1 - r of all pairs of the training, for the images themselves: (n_pairs,), float64."""
        rows, place = np.unique([self._first, self._second], return_inverse=True)
        return self.module.rdm(rows)[place[0], place[1]]


def _numpy_generator(generator: torch.Generator | None) -> np.random.Generator:
    """Return NumPy's generator with a seed that is drawn from torch's."""
    if generator is None:
        return np.random.default_rng(0)
    drawn = torch.randint(2**31, (1,), generator=generator, device=generator.device)
    return np.random.default_rng(int(drawn))
