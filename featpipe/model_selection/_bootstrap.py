"""Confidence intervals of mean correlations: stimuli drawn again with replacement, for all targets at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.errors import RequestError
from featpipe.model_selection._held_out import (
    FoldValues,
    GroupMeans,
    HeldOut,
    groups_in,
    number_of_scores,
)

_DEGENERATE = (
    1e-5  # share of the variance below which a draw holds, but for rounding, one value again and again
)


@dataclass(frozen=True)
class ScoreIntervals:
    """Intervals of Pearson's r.

    Parameters
    ----------
    overall : tuple of float
        Low and high end, of the mean over all targets.
    groups : dict of str to tuple of float
        Of the mean over each group of targets.
    targets : ndarray of shape (n_targets, 2)
        Of each target; NaN where no fold scores it.
    """

    overall: tuple[float, float]
    groups: dict[str, tuple[float, float]]
    targets: np.ndarray


def bootstrap_interval(
    y_true: Any,
    y_pred: Any,
    folds: Any = None,
    *,
    masks: Mapping[str, np.ndarray] | None = None,
    groups: Sequence | np.ndarray | None = None,
    n_draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    target_batch: int = 256,
) -> ScoreIntervals:
    """Return percentile bootstrap intervals of the mean over folds of Pearson's r.

    Stimuli are drawn with replacement within each fold, all targets together, so that intervals of means over
    targets know how the targets covary. Models are not fitted again: the interval is that of these predictions
    on other stimuli, not of other training sets.

    Parameters
    ----------
    y_true : array of shape (n_stimuli, n_targets) or (n_stimuli,), or `Responses`
        NaN where a trial is missing.
    y_pred : array of the same shape
        Held-out predictions.
    folds : sequence of (train, test), optional
        Rows that were scored together; all rows by default.
    masks : mapping of str to array of bool, shape (n_targets,), optional
        Groups of targets whose mean r gets an interval too.
    groups : array of shape (n_stimuli,), optional
        Stimuli of one group are drawn together; in a fold of one group, one by one.
    n_draws : int
    level : float
        Coverage that is aimed at.
    seed : int
    target_batch : int
        Targets at a time; bounds memory. Costs 10 · n_draws · n_stimuli · n_targets operations in float32.

    Returns
    -------
    ScoreIntervals

    Raises
    ------
    RequestError
        Shapes, folds or masks do not fit, or numbers are out of range.

    References
    ----------
    Efron & Tibshirani (1993), "An Introduction to the Bootstrap", chapters 8 and 13.
    """
    if n_draws < 2 or not 0 < level < 1:
        raise RequestError(
            f"n_draws is {n_draws} and level {level}; at least 2 draws and a level in (0, 1) are needed."
        )
    held_out = HeldOut.of(y_true, y_pred, folds)
    means = GroupMeans(masks, held_out.n_targets, n_draws)
    tails = [(1 - level) / 2, (1 + level) / 2]
    targets = np.full((held_out.n_targets, 2), np.nan)
    for part, r, scored in drawn_scores(held_out, groups, n_draws, seed, target_batch):
        means.add(part, r, scored)
        targets[part] = np.where(scored, np.quantile(r, tails, axis=0), np.nan).T
    overall, of_groups = means.means()
    return ScoreIntervals(
        _ends(overall, tails), {name: _ends(draws, tails) for name, draws in of_groups.items()}, targets
    )


def drawn_scores(
    held_out: HeldOut, groups: Any, n_draws: int, seed: int, target_batch: int
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield (targets, their mean r over folds in each draw (n_draws, n_batch), which of them have a score).

    The draws depend on folds, groups and seed alone: with the same of these, two models meet the same stimuli.
    """
    rng = np.random.default_rng(seed)
    labels = None if groups is None else np.asarray(groups)
    weights = [_draws(len(test), groups_in(test, labels), n_draws, rng) for test in held_out.tests]
    for part, values in held_out.batches(target_batch):
        count = number_of_scores(values)
        r = sum(_drawn_r(weight, fold) for weight, fold in zip(weights, values, strict=True))
        yield part, r / np.maximum(count, 1).astype(np.float32), count > 0


def _draws(n_test: int, groups: np.ndarray | None, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each stimulus of a fold is drawn: (n_draws, n_test), float32."""
    n_units, unit = n_test, np.arange(n_test)
    if groups is not None:
        names, unit = np.unique(groups, return_inverse=True)
        n_units = len(names)
    counts = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_draws)
    return counts.astype(np.float32)[:, unit]


def _drawn_r(weight: np.ndarray, fold: FoldValues) -> np.ndarray:
    """Return r of each draw from weighted sums: (n_draws, n_batch), 0 where a draw or a target does not vary."""
    y, p = fold.y, fold.p
    if fold.seen is None:
        size: Any = weight.sum(axis=1)[:, None]
    else:
        size = np.maximum(weight @ fold.seen.astype(np.float32), 1)
        p = np.where(fold.seen, p, np.float32(0))
    mean_y, mean_p = weight @ y, weight @ p
    cross = weight @ (y * p) - mean_y * mean_p / size
    ss_y, ss_p = weight @ y**2 - mean_y**2 / size, weight @ p**2 - mean_p**2 / size
    usable = (ss_y > _DEGENERATE) & (ss_p > _DEGENERATE) & fold.measured
    r = np.divide(cross, np.sqrt(np.abs(ss_y * ss_p)), out=np.zeros_like(cross), where=usable)
    return np.clip(r, -1, 1, out=r)


def _ends(draws: np.ndarray, tails: list[float]) -> tuple[float, float]:
    low, high = np.quantile(draws, tails)
    return float(low), float(high)
