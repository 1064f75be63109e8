"""How much better one model predicts the same held-out responses than another: gain in r, targets improved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.errors import RequestError
from featpipe.model_selection._bootstrap import drawn_scores
from featpipe.model_selection._held_out import GroupMeans, HeldOut

Interval = tuple[float, float]
_TARGET_BATCH = 256


@dataclass(frozen=True)
class Gain:
    """What one model gains over another on some targets.

    Parameters
    ----------
    n_targets : int
        That both have a score for.
    control, r : float
        Mean Pearson r of the one and of the other.
    gain : float
        Mean difference.
    over_targets : (float, float)
        Interval of the gain over other targets of this kind, as if they were independent.
    over_stimuli : (float, float), optional
        Interval of the gain over other stimuli; None where predictions were not kept.
    improved, worsened : float
        Percent of the targets whose r is higher, or lower, by more than the tolerance.
    improved_interval : (float, float)
        Over targets.
    """

    n_targets: int
    control: float
    r: float
    gain: float
    over_targets: Interval
    over_stimuli: Interval | None
    improved: float
    improved_interval: Interval
    worsened: float


def gain_of(
    control: np.ndarray,
    r: np.ndarray,
    *,
    tolerance: float = 0.01,
    n_draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    drawn: np.ndarray | None = None,
) -> Gain:
    """Compare the scores of the same targets under two models.

    ``gain = mean_t (r_t - control_t)``; improved are ``100 · mean_t [r_t - control_t > tolerance]``. Two fits of
    equal features differ in their last digits, by which half of the targets would be improved: hence a tolerance.

    Parameters
    ----------
    control, r : ndarray of shape (n_targets,)
        NaN where a target has no score.
    tolerance : float
        In units of r; at least 0.
    n_draws : int
    level : float
        Coverage of the percentile intervals.
    seed : int
    drawn : ndarray of shape (n_draws,), optional
        The gain under other draws of the stimuli, see `drawn_means`.

    Raises
    ------
    RequestError
        A tolerance below 0, or no target that both have a score for.

    References
    ----------
    Mulrooney & Brockmeier (2023), "Linear encoding models": percent of voxels whose correlation is improved.
    """
    if not tolerance >= 0:
        raise RequestError(
            f"The tolerance is {tolerance}; it is a difference of r of at least 0, such as 0.01."
        )
    known = np.isfinite(control) & np.isfinite(r)
    if not known.any():
        raise RequestError("No target has a score in both runs; compare runs of the same data.")
    control, r = control[known], r[known]
    difference = r - control
    better = difference > tolerance
    rng = np.random.default_rng(seed)
    draws = np.empty((n_draws, 2))
    for draw in draws:
        rows = rng.integers(len(r), size=len(r))
        draw[:] = difference[rows].mean(), better[rows].mean()
    return Gain(
        n_targets=len(r),
        control=float(control.mean()),
        r=float(r.mean()),
        gain=float(difference.mean()),
        over_targets=_ends(draws[:, 0], level),
        over_stimuli=None if drawn is None else _ends(drawn, level),
        improved=100 * float(better.mean()),
        improved_interval=_ends(100 * draws[:, 1], level),
        worsened=100 * float((difference < -tolerance).mean()),
    )


def drawn_means(
    y_true: Any,
    y_pred: Any,
    folds: Any,
    *,
    masks: Mapping[str, np.ndarray],
    groups: Any = None,
    n_draws: int = 1000,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return the mean r of each group of targets under draws of the stimuli, each (n_draws,).

    The same folds, groups and seed give the same draws, so that two models can be told apart by what they make of
    the same stimuli. Parameters are those of `bootstrap_interval`.
    """
    held_out = HeldOut.of(y_true, y_pred, folds)
    means = GroupMeans(masks, held_out.n_targets, n_draws)
    for part, r, scored in drawn_scores(held_out, groups, n_draws, seed, _TARGET_BATCH):
        means.add(part, r, scored)
    return means.means()[1]


def _ends(draws: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
