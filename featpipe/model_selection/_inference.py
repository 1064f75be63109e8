"""What held-out predictions of many targets prove: intervals, p-values, and how many targets are above chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from featpipe.errors import RequestError
from featpipe.model_selection._bootstrap import ScoreIntervals, bootstrap_interval
from featpipe.model_selection._permutation import PermutationP, permutation_p

CORRECTIONS = ("bh", "by")


@dataclass(frozen=True)
class ResponseInference:
    """Uncertainty of the mean over folds of Pearson's r.

    Parameters
    ----------
    intervals : ScoreIntervals
    p : PermutationP
    q_values : ndarray of shape (n_targets,)
        p of the targets, corrected for their number: rejecting those up to q keeps the expected share of false
        discoveries at q.
    masks : mapping of str to array of bool, shape (n_targets,)
    n_bootstrap : int
    level : float
        Coverage of the intervals.
    q : float
        Rate of false discoveries at which targets are counted.
    correction : str
    """

    intervals: ScoreIntervals
    p: PermutationP
    q_values: np.ndarray
    masks: Mapping[str, np.ndarray]
    n_bootstrap: int
    level: float
    q: float
    correction: str

    @property
    def significant(self) -> np.ndarray:
        """Targets whose corrected p is at most q: ndarray of bool, shape (n_targets,)."""
        return self.q_values <= self.q

    def summary(self) -> dict[str, Any]:
        """Return what ``summary.json`` holds: numbers of all targets and of each group, no arrays of targets."""
        found, tested = self.significant, np.isfinite(self.q_values)
        return {
            "interval": {
                "metric": "pearson_r",
                "level": self.level,
                "n": self.n_bootstrap,
                "overall": _known(self.intervals.overall),
                "groups": {name: _known(ends) for name, ends in self.intervals.groups.items()},
            },
            "permutation": {
                "n": self.p.n_permutations,
                "method": self.p.method,
                "overall": _known([self.p.overall])[0],
                "groups": self.p.groups,
            },
            "significant": {
                "q": self.q,
                "correction": self.correction,
                "n_tested": int(tested.sum()),
                "overall": int(found.sum()),
                "groups": {name: int(found[mask].sum()) for name, mask in self.masks.items()},
            },
        }

    def table(self) -> pd.DataFrame:
        """Return a row per target: interval of r, p and corrected p."""
        low, high = self.intervals.targets.T
        return pd.DataFrame({"r_low": low, "r_high": high, "p": self.p.targets, "q": self.q_values})


def response_inference(
    y_true: Any,
    y_pred: Any,
    folds: Any = None,
    *,
    masks: Mapping[str, np.ndarray] | None = None,
    groups: Sequence | np.ndarray | None = None,
    n_bootstrap: int = 1000,
    n_permutations: int = 1000,
    level: float = 0.95,
    q: float = 0.05,
    correction: str = "bh",
    seed: int = 0,
    target_batch: int = 256,
) -> ResponseInference:
    """Put intervals and p-values to the mean over folds of Pearson's r of every target.

    Everything comes from held-out predictions, within folds. Arrays of intermediate results hold `target_batch`
    targets.

    Parameters
    ----------
    y_true : array of shape (n_stimuli, n_targets), or `Responses`
        NaN where a trial is missing.
    y_pred : array of shape (n_stimuli, n_targets)
        Held-out predictions, as ``evaluate(…, return_predictions=True)`` gives them.
    folds : sequence of (train, test), optional
        One fold of all rows by default.
    masks : mapping of str to array of bool, shape (n_targets,), optional
        Groups of targets.
    groups : array of shape (n_stimuli,), optional
        Stimuli that belong together, see `bootstrap_interval` and `permutation_p`.
    n_bootstrap, n_permutations : int
    level, q : float
    correction : {"bh", "by"}
        See `false_discovery`.
    seed : int
    target_batch : int

    Returns
    -------
    ResponseInference

    Raises
    ------
    RequestError
        Shapes, folds, masks or numbers do not fit.
    """
    if not 0 < q < 1:
        raise RequestError(f"q is {q}; a rate of false discoveries between 0 and 1 is needed, such as 0.05.")
    shared: dict[str, Any] = {"masks": masks, "groups": groups, "seed": seed, "target_batch": target_batch}
    p = permutation_p(y_true, y_pred, folds, n_permutations=n_permutations, **shared)
    q_values = false_discovery(p.targets, correction)
    intervals = bootstrap_interval(y_true, y_pred, folds, n_draws=n_bootstrap, level=level, **shared)
    return ResponseInference(intervals, p, q_values, masks or {}, n_bootstrap, level, q, correction)


def false_discovery(p, correction: str = "bh") -> np.ndarray:
    """Correct p-values for their number so that the rate of false discoveries is controlled.

    ``q_(i) = min_{j >= i} p_(j) · m / j``, of m p-values in ascending order; Benjamini and Yekutieli multiply by
    ``Σ_{j <= m} 1/j``.

    Parameters
    ----------
    p : array of any shape
        NaN stay NaN and are not counted.
    correction : {"bh", "by"}
        "bh" holds for independent targets and for those that depend on each other positively, as neighbouring
        vertices do; "by" under any dependence.

    Returns
    -------
    q : ndarray of the same shape
        In [0, 1]. Rejecting those of at most .05 keeps the expected share of false ones among them at .05.

    Raises
    ------
    RequestError
        An unknown correction, or values outside [0, 1].

    References
    ----------
    Benjamini & Hochberg (1995), J. R. Statist. Soc. B 57, section 3.1. Benjamini & Yekutieli (2001), Annals of
    Statistics 29, theorem 1.3.
    """
    p = np.asarray(p, dtype=np.float64)
    known = ~np.isnan(p)
    values = p[known]
    if correction not in CORRECTIONS or np.any((values < 0) | (values > 1)):
        raise RequestError(
            f"correction is {correction!r}, of p-values from {values.min(initial=1)} to {values.max(initial=0)}; "
            f"choose from {', '.join(CORRECTIONS)}, of p-values between 0 and 1."
        )
    order = np.argsort(values)
    ranks = np.arange(1, len(values) + 1)
    factor = np.sum(1 / ranks) if correction == "by" else 1.0
    steps = values[order] * factor * len(values) / ranks
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1.0, np.minimum.accumulate(steps[::-1])[::-1])
    found = np.full(p.shape, np.nan)
    found[known] = corrected
    return found


def _known(values: Sequence[float]) -> list[float | None]:
    """Return numbers as JSON can hold them, None for NaN, without digits that differ with the threads of BLAS."""
    return [round(float(value), 6) if np.isfinite(value) else None for value in values]
