"""Choosing and scoring models on stimuli they were not fitted on."""

from __future__ import annotations

from featpipe.model_selection._evaluate import evaluate
from featpipe.model_selection._evaluation import Evaluation
from featpipe.model_selection._final import fit_final
from featpipe.model_selection._scorers import get_metrics, get_scorer, mean_over_folds, score_targets
from featpipe.model_selection._splitters import SetKFold, make_cv, merge_groups

__all__ = [
    "Evaluation",
    "SetKFold",
    "evaluate",
    "fit_final",
    "get_metrics",
    "get_scorer",
    "make_cv",
    "mean_over_folds",
    "merge_groups",
    "score_targets",
]
