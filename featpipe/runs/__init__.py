"""Run folders: fit a recipe on data, predict new images with it, score it."""

from featpipe.runs._fit import FitRequest, fit
from featpipe.runs._folder import RunFolder
from featpipe.runs._predict import check_format, predict, read_predictions, write_predictions
from featpipe.runs._score import score

__all__ = [
    "FitRequest",
    "RunFolder",
    "check_format",
    "fit",
    "predict",
    "read_predictions",
    "score",
    "write_predictions",
]
