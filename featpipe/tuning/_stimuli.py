"""Ids, and the images behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featpipe.datasets import is_data, load_stimuli
from featpipe.errors import RequestError
from featpipe.features._cached import as_ids
from featpipe.stimuli import StimulusSet

__all__ = ["as_ids", "open_stimuli"]


def open_stimuli(stimuli: Any) -> StimulusSet:
    """Return the images that a tuner's `stimuli` names.

    Raises
    ------
    RequestError
        It names none.
    """
    if isinstance(stimuli, StimulusSet):
        return stimuli
    if not isinstance(stimuli, str | Path):
        raise RequestError(
            f"A tuner needs the images behind the ids, and stimuli is {stimuli!r}. Set it to a StimulusSet, a source "
            "of images such as a folder, or DATA such as 'algonauts2019:DIR'."
        )
    return load_stimuli(str(stimuli)) if is_data(str(stimuli)) else StimulusSet.from_source(stimuli)
