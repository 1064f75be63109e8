"""Which stimuli stop a training, and which folds give rows that a network was not tuned on."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from featpipe.errors import RequestError
from featpipe.rsa import stimulus_sets
from featpipe.tuning._held_out import hold_out


def held_out_of_each_set(
    ids: np.ndarray, fraction: float, *, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return (rows to fit, rows to stop by), ascending: the same share of every stimulus set, repeats together.

    Parameters
    ----------
    ids : ndarray of str, shape (n_stimuli,)
        ``SET/NAME`` where stimulus sets are joined.
    fraction : float
        0 holds out none.
    seed : int
    groups : array of shape (n_stimuli,), optional
        Never divided.

    Raises
    ------
    RequestError
        Too few stimuli or groups in a set.
    """
    groups = ids if groups is None else np.asarray(groups)
    sets = stimulus_sets(ids)
    parts = []
    for name in np.unique(sets):
        own = np.flatnonzero(sets == name)
        parts.append(hold_out(own, fraction, seed=seed, groups=groups[own]))
    stopping = [part[1] for part in parts if part[1] is not None]
    if not stopping:
        return np.arange(len(ids)), None
    held_out = np.isin(groups, groups[np.concatenate(stopping)])  # a group may have stimuli in several sets
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def dealt_out(
    ids: np.ndarray, n_folds: Any, *, seed: int, groups: np.ndarray | None = None, name: str = "cross_fit"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (train, test) rows of folds that hold the same share of every stimulus set, repeats and groups together.

    Raises
    ------
    RequestError
        Fewer than two folds, or more than there are stimuli or groups.
    """
    groups = ids if groups is None else np.asarray(groups)
    sets = stimulus_sets(ids)
    fewest = min(len(np.unique(groups[sets == own])) for own in np.unique(sets))
    if isinstance(n_folds, bool) or not isinstance(n_folds, Integral) or not 2 <= int(n_folds) <= fewest:
        raise RequestError(
            f"{name} is {n_folds!r}, and a stimulus set has {fewest} different stimuli or groups; choose from 2 to "
            f"{fewest}."
        )
    folds = StratifiedGroupKFold(int(n_folds), shuffle=True, random_state=seed)
    return list(folds.split(ids, sets, groups))
