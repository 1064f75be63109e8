"""The stimuli that early stopping watches: held out from the training rows by seed, groups never divided."""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit

from featpipe.errors import RequestError
from featpipe.tuning._training import number


def hold_out(
    rows: np.ndarray, fraction: float, *, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return (rows to fit, rows to stop by), each ascending.

    Parameters
    ----------
    rows : ndarray of int
        Stimuli that take part.
    fraction : float
        Share of the stimuli, or of the groups, that is held out, rounded up; 0 holds out none.
    seed : int
    groups : ndarray of shape (len(rows),), optional
        Group of each of these stimuli.

    Raises
    ------
    RequestError
        There are too few stimuli or groups.
    """
    number("validation_fraction", fraction, least=0.0, below=1.0)
    if fraction == 0:
        return rows, None
    units, what = (len(rows), "stimuli") if groups is None else (len(np.unique(groups)), "groups")
    if units - int(np.ceil(fraction * units)) < 1:
        raise RequestError(
            f"Early stopping holds out {fraction:g} of {units} {what}, which leaves none to fit. Set "
            "validation_fraction=0 to train without it, or give more."
        )
    kind = ShuffleSplit if groups is None else GroupShuffleSplit
    split = kind(n_splits=1, test_size=float(fraction), random_state=seed).split(rows, groups=groups)
    train, test = next(split)
    return np.sort(rows[train]), np.sort(rows[test])
