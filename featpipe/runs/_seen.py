"""Refuse to score images that the model was fitted on."""

from __future__ import annotations

import numpy as np

from featpipe.datasets import Dataset, RDMDataset
from featpipe.errors import RecipeError


def refuse_seen(dataset: Dataset | RDMDataset, seen: np.ndarray, run: str) -> None:
    if seen.any():
        raise RecipeError(
            f"{seen.sum()} of {dataset.n_stimuli} images were in the training set of {run}, first "
            f"{str(dataset.ids[seen][0])!r}: their score would say nothing. summary.json of the run has the "
            "cross-validated score; score new images, or data with a test split."
        )
