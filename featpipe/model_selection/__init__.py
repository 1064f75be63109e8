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
from featpipe.model_selection._bootstrap import ScoreIntervals, bootstrap_interval
from featpipe.model_selection._challenge_scores import (
    algonauts2021_score,
    algonauts2023_score,
    algonauts2023_vertex_scores,
    expected_noise_score,
)
from featpipe.model_selection._evaluate import evaluate
from featpipe.model_selection._evaluation import Evaluation
from featpipe.model_selection._final import fit_final
from featpipe.model_selection._gains import Gain, drawn_means, gain_of
from featpipe.model_selection._inference import ResponseInference, false_discovery, response_inference
from featpipe.model_selection._inside import estimators_in
from featpipe.model_selection._permutation import PermutationP, permutation_p
from featpipe.model_selection._scorers import get_metrics, get_scorer, mean_over_folds, score_targets
from featpipe.model_selection._splitters import SetKFold, make_cv, merge_groups
from featpipe.model_selection._variance_partitioning import (
    VariancePartition,
    partition_r2,
    partition_variance,
)

__all__ = [
    "Evaluation",
    "Gain",
    "PermutationP",
    "ResponseInference",
    "ScoreIntervals",
    "SetKFold",
    "VarianceComponents",
    "VariancePartition",
    "algonauts2021_score",
    "algonauts2023_score",
    "algonauts2023_vertex_scores",
    "bootstrap_interval",
    "checked_ceiling",
    "drawn_means",
    "estimators_in",
    "evaluate",
    "expected_noise_score",
    "false_discovery",
    "fit_final",
    "gain_of",
    "get_metrics",
    "get_scorer",
    "leave_one_subject_out_ceiling",
    "make_cv",
    "mean_over_folds",
    "merge_groups",
    "nsd_noise_ceiling",
    "partition_r2",
    "partition_variance",
    "permutation_p",
    "response_inference",
    "score_targets",
    "split_half_reliability",
    "variance_components",
]
