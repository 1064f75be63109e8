"""`Evaluation`: what cross-validation found, per fold and target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from featpipe.errors import RequestError
from featpipe.model_selection._scorers import mean_over_folds


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """Scores on held-out stimuli.

    Parameters
    ----------
    scores : dict of str to ndarray of shape (n_folds, n_targets)
        By metric; NaN where a fold holds fewer than two responses of a target. Such folds are left out of means.
    target_names : tuple of length n_targets
    test_ids : tuple of ndarray
        Ids (or row numbers, where X was a matrix) that each fold scored.
    pooled_r : ndarray of shape (n_targets,), optional
        Pearson's r over all held-out stimuli at once. It also rewards what differs between folds, so it
        is not the mean of the folds' r, and has its own name.
    constant_predictions, constant_responses : ndarray of int, shape (n_folds,)
        Targets whose prediction or response did not vary over a fold; they score 0 there.
    predictions : ndarray of shape (n_stimuli, n_targets), optional
        Held-out predictions; NaN for stimuli that no fold scored.
    estimators : tuple of estimators, optional
        The pipeline as fitted in each fold.
    chosen : tuple of dict, optional
        The parameters that a search chose inside each fold's training set.
    """

    scores: dict[str, np.ndarray]
    target_names: tuple[Any, ...]
    test_ids: tuple[np.ndarray, ...]
    constant_predictions: np.ndarray
    constant_responses: np.ndarray
    pooled_r: np.ndarray | None = None
    predictions: Any = None
    estimators: tuple[Any, ...] | None = field(default=None, repr=False)
    chosen: tuple[dict[str, Any], ...] | None = None

    def __repr__(self) -> str:
        means = ", ".join(f"{metric} {self.overall(metric):.4f}" for metric in self.scores)
        return f"Evaluation({self.n_folds} folds, {len(self.target_names)} targets; {means})"

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return len(self.test_ids)

    def fold_scores(self, metric: str) -> np.ndarray:
        """Return the scores of a metric: ndarray of shape (n_folds, n_targets)."""
        if metric not in self.scores:
            raise RequestError(f"Metric {metric!r} was not computed, only {', '.join(self.scores)}.")
        return self.scores[metric]

    def mean(self) -> pd.DataFrame:
        """Return the mean over folds: one row per target, one column per metric."""
        means = {metric: mean_over_folds(values) for metric, values in self.scores.items()}
        return pd.DataFrame(means, index=pd.Index(self.target_names, name="target"))

    def overall(self, metric: str) -> float:
        """Return the mean over targets of the mean over folds; NaN where no fold holds two responses of a target."""
        means = mean_over_folds(self.fold_scores(metric))
        return float(means[~np.isnan(means)].mean()) if not np.isnan(means).all() else np.nan

    def to_frame(self) -> pd.DataFrame:
        """Return a tidy table with columns target, fold, metric, value."""
        tables = [
            pd.DataFrame(
                {
                    "target": np.tile(np.asarray(self.target_names, dtype=object), self.n_folds),
                    "fold": np.repeat(np.arange(self.n_folds), len(self.target_names)),
                    "metric": metric,
                    "value": values.ravel(),
                }
            )
            for metric, values in self.scores.items()
        ]
        return pd.concat(tables, ignore_index=True)
