"""Features of a network that was tuned to the very stimuli that would be scored."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.errors import RecipeError
from featpipe.features import arrays_meant, parts_of
from featpipe.models import tuned_on
from featpipe.runs._record import AnyDataset
from featpipe.runs._tasks import Folds

_LOCAL = "local:"


def refuse_tuned_features(features: Any, asked: Any, dataset: AnyDataset, folds: Folds) -> None:
    """Refuse to score stimuli whose images a network was tuned on, wherever its features were cached.

    Parameters
    ----------
    features : CachedFeatures or JoinedFeatures
        Not fitted: a search may choose among layers.
    asked : CachedFeatures or JoinedFeatures
        The same as the recipe has it, which may name a checkpoint.
    dataset : Dataset or RDMDataset
    folds : list of (train, test)

    Raises
    ------
    RecipeError
        Some held-out stimulus was in the tuning.

    Warns
    -----
    UserWarning
        Features come from a checkpoint that is not there any more, so that nobody can tell.
    """
    scored = np.unique(dataset.digests[np.unique(np.concatenate([test for _, test in folds]))])
    for (_, part), (_, named) in zip(parts_of(features), parts_of(asked), strict=True):
        checkpoints = _checkpoints(part, named)
        there = [checkpoint for checkpoint in checkpoints if checkpoint.exists()]
        if checkpoints and not there:
            warnings.warn(
                f"These features come from {checkpoints[0]}, which is not there: if it is a tuned network, nobody can "
                "tell whether it was tuned on the stimuli that are scored here.",
                UserWarning,
                stacklevel=2,
            )
        for checkpoint in there:
            seen = np.isin(scored, list(tuned_on(checkpoint)))
            if seen.any():
                raise RecipeError(
                    f"{checkpoint} was tuned on {seen.sum()} of the {len(scored)} images that would be scored, so that "
                    "scores would be too good. Score the tuner's own run, whose folds tune anew; or tune on a training "
                    "split, or on other data, and take these features for stimuli that it has not seen."
                )


def _checkpoints(part: Any, named: Any) -> list[Path]:
    """Return the checkpoints that a part's features are of: as they were asked for, and as provenance has them."""
    asked = [named.model or ""]
    for array in arrays_meant(part):
        asked.append(array.provenance.get("model_asked") or "")
    paths = [name.removeprefix(_LOCAL) for name in asked if name.startswith(_LOCAL)]
    return [Path(path) for path in dict.fromkeys(paths)]
