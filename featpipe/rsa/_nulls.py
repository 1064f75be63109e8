"""Chance levels of RDM scores: permuted stimuli, random main effects, and the interval of the signed rho.

The score of the field squares rho, so it is positive by chance and rewards the wrong sign; and about half of
a measured RDM is a main effect of stimuli, which many a model hits without knowing it. Both show here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.errors import RequestError
from featpipe.rsa._ranks import unit_ranks
from featpipe.rsa._rdms import RDMs, squares
from featpipe.rsa._resampling import pair_weights, weighted_similarity
from featpipe.rsa._scores import (
    Unit,
    known_mean,
    over_times,
    over_units,
    scoring_units,
    target_columns,
    unit_ceilings,
    unit_percents,
    unit_rhos,
)
from featpipe.rsa._similarity import MIN_PAIRS, similarity

_BATCH_VALUES = 1 << 20  # dissimilarities of permuted RDMs held at a time: 8 MiB


@dataclass(frozen=True, eq=False)
class Null:
    """Scores of a prediction beside those that chance gives, per target and averaged over subjects.

    Parameters
    ----------
    targets : tuple of str
    r2, rho, percent : ndarray of shape (n_targets,)
        Observed: `rdm_r2`, `rdm_rho` and `rdm_percent`, means over subjects.
    r2_null, rho_null, percent_null : ndarray of shape (n, n_targets)
        The same of each draw.
    """

    targets: tuple[str, ...]
    r2: np.ndarray
    rho: np.ndarray
    percent: np.ndarray
    r2_null: np.ndarray
    rho_null: np.ndarray
    percent_null: np.ndarray

    @property
    def n(self) -> int:
        """Number of draws."""
        return len(self.r2_null)

    @property
    def mean(self) -> np.ndarray:
        """Mean R² by chance: ndarray of shape (n_targets,)."""
        return self.r2_null.mean(axis=0)

    @property
    def p95(self) -> np.ndarray:
        """95th percentile of R² by chance: ndarray of shape (n_targets,)."""
        return np.percentile(self.r2_null, 95, axis=0)

    @property
    def p(self) -> np.ndarray:
        """``(1 + #{null R² >= R²}) / (1 + n)``: ndarray of shape (n_targets,)."""
        return _p_value(self.r2_null, self.r2)

    @property
    def percent_mean(self) -> np.ndarray:
        """Mean percent of the ceiling by chance: ndarray of shape (n_targets,)."""
        return self.percent_null.mean(axis=0)

    @property
    def percent_p95(self) -> np.ndarray:
        """95th percentile of the percent by chance: ndarray of shape (n_targets,)."""
        return np.percentile(self.percent_null, 95, axis=0)

    @property
    def rho_mean(self) -> np.ndarray:
        """Mean signed rho by chance: ndarray of shape (n_targets,)."""
        return self.rho_null.mean(axis=0)

    @property
    def rho_interval(self) -> np.ndarray:
        """Central 95 % of the signed rho by chance: ndarray of shape (n_targets, 2)."""
        return np.percentile(self.rho_null, [2.5, 97.5], axis=0).T

    @property
    def rho_p(self) -> np.ndarray:
        """``(1 + #{null rho >= rho}) / (1 + n)``, one-sided: ndarray of shape (n_targets,)."""
        return _p_value(self.rho_null, self.rho)


def permutation_null(
    y_true: RDMs, y_pred: RDMs, *, n: int = 1000, seed: int = 0, blocks: np.ndarray | None = None
) -> Null:
    """Score a prediction whose stimuli are permuted, within stimulus sets and folds.

    All targets, subjects and times see the same permutations, so that what they share stays shared.

    Parameters
    ----------
    y_true : RDMs
    y_pred : RDMs with one RDM
    n : int
        Number of permutations.
    seed : int
    blocks : array of int, shape (n_stimuli,), optional
        The fold in which each stimulus of `y_true` was predicted, -1 where it is not scored. The score is then
        the mean over folds of the scores within folds; pairs across folds do not count.

    Raises
    ------
    RequestError
        As `rdm_rho`; `n` below 1; blocks that do not fit.

    Notes
    -----
    Predictions stay as they were fitted. That is exact for stimuli that none of the fits has seen. In cross-validation
    each part (fold or set) is scored with a fit to the others, so what is alike by chance counts in both
    directions: the scores of parts correlate, and the null of their mean is too narrow. For predictions linear in the
    measured values its deviation is too small by at most a factor of √2; for masks fitted to noise on two sets, p of
    the mean rho was at most .05 in 8 % of cases instead of 5 %. Read p near a threshold with that in mind.
    """

    def drawn(unit: Unit, rng: np.random.Generator) -> np.ndarray:
        return _permuted_rhos(unit, rng.permuted(np.tile(np.arange(unit.n_stimuli), (n, 1)), axis=1))

    return _null(y_true, y_pred, blocks, drawn, n, seed)


def main_effect_null(
    y_true: RDMs, y_pred: RDMs, *, n: int = 1000, seed: int = 0, blocks: np.ndarray | None = None
) -> Null:
    """Score RDMs that know nothing but a random number per stimulus, ``u_i + u_j`` with normal u.

    Parameters and errors are those of `permutation_null`. `y_pred` gives the observed scores and says which
    pairs count.
    """

    def drawn(unit: Unit, rng: np.random.Generator) -> np.ndarray:
        return _main_effect_rhos(unit, rng.standard_normal((n, unit.n_stimuli)))

    return _null(y_true, y_pred, blocks, drawn, n, seed)


def interval_of_rho(
    y_true: RDMs,
    y_pred: RDMs,
    *,
    n: int = 1000,
    seed: int = 0,
    stimuli: bool = False,
    blocks: np.ndarray | None = None,
) -> np.ndarray:
    """Return the mean signed rho of each target and its 95 % bootstrap interval over subjects.

    Parameters
    ----------
    y_true, y_pred, n, seed, blocks
        As in `permutation_null`.
    stimuli : bool
        Draw the stimuli of each set (and fold) anew as well; pairs of a stimulus with itself do not count.
        The interval then also holds for other stimuli, and is on the wide side.

    Returns
    -------
    interval : ndarray of shape (n_targets, 3)
        Mean, lower and upper end.
    """
    check_draws(n)
    rng = np.random.default_rng(seed)
    units = scoring_units(y_true, y_pred, blocks)
    rho = over_units(units, unit_rhos(units, y_true))
    draws = np.broadcast_to(rho, (n, len(rho)))
    if stimuli:
        draws = over_units(units, _by_units(units, y_true, lambda unit: _bootstrapped_rhos(unit, n, rng)))
    found = []
    for columns in target_columns(y_true).values():
        subjects = rng.integers(len(columns), size=(n, len(columns)))
        means = known_mean(np.take_along_axis(draws[:, columns], subjects, axis=1), axis=1)
        found.append([known_mean(rho[columns], axis=0), *central_interval(means)])
    return np.array(found, dtype=np.float64)


def rdm_nulls_summary(
    y_true: RDMs, y_pred: RDMs, *, n: int = 1000, seed: int = 0, blocks: np.ndarray | None = None
) -> dict[str, Any]:
    """Return everything that stands beside an RDM score, for a run's ``summary.json``.

    Parameters and errors are those of `permutation_null`.

    Returns
    -------
    dict
        ``{"n": n, "seed": seed, "targets": {NAME: {"r2", "percent", "ceiling", "ceiling_lower", "rho",
        "permutation", "main_effects", "t_test_p"}}}`` of floats, None where there is no number. ``rho`` holds
        mean, interval, n_above_zero, n_subjects and p (permutation, one-sided); the two nulls hold mean, p95
        and p of R², percent_mean and percent_p95, rho_mean and rho_interval. ``t_test_p`` is the challenge's
        t-test of rho² against 0, whose null hypothesis cannot be true.
    """
    nulls = {
        "permutation": permutation_null(y_true, y_pred, n=n, seed=seed, blocks=blocks),
        "main_effects": main_effect_null(y_true, y_pred, n=n, seed=seed, blocks=blocks),
    }
    units = scoring_units(y_true, y_pred, blocks)
    rhos = unit_rhos(units, y_true)
    rho, r2 = over_units(units, rhos), over_units(units, rhos**2)
    ceilings = [over_units(units, unit_ceilings(units, y_true, leave_out=out)) for out in (False, True)]
    intervals = interval_of_rho(y_true, y_pred, n=n, seed=seed, blocks=blocks)
    targets = {}
    for place, (target, columns) in enumerate(target_columns(y_true).items()):
        upper, lower = (known_mean(values[columns], axis=0) for values in ceilings)
        targets[target] = {
            "r2": nulls["permutation"].r2[place],
            "percent": nulls["permutation"].percent[place],
            "ceiling": upper,
            "ceiling_lower": lower,
            "rho": _rho_summary(rho[columns], intervals[place], nulls["permutation"].rho_p[place]),
            **{name: _null_summary(null, place) for name, null in nulls.items()},
            "t_test_p": t_test_of_zero(r2[columns]),
        }
    return _plain({"n": n, "seed": seed, "targets": targets})


def central_interval(draws: np.ndarray) -> np.ndarray:
    """Return the 2.5th and 97.5th percentile over the first axis, (n, ...) to (2, ...); NaN are left out."""
    empty = np.isnan(draws).all(axis=0)
    ends = np.nanpercentile(np.where(empty, 0, draws), [2.5, 97.5], axis=0)
    return np.where(empty, np.nan, ends)


def t_test_of_zero(values: np.ndarray) -> float:
    """Return the two-sided p of a t-test of the mean against 0; NaN for fewer than two values.

    The test of the Algonauts 2019 challenge, applied there to rho² over subjects.
    """
    from scipy.stats import t  # slow to import

    values = values[~np.isnan(values)]
    if len(values) < 2:
        return math.nan
    deviation = values.std(ddof=1) / math.sqrt(len(values))
    if deviation == 0:
        return 0.0 if values.any() else 1.0
    return float(2 * t.sf(abs(values.mean() / deviation), len(values) - 1))


def _null(
    y_true: RDMs,
    y_pred: RDMs,
    blocks: np.ndarray | None,
    drawn: Callable[[Unit, np.random.Generator], np.ndarray],
    n: int,
    seed: int,
) -> Null:
    check_draws(n)
    rng = np.random.default_rng(seed)
    units = scoring_units(y_true, y_pred, blocks)
    observed = _means(units, y_true, unit_rhos(units, y_true))
    chance = _means(units, y_true, _by_units(units, y_true, lambda unit: drawn(unit, rng)))
    return Null(y_true.target_names, *observed, *chance)


def _by_units(units: list[Unit], y: RDMs, draw: Callable[[Unit], np.ndarray]) -> np.ndarray:
    """Return rho of every draw: ndarray of shape (n_draws, n_units, n_measured)."""
    return np.stack([over_times(draw(unit), y) for unit in units], axis=1)


def _means(units: list[Unit], y: RDMs, rho: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return R², rho and percent as means over subjects, each of shape (..., n_targets)."""
    scores = (rho**2, rho, unit_percents(units, y, rho))
    columns = target_columns(y).values()
    r2, signed, percent = (
        np.stack([known_mean(over_units(units, score)[..., c], axis=-1) for c in columns], axis=-1)
        for score in scores
    )
    return r2, signed, percent


def _permuted_rhos(unit: Unit, orders: np.ndarray) -> np.ndarray:
    """Return rho of each order of the prediction's stimuli: ndarray of shape (n, n_rdms).

    Where no pair is missing, ranks are gathered instead of dissimilarities and rho is a dot product.
    """
    rho = np.full((len(orders), len(unit.true)), np.nan)
    complete = ~np.isnan(unit.true).any(axis=1)
    if unit.true.shape[1] < MIN_PAIRS:
        return rho
    fast = bool(complete.any()) and not np.isnan(unit.pred).any()
    slow_rows = np.flatnonzero(~complete if fast else np.ones(len(complete), dtype=bool))
    model = squares(unit_ranks(unit.pred[None]), unit.n_stimuli)[0].ravel() if fast else None
    data = unit_ranks(unit.true[complete]).T if fast else None
    raw = squares(unit.pred[None], unit.n_stimuli)[0].ravel()
    for draws, places in _gathered(orders, unit.n_stimuli):
        if model is not None:
            rho[draws, complete] = np.clip(model[places] @ data, -1, 1)
        if len(slow_rows):
            rho[draws, slow_rows] = similarity(raw[places], unit.true[slow_rows])
    return rho


def _gathered(orders: np.ndarray, n_stimuli: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield draws and where their pairs lie in a flat matrix, (n_draws, n_pairs), a batch at a time."""
    first, second = np.triu_indices(n_stimuli, 1)
    for draws in _batches(len(orders), len(first)):
        yield draws, orders[draws][:, first] * n_stimuli + orders[draws][:, second]


def _batches(n: int, n_pairs: int) -> Iterator[slice]:
    step = max(1, _BATCH_VALUES // max(1, n_pairs))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _main_effect_rhos(unit: Unit, effects: np.ndarray) -> np.ndarray:
    """Return rho of RDMs ``u_i + u_j``: ndarray of shape (n, n_rdms)."""
    first, second = np.triu_indices(unit.n_stimuli, 1)
    true = np.where(np.isnan(unit.pred), np.nan, unit.true)
    parts = [
        similarity(effects[draws][:, first] + effects[draws][:, second], true)
        for draws in _batches(len(effects), len(first))
    ]
    return np.concatenate(parts)


def _bootstrapped_rhos(unit: Unit, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return rho of stimuli drawn with replacement, without self-pairs: ndarray of shape (n, n_rdms)."""
    weights = pair_weights(unit.n_stimuli, n, rng)
    return weighted_similarity(unit.pred[None], unit.true, weights)[:, 0]


def _p_value(null: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Return p, NaN where there is no observed score.

    Scores that differ by rounding are equal: among few stimuli permutations repeat the observed one.
    """
    reached = (null >= observed - 1e-12).sum(axis=0)
    return np.where(np.isnan(observed), np.nan, (1 + reached) / (1 + len(null)))


def check_draws(n: int) -> None:
    """Refuse a number of draws below one."""
    if n < 1:
        raise RequestError(f"A chance level needs at least one draw, but n is {n}; 1000 is usual.")


def _null_summary(null: Null, place: int) -> dict[str, Any]:
    names = ("mean", "p95", "p", "percent_mean", "percent_p95")
    values = {name: getattr(null, name)[place] for name in names}
    return values | {"rho_mean": null.rho_mean[place], "rho_interval": list(null.rho_interval[place])}


def _rho_summary(rho: np.ndarray, interval: np.ndarray, p: float) -> dict[str, Any]:
    known = rho[~np.isnan(rho)]
    return {
        "mean": interval[0],
        "interval": list(interval[1:]),
        "n_above_zero": int((known > 0).sum()),
        "n_subjects": len(known),
        "p": p,
    }


def _plain(value: Any) -> Any:
    """Turn numbers of NumPy into those of JSON, NaN into None."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, int):
        return value
    return None if math.isnan(value) else float(value)
