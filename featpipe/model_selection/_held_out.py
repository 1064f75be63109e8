"""Held-out responses and predictions, fold by fold and a few targets at a time, ready to be correlated again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.errors import RequestError
from featpipe.metrics import moments

_READ_TARGETS = 4096  # columns read at a time: a file is read by rows, so that a few columns cost as much


@dataclass(frozen=True)
class FoldValues:
    """One fold of some targets, in units in which r is a sum of products.

    Parameters
    ----------
    y : ndarray of shape (n_test, n_batch), float32
        Responses about their mean, divided by their norm; 0 where missing, and where all are equal.
    p : ndarray of shape (n_test, n_batch), float32
        Predictions likewise, over all stimuli of the fold.
    seen : ndarray of bool, shape (n_test, n_batch), or None
        Which responses are there; None where all are.
    measured : ndarray of bool, shape (n_batch,)
        Targets with at least two responses; the others have no score in this fold.
    """

    y: np.ndarray
    p: np.ndarray
    seen: np.ndarray | None
    measured: np.ndarray


@dataclass(frozen=True)
class HeldOut:
    """Responses and their held-out predictions.

    Parameters
    ----------
    y_true : array of shape (n_stimuli, n_targets) or (n_stimuli,), or `Responses`
        NaN where a trial is missing.
    y_pred : array of the same shape
        Finite in all rows that a fold scores.
    tests : sequence of array of int
        The rows that each fold scores.
    """

    y_true: Any
    y_pred: Any
    tests: Sequence[np.ndarray]

    @classmethod
    def of(cls, y_true: Any, y_pred: Any, folds: Any = None) -> HeldOut:
        """Check shapes and folds, ``[(train, test), …]``; one fold of all rows by default.

        Folds of one stimulus are left out.

        Raises
        ------
        RequestError
            Shapes differ, no fold scores two rows, or a row is in two folds.
        """
        if y_true.ndim == 1:
            y_true, y_pred = y_true.reshape(-1, 1), np.reshape(y_pred, (-1, 1))
        if y_true.shape != np.shape(y_pred) or y_true.ndim != 2 or 0 in y_true.shape:
            raise RequestError(
                f"Responses have shape {y_true.shape} and predictions {np.shape(y_pred)}; both must be "
                "(n_stimuli, n_targets) of the same stimuli and targets."
            )
        every = [np.arange(len(y_true))] if folds is None else [np.asarray(test) for _, test in folds]
        tests = [test for test in every if len(test) > 1]  # one stimulus has no correlation
        scored = np.concatenate(tests) if tests else np.empty(0, dtype=int)
        if not tests or len(np.unique(scored)) < len(scored):
            raise RequestError(
                f"The folds score {[len(test) for test in every]} stimuli, {len(np.unique(scored))} different ones. "
                "Give (train, test) pairs that score each stimulus at most once, and at least two at a time."
            )
        return cls(y_true, y_pred, tests)

    @property
    def n_targets(self) -> int:
        """Number of targets."""
        return int(self.y_true.shape[1])

    def batches(self, target_batch: int) -> Iterator[tuple[slice, list[FoldValues]]]:
        """Yield (slice of targets, their folds)."""
        for start in range(0, self.n_targets, _READ_TARGETS):
            block = slice(start, min(start + _READ_TARGETS, self.n_targets))
            y, p = np.asarray(self.y_true[:, block]), np.asarray(self.y_pred[:, block])
            for first in range(0, y.shape[1], target_batch):
                part = slice(first, min(first + target_batch, y.shape[1]))
                folds = [_fold_values(y[test, part], p[test, part]) for test in self.tests]
                yield slice(start + part.start, start + part.stop), folds


class GroupMeans:
    """Means over all targets and over named groups of them, of values that come a few targets at a time.

    Parameters
    ----------
    masks : mapping of str to array of bool, shape (n_targets,)
    n_targets : int
    n_draws : int
    """

    def __init__(self, masks: Mapping[str, np.ndarray] | None, n_targets: int, n_draws: int) -> None:
        masks = masks or {}
        for name, mask in masks.items():
            if np.asarray(mask).dtype != bool or np.shape(mask) != (n_targets,):
                raise RequestError(
                    f"Group {name!r} is {np.asarray(mask).dtype} of shape {np.shape(mask)}; bool of shape "
                    f"({n_targets},) is needed, one entry a target."
                )
        self.names = list(masks)
        self._members = np.array([np.ones(n_targets, dtype=bool), *masks.values()])
        self._sums = np.zeros((n_draws, len(self._members)))
        self._counts = np.zeros(len(self._members), dtype=int)

    def add(self, part: slice, values: np.ndarray, known: np.ndarray) -> None:
        """Count some targets: values of shape (n_draws, n_batch), of which ``known`` (n_batch,) have a score."""
        members = self._members[:, part] & known
        self._sums += values @ members.T.astype(values.dtype)
        self._counts += members.sum(axis=1)

    def means(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the draws of the mean over all targets, and of each group that has a score."""
        mean = np.divide(
            self._sums, self._counts, out=np.full_like(self._sums, np.nan), where=self._counts > 0
        )
        return mean[:, 0], {
            name: mean[:, 1 + number] for number, name in enumerate(self.names) if self._counts[1 + number]
        }


def groups_in(test: np.ndarray, groups: np.ndarray | None) -> np.ndarray | None:
    """Return the groups of a fold; None where there are none, or one, whose level no correlation within it sees."""
    if groups is None or len(np.unique(groups[test])) < 2:
        return None
    return groups[test]


def number_of_scores(folds: Sequence[FoldValues]) -> np.ndarray:
    """Return in how many folds each target has a score: (n_batch,)."""
    return np.sum([fold.measured for fold in folds], axis=0)


def _fold_values(y: np.ndarray, p: np.ndarray) -> FoldValues:
    found = moments(y, p)
    missing = np.isnan(y)
    deviation = np.where(missing, 0.0, y - found.mean_true)
    predicted = np.asarray(p, dtype=np.float64)
    predicted = predicted - predicted.mean(axis=0)
    return FoldValues(
        y=_unit(deviation, found.constant_true),
        p=_unit(predicted, found.constant_pred),
        seen=~missing if missing.any() else None,
        measured=(~missing).sum(axis=0) >= 2,
    )


def _unit(values: np.ndarray, constant: np.ndarray) -> np.ndarray:
    norm = np.sqrt(np.einsum("nt,nt->t", values, values))
    usable = ~constant & (norm > 0)
    scale = np.divide(1.0, norm, out=np.zeros_like(norm), where=usable)
    return (values * scale).astype(np.float32)
