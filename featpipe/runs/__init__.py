"""Run folders: fit a recipe on data, predict new images with it, score it. And layers compared with RDMs."""

from featpipe.runs._compare import CompareRequest, compare_layers
from featpipe.runs._comparison import ComparisonFolder, LayerComparison
from featpipe.runs._fit import FitRequest, fit, refuse_extraction
from featpipe.runs._fit_subjects import fit_subjects, subjects_summary
from featpipe.runs._folder import RunFolder
from featpipe.runs._predict import predict
from featpipe.runs._prediction_files import (
    FORMATS,
    RDM_FORMATS,
    check_format,
    read_predictions,
    write_predictions,
)
from featpipe.runs._score import score
from featpipe.runs._score_rdms import submit, write_predicted_rdms
from featpipe.runs._submit2023 import submit_algonauts2023

__all__ = [
    "FORMATS",
    "RDM_FORMATS",
    "CompareRequest",
    "ComparisonFolder",
    "FitRequest",
    "LayerComparison",
    "RunFolder",
    "check_format",
    "compare_layers",
    "fit",
    "fit_subjects",
    "predict",
    "read_predictions",
    "refuse_extraction",
    "score",
    "subjects_summary",
    "submit",
    "submit_algonauts2023",
    "write_predicted_rdms",
    "write_predictions",
]
