"""The folds of a search inside `fit`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import GroupKFold, KFold, check_cv

from featpipe.encoding.ridge._ridge import Split
from featpipe.errors import RequestError

CLOSED_FORMS = ("loo", "gcv")
HELD_OUT = "held-out"


def held_out_split(X) -> Split | None:
    """Return (rows that layers were tuned to, rows that they were not), None of layers that know no responses."""
    held_out = getattr(X, "held_out", None)
    if held_out is None:
        return None
    out = np.isin(X.ids, held_out)
    return np.flatnonzero(~out), np.flatnonzero(out)


def inner_splits(cv, X, y, groups, tuned: Split | None = None) -> list[Split]:
    """Return the folds of a search as (rows to fit, rows to score); an int shuffles, or respects groups.

    "held-out" is one fold, `tuned`: stimuli that the features were tuned to, and those that they were not.
    """
    if isinstance(cv, str) and cv == HELD_OUT:
        return [_check_tuned(tuned)]
    if isinstance(cv, int | np.integer):
        if cv < 2:
            raise RequestError(
                f"cv is {cv}; a search needs at least 2 folds. Set cv to a number from 2, or give alpha."
            )
        if len(X) < cv:
            raise RequestError(
                f"{cv} folds need at least {cv} stimuli, got {len(X)}. Set a smaller cv, or give alpha."
            )
        if groups is not None and (n_groups := len(np.unique(groups))) < cv:
            raise RequestError(
                f"{cv} folds need at least {cv} groups, got {n_groups} in this training set. Set a smaller cv, or "
                "give alpha."
            )
        cv = KFold(cv, shuffle=True, random_state=0) if groups is None else GroupKFold(cv)
    elif isinstance(cv, str | float) or (isinstance(cv, list) and not all(map(_is_split, cv))):
        raise RequestError(
            f"cv must be a number of folds, a splitter, a list of folds, 'loo', 'gcv' or 'held-out', got {cv!r}."
        )
    return list(check_cv(cv).split(X, y, groups))


def _check_tuned(tuned: Split | None) -> Split:
    if tuned is None:
        raise RequestError(
            "cv='held-out' chooses on stimuli that a tuner held out, and these features come from none. Set cv to a "
            "number of folds, or output='blocks' and cross_fit=None in the tuner."
        )
    if min(map(len, tuned)) < 2:
        raise RequestError(
            f"cv='held-out' chooses on stimuli that the tuner held out: {len(tuned[1])} of {sum(map(len, tuned))}. At "
            "least two are needed, and two others to fit: set validation_fraction in the tuner, and no "
            "validation_folds."
        )
    return tuned


def _is_split(fold) -> bool:
    return isinstance(fold, Sequence | np.ndarray) and len(fold) == 2


def present_splits(splits: Sequence[Split], rows: np.ndarray, targets: np.ndarray) -> list[Split]:
    """Restrict folds to the stimuli that targets have; folds that cannot be scored are left out."""
    kept = [(train[np.isin(train, rows)], test[np.isin(test, rows)]) for train, test in splits]
    folds = [(train, test) for train, test in kept if len(train) > 1 and len(test) > 1]
    if not folds:
        raise RequestError(
            f"No inner fold has two stimuli to fit and two to score for target {targets[0]}, which has "
            f"{len(rows)} responses of weight > 0. Use a cv with fewer folds, or give alpha."
        )
    return folds


def check_enough(rows: np.ndarray, targets: np.ndarray) -> None:
    """Raise `RequestError` where targets have fewer than two responses that count."""
    if len(rows) < 2:
        raise RequestError(
            f"Target {targets[0]}{' and others' * (len(targets) > 1)} has {len(rows)} responses that are not "
            "NaN and have weight > 0; at least 2 are needed. Leave such targets out."
        )


def check_single(cv: str, groups) -> None:
    """Raise `RequestError` where stimuli have to be left out in groups, which closed forms do not."""
    if groups is not None and len(np.unique(groups)) < len(groups):
        raise RequestError(
            f"cv={cv!r} leaves out single stimuli, but {len(groups)} stimuli are in {len(np.unique(groups))} groups "
            "that must not be split. Set cv to a number of folds."
        )
