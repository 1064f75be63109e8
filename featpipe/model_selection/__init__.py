"""Choosing and scoring models on stimuli they were not fitted on."""

from __future__ import annotations

from featpipe.ceilings import (
    VarianceComponents,
    checked_ceiling,
    leave_one_subject_out_ceiling,
    nsd_noise_ceiling,
    split_half_reliability,
    variance_components,
)
from featpipe.model_selection._challenge_scores import (
    algonauts2021_score,
    algonauts2023_score,
    algonauts2023_vertex_scores,
    expected_noise_score,
)
from featpipe.model_selection._evaluate import evaluate
from featpipe.model_selection._evaluation import Evaluation
from featpipe.model_selection._final import fit_final
from featpipe.model_selection._scorers import get_metrics, get_scorer, mean_over_folds, score_targets
from featpipe.model_selection._splitters import SetKFold, make_cv, merge_groups

__all__ = [
    "Evaluation",
    "SetKFold",
    "VarianceComponents",
    "algonauts2021_score",
    "algonauts2023_score",
    "algonauts2023_vertex_scores",
    "checked_ceiling",
    "evaluate",
    "expected_noise_score",
    "fit_final",
    "get_metrics",
    "get_scorer",
    "leave_one_subject_out_ceiling",
    "make_cv",
    "mean_over_folds",
    "merge_groups",
    "nsd_noise_ceiling",
    "score_targets",
    "split_half_reliability",
    "variance_components",
]
