"""What one coefficient per channel does to the correlation of two stimuli, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featpipe.rsa.statistics._statistics import ChannelStatistics

_FAR = 25.0  # squared mean over variance from which float32 is to be spared the mean
_FLOOR = 1e-10  # of the largest variance: below it one is rounding


@dataclass(frozen=True, eq=False)
class PairTerms:
    """Products of the pairs of stimuli that a mask is fitted to.

    Features are shifted by one constant for all channels, so that float32 keeps the digits of ``1 - r``;
    `correlate` puts back what the shift changes.

    Parameters
    ----------
    products : ndarray of shape (n_pairs, n_channels), float32
        Sum over positions of the product of the two stimuli.
    norms : ndarray of shape (n_stimuli, n_channels), float32
        The same of a stimulus with itself.
    sums : ndarray of shape (n_stimuli, n_channels), float32
        Sums over positions.
    positions : ndarray of shape (n_channels,)
        Positions of each channel.
    shift : float
        What was taken from every feature.
    first, second : ndarray of int, shape (n_pairs,)
        Rows of the two stimuli of each pair.
    """

    products: np.ndarray
    norms: np.ndarray
    sums: np.ndarray
    positions: np.ndarray
    shift: float
    first: np.ndarray
    second: np.ndarray

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return len(self.first)

    @property
    def n_channels(self) -> int:
        """Number of coefficients."""
        return len(self.positions)

    def take(self, pairs: np.ndarray) -> PairTerms:
        """Select pairs, and the stimuli that they need."""
        ends = np.concatenate([self.first[pairs], self.second[pairs]])
        rows, place = np.unique(ends, return_inverse=True)
        return replace(
            self,
            products=self.products[pairs],
            norms=self.norms[rows],
            sums=self.sums[rows],
            first=place[: len(pairs)],
            second=place[len(pairs) :],
        )

    def sum_channels(self, group: np.ndarray) -> PairTerms:
        """Add up channels that share a coefficient, such as those of a stage.

        Parameters
        ----------
        group : ndarray of int, shape (n_channels,)
            Ascending from 0 without gaps.
        """
        starts = np.searchsorted(group, np.arange(group.max() + 1))

        def summed(values: np.ndarray) -> np.ndarray:
            return np.add.reduceat(values, starts, axis=-1, dtype=np.float64)

        return replace(
            self,
            products=summed(self.products),
            norms=summed(self.norms),
            sums=summed(self.sums),
            positions=summed(self.positions),
        )

    def correlate(self, beta: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """Return Pearson's r of masked embeddings, and what turns its gradient into that of the mask.

        For features ``f + shift`` with products G and sums s of f over the ``P_c`` positions of channel c,
        and ``D = sum P``, ``S_i = sum_c beta_c s_ic``, ``b = sum_c P_c beta_c / D``::

            cov_ij = sum_c beta_c² G_c[i, j] - S_i S_j / D + shift (A_i + A_j) + shift² V
            A_i = sum_c s_ic beta_c (beta_c - b),   V = sum_c P_c (beta_c - b)²

        and ``r_ij = cov_ij / sqrt(cov_ii cov_jj)``, exactly.

        Parameters
        ----------
        beta : ndarray of shape (n_channels,)

        Returns
        -------
        r : ndarray of shape (n_pairs,), float64
        pullback : callable, gradient of a loss in r (n_pairs,) -> gradient in beta (n_channels,)
        """
        i, j, shift, n_features = self.first, self.second, self.shift, self.positions.sum()
        squared = (beta**2).astype(np.float32)
        mean = self.positions @ beta / n_features
        total = (self.sums @ beta.astype(np.float32)).astype(np.float64)  # S: (n_stimuli,)
        variance = (self.norms @ squared).astype(np.float64) - total**2 / n_features
        covariance = (self.products @ squared).astype(np.float64) - total[i] * total[j] / n_features
        if shift:
            spread = shift**2 * (self.positions @ (beta - mean) ** 2)
            tilt = shift * (self.sums @ (beta * (beta - mean)).astype(np.float32)).astype(np.float64)
            variance += 2 * tilt + spread
            covariance += tilt[i] + tilt[j] + spread
        r, pull = pearson(covariance, variance, i, j)

        def pullback(gradient: np.ndarray) -> np.ndarray:
            of_pair, of_self = pull(gradient)
            cross = _scatter(i, of_pair * total[j], variance) + _scatter(j, of_pair * total[i], variance)
            of_total = -(cross + 2 * of_self * total) / n_features
            products = of_pair.astype(np.float32) @ self.products + of_self.astype(np.float32) @ self.norms
            change = 2 * beta * products + of_total.astype(np.float32) @ self.sums
            if not shift:
                return np.asarray(change)
            ends = _scatter(i, of_pair, variance) + _scatter(j, of_pair, variance)
            of_tilt = shift * (ends + 2 * of_self)
            change += (2 * beta - mean) * (of_tilt.astype(np.float32) @ self.sums)
            change -= self.positions * (of_tilt @ total / n_features)
            of_spread = shift**2 * (of_pair.sum() + of_self.sum())
            return np.asarray(change + 2 * of_spread * self.positions * (beta - mean))

        return r, pullback


def pair_terms(
    statistics: Sequence[ChannelStatistics], pairs: Sequence[tuple[np.ndarray, np.ndarray]]
) -> PairTerms:
    """Put the products of pairs of several stimulus sets, or views, under one another.

    Parameters
    ----------
    statistics : sequence of ChannelStatistics
        With the same channels.
    pairs : sequence of (first, second)
        Row numbers within each of `statistics`.
    """
    positions = statistics[0].positions
    shift = _worthwhile_shift(statistics)
    products = np.empty((sum(len(first) for first, _ in pairs), len(positions)), dtype=np.float32)
    start = 0
    for part, (first, second) in zip(statistics, pairs, strict=True):
        part.pairs(first, second, shift=shift, out=products[start : start + len(first)])
        start += len(first)
    offsets = np.cumsum([0, *(part.n_stimuli for part in statistics)])
    ends = [(first + at, second + at) for (first, second), at in zip(pairs, offsets, strict=False)]
    return PairTerms(
        products=products,
        norms=np.concatenate([_norms(part, shift) for part in statistics]),
        sums=np.concatenate([(part.sums - shift * positions).astype(np.float32) for part in statistics]),
        positions=positions.astype(np.float64),
        shift=shift,
        first=np.concatenate([first for first, _ in ends]),
        second=np.concatenate([second for _, second in ends]),
    )


def _worthwhile_shift(statistics: Sequence[ChannelStatistics]) -> float:
    """Return the mean over all features where it is large against their deviation, else 0, which is faster."""
    n_values = sum(part.n_stimuli * part.n_features for part in statistics)
    mean = sum(part.sums.sum() for part in statistics) / n_values
    squares = sum(float(_norms(part, mean).sum(dtype=np.float64)) for part in statistics)
    return float(mean) if mean**2 > _FAR * squares / n_values else 0.0


def _norms(statistics: ChannelStatistics, shift: float) -> np.ndarray:
    stimuli = np.arange(statistics.n_stimuli)
    return statistics.pairs(stimuli, stimuli, shift=shift)


def pearson(
    covariance: np.ndarray, variance: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]]:
    """Return r of pairs, and what turns its gradient into those of covariances and variances.

    Parameters
    ----------
    covariance : ndarray of shape (n_pairs,)
    variance : ndarray of shape (n_stimuli,)
        Where it is rounding, r is 0 and so is the gradient.
    first, second : ndarray of int, shape (n_pairs,)
    """
    known = variance > _FLOOR * variance.max(initial=0.0)
    scale = np.where(known, 1 / np.sqrt(np.where(known, variance, 1.0)), 0.0)
    r = covariance * scale[first] * scale[second]

    def pull(gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        both = _scatter(first, gradient * r, variance) + _scatter(second, gradient * r, variance)
        return gradient * scale[first] * scale[second], -0.5 * both * scale**2

    return r, pull


def _scatter(rows: np.ndarray, values: np.ndarray, like: np.ndarray) -> np.ndarray:
    return np.bincount(rows, values, minlength=len(like))
