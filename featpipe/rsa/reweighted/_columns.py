"""Predictors of a pair of stimuli: dissimilarities of each channel, or of each layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.rsa.mask._apply import channel_counts
from featpipe.rsa.statistics._gram import as_channels
from featpipe.rsa.statistics._statistics import ChannelStatistics, channel_statistics

FORMS = ("squared", "correlation")

_PAIRS = 2048  # at a time, so that no second array of all pairs is made
_FEATURES = 1 << 16  # at a time, summed in float32 before float64 takes over


@dataclass(frozen=True)
class Columns:
    """Which dissimilarities predict a pair.

    Parameters
    ----------
    form : {"squared", "correlation"}
        Per channel, "squared" is ``sum_p (f_icp - f_jcp)² / n_positions``; "correlation" is what the channel adds
        to minus Pearson's r over all features of its layer, ``-sum_p (f_icp - m_i)(f_jcp - m_j) / (n_i n_j)`` with
        the layer's mean m and length n of each stimulus.
    per_layer : bool
        Per layer instead: the mean squared difference of its features, or 1 - r.
    """

    form: str = "squared"
    per_layer: bool = False

    def count(self, blocks: LayerBlocks) -> np.ndarray:
        """Return the number of columns of each layer."""
        return np.array([1] * len(blocks.names) if self.per_layer else channel_counts(blocks))

    def of_pairs(self, blocks: LayerBlocks, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the predictors of pairs within stimulus sets: (n_pairs, n_columns), float32.

        Parameters
        ----------
        blocks : LayerBlocks
            Of one stimulus set.
        first, second : ndarray of int, shape (n_pairs,)
            Rows of the two stimuli.
        """
        columns = np.empty((len(first), self.count(blocks).sum()), dtype=np.float32)
        ids, rows = np.unique(blocks.ids.astype(str), return_inverse=True)
        own = _Own.of(channel_statistics(blocks, ids), self.form)
        for start in range(0, len(first), _PAIRS):
            part = slice(start, start + _PAIRS)
            channels = own.pairs(rows[first[part]], rows[second[part]])
            columns[part] = self._summed(channels, own.statistics) if self.per_layer else channels
        return columns

    def _summed(self, channels: np.ndarray, statistics: ChannelStatistics) -> np.ndarray:
        starts = np.flatnonzero(np.diff(statistics.layer, prepend=-1))
        if self.form == "correlation":
            return 1 + np.add.reduceat(channels, starts, axis=1, dtype=np.float64)
        weight = statistics.positions.astype(np.float64)
        return np.add.reduceat(channels * weight, starts, axis=1) / np.add.reduceat(weight, starts)

    def weighted_sum(self, blocks: LayerBlocks, coef: np.ndarray) -> np.ndarray:
        """Return the sum of all columns times their weights for all pairs, read from the features.

        Parameters
        ----------
        blocks : LayerBlocks
            Of any stimulus sets.
        coef : ndarray of shape (n_columns,)

        Returns
        -------
        dissimilarities : ndarray of shape (n_stimuli, n_stimuli), float64
            The diagonal has no meaning.
        """
        total = np.zeros((len(blocks), len(blocks)))
        own = np.split(np.asarray(coef, dtype=np.float64), np.cumsum(self.count(blocks))[:-1])
        for position, weights in enumerate(own):
            if not weights.any():
                continue
            rows = as_channels(blocks.block(position), blocks.dims[position])
            if self.form == "correlation":
                total += -_products(_unit_rows(rows), weights) + (weights[0] if self.per_layer else 0)
            else:
                total += _squared(rows, weights, self.per_layer)
        return total


@dataclass(frozen=True, eq=False)
class _Own:
    """What each stimulus alone contributes to the predictors of its pairs, (n_stimuli, n_channels) each."""

    statistics: ChannelStatistics
    form: str
    offset: np.ndarray  # of the layer's mean from the channel's, times the root of the positions
    size: np.ndarray  # squared length of the channel, or of the layer around its mean

    @classmethod
    def of(cls, statistics: ChannelStatistics, form: str) -> _Own:
        rows = np.arange(statistics.n_stimuli)
        size = statistics.centred_pairs(rows, rows).astype(np.float64)
        root = np.sqrt(statistics.positions)
        if form == "squared":
            offset = statistics.sums / root
            return cls(statistics, form, offset - offset.mean(axis=0), size)
        starts = np.flatnonzero(np.diff(statistics.layer, prepend=-1))
        mean = np.add.reduceat(statistics.sums, starts, axis=1) / np.add.reduceat(
            statistics.positions, starts
        )
        offset = statistics.sums / root - root * mean[:, statistics.layer]
        length = np.sqrt(np.add.reduceat(size + offset**2, starts, axis=1))
        return cls(statistics, form, offset, length[:, statistics.layer])

    def pairs(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        products = self.statistics.centred_pairs(first, second).astype(np.float64)
        if self.form == "squared":
            squares = self.size[first] + self.size[second] - 2 * products
            squares += (self.offset[first] - self.offset[second]) ** 2
            return np.maximum(squares, 0) / self.statistics.positions
        products += self.offset[first] * self.offset[second]
        length = self.size[first] * self.size[second]
        return -np.divide(products, length, out=np.zeros_like(products), where=length > 0)


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    """Centre and scale the features of each stimulus: what Pearson's r multiplies."""
    flat = rows.reshape(len(rows), -1)
    flat = flat - flat.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    length = np.sqrt(np.einsum("ij,ij->i", flat, flat, dtype=np.float64))[:, None]
    return np.divide(flat, length, out=np.zeros_like(flat), where=length > 0, casting="same_kind").reshape(
        rows.shape
    )


def _squared(rows: np.ndarray, weights: np.ndarray, per_layer: bool) -> np.ndarray:
    n_channels, n_positions = rows.shape[1:]
    shares = weights / (n_channels * n_positions if per_layer else n_positions)
    products = _products(rows - rows.mean(axis=0, dtype=np.float64).astype(np.float32), shares)
    own = np.diagonal(products)
    return own[:, None] + own - 2 * products


def _products(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return ``sum_c w_c sum_p x_icp x_jcp``: ndarray of shape (n_stimuli, n_stimuli), float64."""
    n_positions = rows.shape[2]
    weights = np.broadcast_to(weights, rows.shape[1]).astype(np.float32)
    total = np.zeros((len(rows), len(rows)))
    step = max(1, _FEATURES // n_positions)
    for start in range(0, rows.shape[1], step):
        part = rows[:, start : start + step]
        scaled = part * weights[start : start + step, None]
        total += scaled.reshape(len(rows), -1) @ part.reshape(len(rows), -1).T
    return (total + total.T) / 2
