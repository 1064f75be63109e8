"""How far masked dissimilarities are from measured ones, and the gradient in the mask, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.rsa.mask._features import FeatureTerms
from featpipe.rsa.mask._measured import Batch
from featpipe.rsa.mask._terms import PairTerms

LOSSES = ("l1", "squared", "correlation")
_FEWEST_PAIRS = 3  # below it a correlation says nothing
_ROUNDING = 64 * np.finfo(float).eps  # of the largest value: what a constant varies by
_LEAST_SCALE = 0.01
_ROUNDS = 30  # of reweighted least squares
_SETTLED = 1e-6  # relative change of an L1 line that ends them


@dataclass(frozen=True, eq=False)
class Lines:
    """Offset and scale between 1 - r and the measured dissimilarity, per target and stimulus set.

    Parameters
    ----------
    offset, scale : ndarray of shape (n_targets, n_sets)
    """

    offset: np.ndarray
    scale: np.ndarray


def objective(
    beta: np.ndarray,
    terms: PairTerms | FeatureTerms,
    batch: Batch,
    *,
    loss: str = "l1",
    lines: Lines | Callable[[np.ndarray], Lines] | None = None,
    shrinkage: float = 0.0,
) -> tuple[float, np.ndarray]:
    """Return the loss of a mask and its gradient.

    ``loss(1 - r(beta), measured) + shrinkage mean((beta - 1)²)``, where l1 and squared are weighted means
    over pairs and RDMs of ``|a + b d - y|`` and of its square, and correlation is
    ``1 - mean over stimulus sets and RDMs of the weighted Pearson r of d and y``.

    Parameters
    ----------
    beta : ndarray of shape (n_channels,)
    terms : PairTerms or FeatureTerms
    batch : Batch
        Of the same pairs.
    loss : {"l1", "squared", "correlation"}
    lines : Lines, or callable d -> Lines, optional
        a and b; 0 and 1 by default. A correlation does without. A callable must give the best ones: their
        own change is left out of the gradient.
    shrinkage : float

    Returns
    -------
    value : float
    gradient : ndarray of shape (n_channels,)

    References
    ----------
    Gaziv (2019), sections 2.2 and 2.3.
    """
    r, pullback = terms.correlate(beta)
    lines = lines(1 - r) if callable(lines) else lines
    value, slope = loss_of(1 - r, batch, loss=loss, lines=lines)
    away = beta - 1
    gradient = pullback(-slope) + 2 * shrinkage * away / len(beta)
    return value + shrinkage * float(np.mean(away**2)), gradient


def loss_of(
    d: np.ndarray, batch: Batch, *, loss: str, lines: Lines | None = None
) -> tuple[float, np.ndarray]:
    """Return the loss of dissimilarities d (n_pairs,) and its gradient in d."""
    if loss == "correlation":
        return _correlation(d, batch)
    if lines is None:
        residual, scale = d - batch.values, np.ones((1, 1))
    else:
        place = np.ix_(batch.target, batch.stimulus_set)
        scale = lines.scale[place]  # (n_rdms, n_pairs)
        residual = lines.offset[place] + scale * d - batch.values
    if loss == "l1":
        slope = batch.weights * np.sign(residual)
        return float(np.vdot(slope, residual)), (scale * slope).sum(axis=0)
    slope = batch.weights * residual
    return float(np.vdot(slope, residual)), 2 * (scale * slope).sum(axis=0)


def _correlation(d: np.ndarray, batch: Batch) -> tuple[float, np.ndarray]:
    slope, total, count = np.zeros(len(d)), 0.0, 0.0
    for name in np.unique(batch.stimulus_set):
        pairs = np.flatnonzero(batch.stimulus_set == name)
        weights = batch.weights[:, pairs]
        enough = np.count_nonzero(weights, axis=1) >= _FEWEST_PAIRS
        share = weights.sum(axis=1) * enough  # of each RDM: its pairs, and the chance of its time
        if not enough.any():
            continue
        r, gradient = _weighted_r(d[pairs], batch.values[:, pairs], weights)
        share = share / share.sum()
        total += share @ r
        slope[pairs] = share @ gradient
        count += 1
    return 1 - total / max(count, 1), -slope / max(count, 1)


def _weighted_r(d: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Pearson's r of d (n_pairs,) with each row of y, and its gradient in d, (n_rdms, n_pairs)."""
    total = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    z = _unit(y, weights)
    d, size = d - (weights @ d)[:, None], np.abs(d).max(initial=0.0)
    spread = np.sqrt((weights * d**2).sum(axis=1, keepdims=True))
    per_spread = np.divide(1, spread, out=np.zeros_like(spread), where=spread > _ROUNDING * size)
    r = (weights * d * z).sum(axis=1, keepdims=True) * per_spread
    return r[:, 0], weights * (z - r * d * per_spread) * per_spread


def _unit(y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return centred rows of weighted length one; 0 where a row varies by no more than rounding."""
    centred = y - (weights * y).sum(axis=1, keepdims=True)
    length = np.sqrt((weights * centred**2).sum(axis=1, keepdims=True))
    largest = np.abs(y).max(axis=1, initial=0.0, keepdims=True)
    return np.divide(centred, length, out=np.zeros_like(centred), where=length > _ROUNDING * largest)


def profile_lines(
    d: np.ndarray,
    batch: Batch,
    *,
    loss: str,
    least: np.ndarray | None = None,
    start: Lines | None = None,
) -> Lines:
    """Return the best offset and scale per target and stimulus set for dissimilarities d (n_pairs,).

    Weighted least squares for the squared loss, reweighted for L1.

    Parameters
    ----------
    least : ndarray of shape (n_targets, n_sets), optional
        Smallest scales, as of `least_scales`; 0 by default.
    start : Lines, optional
        Where reweighting begins; least squares by default.
    """
    shape = int(batch.target.max()) + 1, int(batch.stimulus_set.max()) + 1
    least = np.zeros(shape) if least is None else least
    lines = Lines(np.zeros(shape), np.ones(shape))
    for group, own, y, weights in _groups(batch, shape):
        if loss == "l1":
            begin = None if start is None else (start.offset[group], start.scale[group])
            found = _l1_line(d[own], y, weights, least[group], begin)
        else:
            found = _squared_line(d[own], y, weights, least[group])
        lines.offset[group], lines.scale[group] = found
    return lines


def least_scales(d: np.ndarray, batch: Batch) -> np.ndarray:
    """Return a hundredth of the ratio of the spreads of measured values and d: (n_targets, n_sets).

    A scale of 0, the best for a mask that starts out anticorrelated, lets no gradient through to the mask.
    """
    shape = int(batch.target.max()) + 1, int(batch.stimulus_set.max()) + 1
    least = np.zeros(shape)
    for group, own, y, weights in _groups(batch, shape):
        share = weights / weights.sum()
        spread = np.sqrt(np.vdot(share, (y - np.vdot(share, y)) ** 2))
        least[group] = _LEAST_SCALE * spread / (d[own].std() + np.finfo(float).eps)
    return least


def _groups(batch: Batch, shape: tuple[int, int]) -> Iterator[tuple[Any, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (target, set), which pairs are of it, values and weights, where anything was measured."""
    for target, stimulus_set in np.ndindex(shape):
        own = batch.stimulus_set == stimulus_set
        place = np.ix_(batch.target == target, own)
        if batch.weights[place].any():
            yield (target, stimulus_set), own, batch.values[place], batch.weights[place]


def _squared_line(d: np.ndarray, y: np.ndarray, weights: np.ndarray, least: float) -> tuple[float, float]:
    of_pair = weights.sum(axis=0)
    total = of_pair.sum()
    mean_d, mean_y = of_pair @ d / total, np.vdot(weights, y) / total
    centred = d - mean_d
    variance = of_pair @ centred**2
    if variance <= np.finfo(float).tiny:
        return float(mean_y), 0.0
    scale = max((weights * y).sum(axis=0) @ centred / variance, least)
    return float(mean_y - scale * mean_d), float(scale)


def _l1_line(
    d: np.ndarray, y: np.ndarray, weights: np.ndarray, least: float, start: tuple[float, float] | None
) -> tuple[float, float]:
    line = start or _squared_line(d, y, weights, least)
    for _ in range(_ROUNDS):
        residual = np.abs(line[0] + line[1] * d - y)
        floor = 1e-3 * np.vdot(weights, residual) / weights.sum() + np.finfo(float).tiny
        before, line = line, _squared_line(d, y, weights / np.maximum(residual, floor), least)
        if np.allclose(before, line, rtol=_SETTLED, atol=_SETTLED):
            break
    return line
