"""What `RidgeEncoder` asks for when it searches penalties: by folds or in closed form, per target or per group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.encoding._folds import present_splits
from featpipe.encoding.ridge._closed_form import closed_form_fit, closed_form_scores
from featpipe.encoding.ridge._fold_search import Fitted, fit_by_folds, fold_scores
from featpipe.encoding.ridge._gram import GramStatistics
from featpipe.encoding.ridge._ridge import Split


@dataclass(frozen=True)
class Search:
    """A search of penalties.

    Parameters
    ----------
    alphas : ndarray of shape (n_alphas,)
    splits : sequence of (rows to fit, rows to score), or "loo" or "gcv"
    scoring : {"r2", "pearson_r"}
    precision : {"exact", "reduced"}
    target_batch : int
    """

    alphas: np.ndarray
    splits: Sequence[Split] | str
    scoring: str
    precision: str
    target_batch: int

    def fit(
        self, gram: GramStatistics, Y: Any, rows: np.ndarray, targets: np.ndarray, *, consume: bool = False
    ) -> Fitted:
        """Choose a penalty per target and solve: alpha, score, coef, intercept of targets that have `rows`."""
        common: dict[str, Any] = {"scoring": self.scoring, "target_batch": self.target_batch}
        if isinstance(self.splits, str):
            subset = gram.decompose(rows, consume=consume)
            return closed_form_fit(subset, Y, self.alphas, method=self.splits, **common)
        splits = present_splits(self.splits, rows, targets)
        return fit_by_folds(
            gram, Y, self.alphas, splits, rows=rows, precision=self.precision, consume=consume, **common
        )

    def scores(self, gram: GramStatistics, Y: Any, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Score every penalty for targets that have `rows`: ndarray of shape (n_alphas, n_targets)."""
        common: dict[str, Any] = {"scoring": self.scoring, "target_batch": self.target_batch}
        if isinstance(self.splits, str):
            return closed_form_scores(gram.decompose(rows), Y, self.alphas, method=self.splits, **common)
        splits = present_splits(self.splits, rows, targets)
        return fold_scores(gram, Y, self.alphas, splits, rows=rows, **common)
