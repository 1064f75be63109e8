"""What reweighted RDMs are fitted to: one dissimilarity per pair, from all subjects and targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from sklearn.model_selection import check_cv

from featpipe.errors import RequestError
from featpipe.rsa._folds import stimulus_folds
from featpipe.rsa._rdms import RDMs, stimulus_sets

_FEWEST = 3  # stimuli of a set on either side of a split: fewer have no three pairs


def target_weights(y: RDMs, train_on: Any) -> dict[str, float]:
    """Return the weight of each target to fit to.

    Parameters
    ----------
    y : RDMs
    train_on : None, str, sequence of str or mapping of str to float
        All targets, or some, alike; or with weights.

    Raises
    ------
    RequestError
        A target that is not there, or weights that are not positive.
    """
    if train_on is None:
        return dict.fromkeys(y.target_names, 1.0)
    names = [train_on] if isinstance(train_on, str) else list(train_on)
    weights = (
        {name: float(train_on[name]) for name in names}
        if isinstance(train_on, Mapping)
        else dict.fromkeys(names, 1.0)
    )
    if not names or min(weights.values()) <= 0:
        raise RequestError(f"Targets to train on must be some, with weights > 0, got {train_on!r}.")
    if missing := [name for name in names if name not in y.target_names]:
        raise RequestError(
            f"train_on or select_on names the target {missing[0]!r}, but the RDMs to fit to hold "
            f"{', '.join(y.target_names)}. Pass RDMs of all targets, or change train_on."
        )
    return weights


def pair_targets(y: RDMs, weights: Mapping[str, float], normalisation: str) -> np.ndarray:
    """Return the weighted mean over targets of normalised dissimilarities, averaged over subjects and times.

    Every RDM is ranked or not, then standardised, within each stimulus set. For a squared loss, the mean over
    subjects has the same solution as all subjects at once.

    Parameters
    ----------
    y : RDMs
        Of one stimulus set.
    weights : mapping of str to float
    normalisation : {"rank", "zscore"}

    Returns
    -------
    target : ndarray of shape (n_pairs,)
        As in `RDMs.upper`; NaN where no subject has the pair.
    """
    total = np.zeros(y.n_pairs)
    weight = np.zeros(y.n_pairs)
    for name, own in weights.items():
        part = y.select(targets=[name])
        vectors = (part.rank() if normalisation == "rank" else part).zscore().upper()
        known = ~np.isnan(vectors)
        counts = known.sum(axis=0)
        mean = np.where(known, vectors, 0).sum(axis=0) / np.maximum(counts, 1)
        total += own * mean
        weight += own * (counts > 0)
    return np.divide(total, weight, out=np.full(len(total), np.nan), where=weight > 0)


def inner_folds(
    ids: np.ndarray, cv: Any, repeats: int, random_state: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows to fit, rows to score), whole stimuli.

    Parameters
    ----------
    ids : ndarray of str, shape (n_stimuli,)
    cv : int, "set", splitter or iterable of (train, test)
        An int deals out the same share of each stimulus set to every fold; "set" leaves one set out.
    repeats : int
        How often an int deals them out anew.
    random_state : int

    Raises
    ------
    RequestError
        More folds than a set has triples of stimuli, or one set to leave out.
    """
    if isinstance(cv, str) and cv == "set":
        yield from _leave_one_set_out(ids)
    elif isinstance(cv, int | np.integer):
        yield from _stratified(ids, int(cv), repeats, random_state)
    else:
        yield from check_cv(cv).split(ids)


def _leave_one_set_out(ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    sets = stimulus_sets(ids)
    names = np.unique(sets)
    if len(names) < 2:
        raise RequestError(
            f"cv='set' leaves one stimulus set out, and there is only {str(names[0])!r}; set cv to a number of folds."
        )
    for name in names:
        yield np.flatnonzero(sets != name), np.flatnonzero(sets == name)


def _stratified(
    ids: np.ndarray, n_folds: int, repeats: int, random_state: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    names = np.unique(ids)
    fewest = int(np.unique(stimulus_sets(names), return_counts=True)[1].min())
    if n_folds < 2 or fewest < _FEWEST * n_folds:
        raise RequestError(
            f"cv is {n_folds}; the smallest stimulus set has {fewest} stimuli, and a fold needs {_FEWEST} of each. "
            "Use 2 folds or more, each with enough stimuli, or give one alpha, which needs no search."
        )
    rng = np.random.default_rng(random_state)
    for _ in range(repeats):
        for out in stimulus_folds(ids, n_folds, rng):
            yield np.setdiff1d(np.arange(len(ids)), out), out


def as_names(value: Any) -> tuple[str, ...]:
    """Return one name or several as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)
