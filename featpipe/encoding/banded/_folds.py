"""Held-out predictions of all folds from one inverse, their scores, and how scores change with penalties.

The stimuli T of a fold, left out of the fit, have the residuals ``e_T = (A_TT)^-1 (A y)_T``: leaving stimuli out
is giving them infinite noise. The dual coefficients fitted without them are ``c = A y - A[:, T] e_T``, which are 0
on T. As ``dA = -A dK A``, the residuals change by ``de_T = -(A_TT)^-1 A[T, :] dK c``.

References
----------
Rasmussen & Williams (2006), Gaussian Processes for Machine Learning, section 5.4.2, for single stimuli.
Dupré la Tour, Eickenberg, Nunez-Elizalde & Gallant (2022), Feature-space selection with banded ridge regression,
NeuroImage 264, section 2.4, for the parametrisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.encoding._arrays import array_namespace, on_device, to_numpy
from featpipe.encoding.banded._bands import Bands, Inverse, inverted
from featpipe.encoding.ridge._ridge import Split, batches
from featpipe.errors import RequestError

_FOLDS_OF_A_GRADIENT = 2


@dataclass(frozen=True)
class FoldSet:
    """Folds whose stimuli together are the same, so that one inverse serves them.

    Parameters
    ----------
    rows : ndarray of int
        The stimuli of every fold, fitted and scored.
    tests : list of ndarray of int
        Which of `rows` each fold scores, by position.
    """

    rows: np.ndarray
    tests: list[np.ndarray]


def fold_sets(splits: Sequence[Split]) -> list[FoldSet]:
    """Gather folds by the stimuli that they use.

    Raises
    ------
    RequestError
        A fold is fitted on a stimulus that it scores, or has one twice.
    """
    found: dict[bytes, FoldSet] = {}
    for number, (train, test) in enumerate(splits):
        rows = np.union1d(train, test)
        if len(rows) != len(train) + len(test):
            raise RequestError(
                f"Inner fold {number} has {len(train)} stimuli to fit and {len(test)} to score, but only {len(rows)} "
                "different ones. Give a cv whose folds have no stimulus twice."
            )
        same = found.setdefault(rows.astype(np.int64).tobytes(), FoldSet(rows, []))
        same.tests.append(np.searchsorted(rows, np.sort(test)))
    return list(found.values())


class HeldOut:
    """Responses of a fold set, ready to be scored under any penalties.

    Parameters
    ----------
    bands : Bands
        Of the stimuli of the fold set.
    Y : ndarray of shape (n_stimuli, n_targets)
        Responses of these stimuli, without NaN.
    tests : sequence of ndarray of int
        Positions of the stimuli that each fold scores.
    scoring : {"r2", "pearson_r"}
    dtype : float32 or float64
        Of products with responses where the penalties allow it.
    device : str
    """

    def __init__(self, bands: Bands, Y: np.ndarray, tests, *, scoring: str, dtype, device: str) -> None:
        self.bands = bands
        self.scoring = scoring
        weight = to_numpy(bands.weight)
        placed = _standardised(Y, weight, center=bands.center)
        self.Y = on_device(placed.astype(dtype), device)
        self.folds = [_Fold(placed, weight, test, dtype, device) for test in tests]

    def scores(self, inverse: Inverse, targets: np.ndarray, target_batch: int) -> np.ndarray:
        """Return the sum over folds of the scores of some targets: ndarray of shape (n_chosen,), float64."""
        solvers = self._solvers(inverse, self.folds)
        parts = [targets[part] for part in batches(len(targets), target_batch)]
        return np.concatenate([self._scores(inverse, solvers, part) for part in parts])

    def _scores(self, inverse: Inverse, solvers: list[Any], targets: np.ndarray) -> np.ndarray:
        dual = inverse.times(self._responses(targets, solvers[0]))
        total = np.zeros(len(targets))
        for fold, solver in zip(self.folds, solvers, strict=True):
            total += fold.score(solver @ dual[fold.test], targets, self.scoring)
        return total

    def gradients(
        self, inverse: Inverse, delta: np.ndarray, targets: np.ndarray, target_batch: int, *, turn: int = 0
    ) -> np.ndarray:
        """Return derivatives of the sum over folds by delta, estimated from two folds: (n_bands, n_chosen), float64.

        All folds together would be dearer than the steps that follow from them. `turn` says which two.
        """
        n_taken = min(_FOLDS_OF_A_GRADIENT, len(self.folds))
        folds = [self.folds[(turn * n_taken + number) % len(self.folds)] for number in range(n_taken)]
        solvers = self._solvers(inverse, folds)
        parts = [targets[part] for part in batches(len(targets), target_batch)]
        found = [self._gradients(inverse, folds, solvers, part) for part in parts]
        return np.exp(delta)[:, None] * np.concatenate(found, axis=1) * (len(self.folds) / n_taken)

    def _gradients(self, inverse: Inverse, folds: list[_Fold], solvers: list[Any], targets: np.ndarray):
        dual = inverse.times(self._responses(targets, solvers[0]))
        total = np.zeros((len(self.bands.traces), len(targets)))
        for fold, solver in zip(folds, solvers, strict=True):
            residual = solver @ dual[fold.test]
            adjoint = inverse.columns(fold.test, solver @ fold.slope(residual, targets, self.scoring))
            total -= self.bands.forms(adjoint, dual - inverse.columns(fold.test, residual))
        return total

    def _solvers(self, inverse: Inverse, folds: list[_Fold]) -> list[Any]:
        """Return ``(A_TT)^-1`` of folds: products with it are faster than solving, and shared by batches."""
        return [inverted(inverse.block(fold.test)) for fold in folds]

    def _responses(self, targets: np.ndarray, like: Any) -> Any:
        xp = array_namespace(self.Y)
        return xp.astype(_columns(self.Y, targets), like.dtype, copy=False)


class _Fold:
    """The stimuli that a fold scores: their responses about the mean, and which targets vary over them."""

    def __init__(self, Y: np.ndarray, weight: np.ndarray, test: np.ndarray, dtype: Any, device: str) -> None:
        self.test = on_device(test, device)
        self.weight = on_device(weight[test].astype(dtype), device)
        largest = np.abs(Y[test]).max(axis=0, initial=0.0)
        centred = Y[test] - weight[test] @ Y[test] / weight[test].sum()
        self.scatter = weight[test] @ centred**2
        constant = self.scatter <= weight[test].sum() * (1e-13 * largest) ** 2  # but for rounding
        self.scatter[constant] = 0.0
        self.centred = on_device(centred.astype(dtype), device)

    def score(self, residual: Any, targets: np.ndarray, scoring: str) -> np.ndarray:
        """Return R² about the held-out mean, or Pearson's r, 0 where undefined: ndarray (n_chosen,)."""
        scatter = self.scatter[targets]
        if scoring == "r2":
            return np.where(scatter > 0, 1 - _ratio(self._products(residual, residual), scatter), 0.0)
        centred, predicted = self._deviations(residual, targets)
        return _ratio(self._products(predicted, centred), self._norm(predicted, scatter))

    def slope(self, residual: Any, targets: np.ndarray, scoring: str) -> Any:
        """Return the derivative of the score by each residual: array of shape (n_test, n_chosen)."""
        scatter = self.scatter[targets]
        xp = array_namespace(residual)
        weight = xp.astype(self.weight, residual.dtype, copy=False)[:, None]
        if scoring == "r2":
            return weight * residual * _beside(_ratio(np.full(len(scatter), -2.0), scatter), residual)
        centred, predicted = self._deviations(residual, targets)
        norm = self._norm(predicted, scatter)
        r = _ratio(self._products(predicted, centred), norm)
        pull = _ratio(r, np.where(scatter > 0, self._products(predicted, predicted), 0.0))
        return weight * (
            _beside(pull, residual) * predicted - _beside(_ratio(np.ones_like(r), norm), residual) * centred
        )

    def _deviations(self, residual: Any, targets: np.ndarray) -> tuple[Any, Any]:
        """Return responses and predictions about their weighted means."""
        xp = array_namespace(residual)
        weight = xp.astype(self.weight, residual.dtype, copy=False)
        centred = xp.astype(_columns(self.centred, targets), residual.dtype, copy=False)
        return centred, centred - residual + weight / xp.sum(weight) @ residual

    def _norm(self, predicted: Any, scatter: np.ndarray) -> np.ndarray:
        return np.sqrt(self._products(predicted, predicted) * scatter)

    def _products(self, left: Any, right: Any) -> np.ndarray:
        """Return ``Σ_i w_i left[i, t] right[i, t]``: ndarray of shape (n_chosen,), float64."""
        xp = array_namespace(left)
        return to_numpy(xp.astype(self.weight, left.dtype, copy=False) @ (left * right)).astype(np.float64)


def _columns(values: Any, targets: np.ndarray) -> Any:
    """Return the columns of some targets, without a copy where they are neighbours."""
    if targets[-1] - targets[0] == len(targets) - 1:  # targets ascend
        return values[:, int(targets[0]) : int(targets[-1]) + 1]
    return values[:, _index(targets, values)]


def _standardised(Y: np.ndarray, weight: np.ndarray, *, center: bool) -> np.ndarray:
    """Return responses near 1 in size (float64): scores are free of units, float32 is not."""
    Y = Y.astype(np.float64)
    if center:
        Y -= weight @ Y / weight.sum()
    largest = np.abs(Y).max(axis=0, initial=0.0)
    return Y / np.where(largest > 0, largest, 1.0)


def _index(rows: np.ndarray, other: Any) -> Any:
    return (
        rows if isinstance(other, np.ndarray) else array_namespace(other).asarray(rows, device=other.device)
    )


def _beside(values: np.ndarray, other: Any) -> Any:
    """Return an ndarray in the dtype and on the device of another array."""
    xp = array_namespace(other)
    return xp.asarray(values, dtype=other.dtype, device=other.device)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=denominator > 0)
