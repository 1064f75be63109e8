"""Folds of stimuli for what is chosen inside a fit."""

from __future__ import annotations

import numpy as np

from featpipe.errors import RequestError
from featpipe.rsa._rdms import stimulus_sets


def stimulus_folds(ids: np.ndarray, n_folds: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the rows of each fold: every stimulus once, the same share of each set, repeats together.

    Raises
    ------
    RequestError
        Fewer than two folds, or more than stimuli.
    """
    names = np.unique(ids)
    if not 2 <= n_folds <= len(names):
        raise RequestError(
            f"{len(names)} stimuli cannot be dealt out to {n_folds!r} folds; choose from 2 to {len(names)}."
        )
    shuffled = rng.permutation(names)
    shuffled = shuffled[np.argsort(stimulus_sets(shuffled), kind="stable")]  # dealt out set by set
    return [np.flatnonzero(np.isin(ids, shuffled[start::n_folds])) for start in range(n_folds)]
