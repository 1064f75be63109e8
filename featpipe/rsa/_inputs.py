"""What estimators that are fitted to RDMs take."""

from __future__ import annotations

from typing import Any

import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.rsa._rdms import RDMs


def check_blocks(X: Any, name: str) -> None:
    """Refuse what is not LayerBlocks; raises `RequestError` naming the estimator."""
    if not isinstance(X, LayerBlocks):
        raise RequestError(
            f"{name} needs LayerBlocks, got {type(X).__name__}; use CachedFeatures(output='blocks')."
        )


def check_input(X: Any, y: Any, name: str, *, hint: str = "") -> None:
    """Refuse what is not LayerBlocks and RDMs of the same stimuli.

    Parameters
    ----------
    X : LayerBlocks
    y : RDMs
    name : str
        The estimator.
    hint : str
        What to do where y are no RDMs.

    Raises
    ------
    RequestError
    """
    check_blocks(X, name)
    if not isinstance(y, RDMs):
        raise RequestError(f"{name} is fitted to RDMs, got {type(y).__name__}{hint and '; ' + hint}.")
    if not np.array_equal(X.ids.astype(str), y.ids):
        raise RequestError(
            f"The features are of {len(X)} stimuli, first {X.ids[:1].tolist()}, and the RDMs of {len(y)}, first "
            f"{y.ids[:1].tolist()}; they must be the same ids in the same order. RDMs.take(ids) selects by id."
        )
