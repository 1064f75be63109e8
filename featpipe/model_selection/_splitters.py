"""Folds over stimuli: what may not be separated, and how a request names them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut, StratifiedKFold

from featpipe.errors import RequestError
from featpipe.rsa import stimulus_sets

_FEW_STIMULI = 20  # of one set in a fold: below, the ρ² of noise is no longer small against a ceiling


class SetKFold:
    """K folds over stimuli that hold the same share of every stimulus set.

    Sets are read from ids written ``SET/NAME``. Stimuli are shuffled, because sets come in the order of
    their categories.

    Parameters
    ----------
    n_splits : int
    random_state : int
        Seed of the shuffle.

    Warns
    -----
    UserWarning
        When a fold holds fewer than 20 stimuli of a set: a score over so few pairs is mostly noise.
    """

    def __init__(self, n_splits: int = 5, *, random_state: int = 0) -> None:
        self.n_splits = n_splits
        self.random_state = random_state

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds."""
        return self.n_splits

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (train, test) rows.

        Parameters
        ----------
        X : array of str, shape (n_stimuli,), or LayerBlocks
            Ids; where X has none, those of `y`, which then are `RDMs`.
        y, groups : ignored otherwise
        """
        sets = stimulus_sets(_ids_of(X, y))
        counts = np.unique(sets, return_counts=True)[1]
        if not 2 <= self.n_splits <= counts.min():
            raise RequestError(
                f"{self.n_splits} folds cannot be made of stimulus sets of {', '.join(map(str, counts))} stimuli; "
                f"choose from 2 to {counts.min()}."
            )
        if (fewest := counts.min() // self.n_splits) < _FEW_STIMULI:
            warnings.warn(
                f"With {self.n_splits} folds one stimulus set has only {fewest} stimuli in a fold. Their RDM has "
                f"{fewest * (fewest - 1) // 2} pairs and its score is mostly noise; choose fewer folds, or cv='set'.",
                UserWarning,
                stacklevel=2,
            )
        folds = StratifiedKFold(self.n_splits, shuffle=True, random_state=self.random_state)
        yield from folds.split(np.empty(len(sets)), sets)

    def __repr__(self) -> str:
        return f"SetKFold({self.n_splits}, random_state={self.random_state})"


def _ids_of(X: Any, y: Any) -> np.ndarray:
    for source in (X, y):
        if source is not None and hasattr(source, "ids"):
            return np.asarray(source.ids)
    ids = np.asarray(X)
    if ids.ndim != 1 or ids.dtype.kind not in "UO":
        raise RequestError(
            "Folds by stimulus set need stimulus ids, as X or in a target of RDMs; X here has shape "
            f"{ids.shape} and dtype {ids.dtype}."
        )
    return ids


def merge_groups(groups: Sequence | np.ndarray | None, digests: Sequence[str] | np.ndarray) -> np.ndarray:
    """Join groups that share an image, so that no image is on both sides of a fold.

    Parameters
    ----------
    groups : sequence of length n_stimuli, optional
        Groups of the user, such as concepts or sessions; without them each stimulus is its own.
    digests : sequence of str, length n_stimuli
        Digest of each stimulus' image.

    Returns
    -------
    merged : ndarray of int, shape (n_stimuli,)
        Numbered from 0 in the order of first appearance. Two stimuli have one number if a chain of equal
        groups and equal images leads from one to the other.
    """
    labels = list(range(len(digests))) if groups is None else np.asarray(groups).tolist()
    if len(labels) != len(digests):
        raise RequestError(
            f"There are {len(labels)} groups for {len(digests)} image digests; give one of each per stimulus."
        )
    parent: dict[Any, Any] = {}
    for label, digest in zip(labels, digests, strict=True):
        parent[_root(parent, ("group", label))] = _root(parent, ("image", digest))
    roots = [_root(parent, ("group", label)) for label in labels]
    number = {root: position for position, root in enumerate(dict.fromkeys(roots))}
    return np.array([number[root] for root in roots], dtype=np.intp)


def _root(parent: dict[Any, Any], node: Any) -> Any:
    """Return the representative of a node, halving the path to it."""
    while parent.setdefault(node, node) != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


def make_cv(spec, n_stimuli: int, *, groups=None, splits=None, ids=None, by_set: bool = False):
    """Turn a request such as ``--cv 5`` into folds.

    Parameters
    ----------
    spec : int, {"group", "splits", "set"}, splitter or iterable
        A number of folds, shuffled with a fixed seed, which respect `groups` where given; ``group`` leaves
        one group out at a time; ``splits`` fits "train" and scores "test" (other labels take no part);
        ``set`` leaves out one stimulus set at a time, by ids written ``SET/NAME``. Anything else is
        returned as it is. A number may be given as text.
    n_stimuli : int
    groups, splits : array of shape (n_stimuli,), optional
    ids : array of str, shape (n_stimuli,), optional
    by_set : bool
        Give each of a number of folds its share of every stimulus set, as RDMs need it, see `SetKFold`.

    Returns
    -------
    cv : splitter or list of (train, test)
    """
    if isinstance(spec, str) and spec.isdecimal():
        spec = int(spec)
    if isinstance(spec, int | np.integer) and by_set and groups is None:
        return SetKFold(int(spec))
    if isinstance(spec, int | np.integer):
        return _folds(int(spec), n_stimuli, groups)
    if not isinstance(spec, str):
        return spec
    if spec == "splits":
        return [_train_test(splits)]
    if spec == "set":
        return _leave_one_out(_sets(ids), "stimulus set")
    if spec == "group":
        return _leave_one_out(groups, "group")
    raise RequestError(f"Unknown folds {spec!r}; choose a number of folds, group, splits or set.")


def _folds(n_folds: int, n_stimuli: int, groups):
    n_units = n_stimuli if groups is None else len(np.unique(np.asarray(groups)))
    if not 2 <= n_folds <= n_units:
        what = "stimuli" if groups is None else "groups"
        right = f"choose from 2 to {n_units}" if n_units > 1 else "at least 2 are needed"
        raise RequestError(f"{n_folds} folds cannot be made of {n_units} {what}; {right}.")
    return KFold(n_folds, shuffle=True, random_state=0) if groups is None else GroupKFold(n_folds)


def _train_test(splits) -> tuple[np.ndarray, np.ndarray]:
    labels = np.asarray([] if splits is None else splits)
    train, test = np.flatnonzero(labels == "train"), np.flatnonzero(labels == "test")
    if not len(train) or not len(test):
        found = ", ".join(map(repr, np.unique(labels))) or "none"
        raise RequestError(
            f"Folds 'splits' need stimuli labelled 'train' and 'test'; labels here: {found}. "
            "Give a column `split` in splits.csv, or choose another number of folds."
        )
    return train, test


def _sets(ids) -> np.ndarray:
    names = np.asarray([] if ids is None else ids).astype(str)
    if bad := [name for name in names if "/" not in name]:
        raise RequestError(
            f"Folds 'set' need ids written SET/NAME, got {str(bad[0])!r}. Join sets under such ids, or choose "
            "a number of folds: cv=5, or --cv 5."
        )
    return np.array([name.partition("/")[0] for name in names])


def _leave_one_out(labels, what: str) -> list[tuple[np.ndarray, np.ndarray]]:
    found = np.unique(np.asarray([] if labels is None else labels))
    if len(found) < 2:
        raise RequestError(
            f"Leaving one {what} out needs at least two of them, got {len(found)}. Choose a number of folds: "
            "cv=5, or --cv 5."
        )
    return list(LeaveOneGroupOut().split(np.empty(len(labels)), groups=np.asarray(labels)))
