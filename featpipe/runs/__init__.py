"""Run folders: fit a recipe on data, predict new images with it, score it. And layers, and runs, compared."""

from featpipe.runs._compare import CompareRequest, compare_layers
from featpipe.runs._comparison import ComparisonFolder, LayerComparison
from featpipe.runs._fit import FitRequest, fit, refuse_extraction
from featpipe.runs._fit_subjects import fit_subjects, subjects_summary
from featpipe.runs._folder import RunFolder
from featpipe.runs._gains import GainRow, compare_runs, gains_table, kind_of
from featpipe.runs._predict import predict
from featpipe.runs._prediction_files import (
    FORMATS,
    RDM_FORMATS,
    check_format,
    read_predictions,
    write_predictions,
)
from featpipe.runs._retention import Retention, retention
from featpipe.runs._score import score
from featpipe.runs._score_rdms import submit, write_predicted_rdms
from featpipe.runs._submit2023 import submit_algonauts2023

__all__ = [
    "FORMATS",
    "RDM_FORMATS",
    "CompareRequest",
    "ComparisonFolder",
    "FitRequest",
    "GainRow",
    "LayerComparison",
    "Retention",
    "RunFolder",
    "check_format",
    "compare_layers",
    "compare_runs",
    "fit",
    "fit_subjects",
    "gains_table",
    "kind_of",
    "predict",
    "read_predictions",
    "refuse_extraction",
    "retention",
    "score",
    "subjects_summary",
    "submit",
    "submit_algonauts2023",
    "write_predicted_rdms",
    "write_predictions",
]
