"""Gram statistics of a feature matrix, and the decomposition of any subset of its rows from them.

The features are read once: folds subtract their held-out rows from the statistics of all stimuli and move
the mean, instead of multiplying the features again. Statistics are accumulated in float64 in chunks, also
for float32 features: a float32 Gram matrix loses every singular value below 3e-4 of the largest one, which
penalties from 1e-2 up would show.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_CHUNK_VALUES = 1 << 22  # values turned to float64 at a time: 32 MiB


@dataclass(frozen=True)
class Decomposition:
    """Centred, weighted rows ``D^½ (X - 1 m') = U diag(scale) W'``, ready for any penalty.

    A penalty α needs the diagonal ``shrink(α)`` only: ``coef = W diag(shrink(α)) U' D^½ y``. The scale is
    the singular value, floored: any positive scale gives the same product, so nothing is truncated.

    Parameters
    ----------
    left : ndarray of shape (n_stimuli, rank), float64
        ``D^½ U``: a weight's root is in it.
    eigenvalues : ndarray of shape (rank,), float64
        Squared singular values, ascending.
    scale : ndarray of shape (rank,), float64
    """

    left: np.ndarray
    eigenvalues: np.ndarray
    scale: np.ndarray

    def shrink(self, alpha) -> np.ndarray:
        """Return ``scale / (eigenvalue + alpha)``: ndarray of shape (rank,) or (rank, n_alphas).

        For a penalty of 0 directions without variance get 0: the solution of least norm.
        """
        alpha = np.asarray(alpha, dtype=np.float64)
        eigenvalues, scale = (v.reshape(-1, *[1] * alpha.ndim) for v in (self.eigenvalues, self.scale))
        total = eigenvalues + alpha
        usable = total > _negligible(self.eigenvalues, len(self.left))
        return np.divide(scale, total, out=np.zeros_like(total), where=usable | (alpha > 0))


class GramStatistics:
    """Second moments of centred features: feature by feature if there are fewer features than stimuli,
    else stimulus by stimulus.

    Parameters
    ----------
    X : ndarray of shape (n_stimuli, n_features), float32 or float64
        Features; kept as they are, never copied in whole.
    weight : ndarray of shape (n_stimuli,), optional
        Non-negative weight per stimulus.
    center : bool
        Whether the model has an intercept.
    """

    def __init__(self, X: np.ndarray, *, weight: np.ndarray | None = None, center: bool = True) -> None:
        self.X = X
        self.center = center
        self.weight = np.ones(len(X)) if weight is None else np.asarray(weight, dtype=np.float64)
        self.primal = X.shape[1] <= X.shape[0]
        self.origin = _column_means(X, self.weight) if center else np.zeros(X.shape[1])
        everything = np.arange(len(X))
        self.matrix = self._feature_gram(everything) if self.primal else self._stimulus_gram()

    def decompose(self, rows: np.ndarray) -> Subset:
        """Decompose some stimuli: their features, centred on their own weighted mean."""
        return _PrimalSubset(self, rows) if self.primal else _DualSubset(self, rows)

    def feature_gram(self, rows: np.ndarray) -> np.ndarray:
        """Return ``Σ w (x - origin)(x - origin)'`` over some stimuli, (n_features, n_features), float64."""
        left_out = np.setdiff1d(np.arange(len(self.X)), rows)
        if len(left_out) + len(np.unique(rows)) != len(self.X) or len(np.unique(rows)) != len(rows):
            return self._feature_gram(rows)  # repeated rows: nothing to subtract from
        if len(left_out) > len(rows):
            return self._feature_gram(rows)
        return self.matrix - self._feature_gram(left_out)

    def centred(self, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (slice of `rows`, features less `origin` in float64), a chunk of stimuli at a time."""
        for part in _parts(len(rows), self.X.shape[1]):
            yield part, self.X[rows[part]].astype(np.float64) - self.origin

    def _feature_gram(self, rows: np.ndarray) -> np.ndarray:
        total = np.zeros((self.X.shape[1],) * 2)
        for part, chunk in self.centred(rows):
            chunk *= np.sqrt(self.weight[rows[part]])[:, None]
            total += chunk.T @ chunk
        return total

    def _stimulus_gram(self) -> np.ndarray:
        total = np.zeros((len(self.X),) * 2)
        for part in _parts(self.X.shape[1], len(self.X)):
            chunk = self.X[:, part].astype(np.float64) - self.origin[part]
            total += chunk @ chunk.T
        return total


class Subset(ABC):
    """Some stimuli of `GramStatistics`, decomposed.

    Attributes
    ----------
    rows : ndarray of shape (n_rows,)
    weight : ndarray of shape (n_rows,)
    decomposition : Decomposition
    """

    def __init__(self, gram: GramStatistics, rows: np.ndarray) -> None:
        self.gram = gram
        self.rows = rows
        self.weight = gram.weight[rows]
        self.total = float(self.weight.sum())
        self.decomposition = self._decompose()

    @abstractmethod
    def _decompose(self) -> Decomposition: ...

    @abstractmethod
    def project(self, rows: np.ndarray) -> np.ndarray:
        """Return ``(X[rows] - mean) W``: ndarray of shape (len(rows), rank), float64."""

    @abstractmethod
    def right(self) -> np.ndarray:
        """Return W: ndarray of shape (n_features, rank), in the dtype of the features."""

    @abstractmethod
    def mean(self) -> np.ndarray:
        """Return the weighted mean of the features: ndarray of shape (n_features,), float64."""


class _PrimalSubset(Subset):
    def _decompose(self) -> Decomposition:
        gram = self.gram
        self._shift = np.zeros(gram.X.shape[1])  # mean of these rows less the origin
        if gram.center:
            for part, chunk in gram.centred(self.rows):
                self._shift += self.weight[part] @ chunk / self.total
        matrix = gram.feature_gram(self.rows) - self.total * np.outer(self._shift, self._shift)
        eigenvalues, self._right = np.linalg.eigh(matrix)
        eigenvalues, scale = _eigenvalues(eigenvalues, len(self.rows))
        left = np.empty((len(self.rows), len(scale)))
        for part, chunk in gram.centred(self.rows):
            chunk -= self._shift
            left[part] = (chunk @ self._right) / scale * self.weight[part, None]
        return Decomposition(left, eigenvalues, scale)

    def project(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([(chunk - self._shift) @ self._right for _, chunk in self.gram.centred(rows)])

    def right(self) -> np.ndarray:
        return self._right.astype(self.gram.X.dtype, copy=False)

    def mean(self) -> np.ndarray:
        return self.gram.origin + self._shift


class _DualSubset(Subset):
    def _decompose(self) -> Decomposition:
        root = np.sqrt(self.weight)
        kernel = self._centred_kernel(self.rows) * root * root[:, None]
        eigenvalues, self._left = np.linalg.eigh(kernel)
        eigenvalues, scale = _eigenvalues(eigenvalues, len(self.rows))
        self._left *= root[:, None]
        return Decomposition(self._left, eigenvalues, scale)

    def project(self, rows: np.ndarray) -> np.ndarray:
        return self._centred_kernel(rows) @ self._left / self.decomposition.scale

    def right(self) -> np.ndarray:
        gram, scaled = self.gram, self._left / self.decomposition.scale
        if gram.center:
            scaled -= np.outer(self.weight / self.total, scaled.sum(axis=0))  # features need no centring then
        right = np.empty((gram.X.shape[1], len(self.rows)), dtype=gram.X.dtype)
        for part in _parts(gram.X.shape[1], len(self.rows)):
            right[part] = (gram.X[self.rows, part].astype(np.float64) - gram.origin[part]).T @ scaled
        return right

    def mean(self) -> np.ndarray:
        if not self.gram.center:
            return self.gram.origin
        return _column_means(self.gram.X[self.rows], self.weight)

    def _centred_kernel(self, rows: np.ndarray) -> np.ndarray:
        """Return inner products of `rows` and ours, both less our mean: (len(rows), n_rows)."""
        kernel = self.gram.matrix[np.ix_(rows, self.rows)]
        if not self.gram.center:
            return kernel
        share = self.weight / self.total
        ours = self.gram.matrix[np.ix_(self.rows, self.rows)] @ share
        return kernel - (kernel @ share)[:, None] - ours + share @ ours


def _eigenvalues(eigenvalues: np.ndarray, n_stimuli: int) -> tuple[np.ndarray, np.ndarray]:
    eigenvalues = np.maximum(eigenvalues, 0.0)
    floor = _negligible(eigenvalues, n_stimuli)
    return eigenvalues, np.sqrt(np.maximum(eigenvalues, floor)) if floor > 0 else np.ones_like(eigenvalues)


def _negligible(eigenvalues: np.ndarray, n_stimuli: int) -> float:
    largest = float(eigenvalues.max(initial=0.0))
    return largest * max(n_stimuli, len(eigenvalues)) * float(np.finfo(np.float64).eps)


def _column_means(X: np.ndarray, weight: np.ndarray) -> np.ndarray:
    total = np.zeros(X.shape[1])
    for part in _parts(len(X), X.shape[1]):
        total += weight[part] @ X[part].astype(np.float64)
    return total / weight.sum()


def _parts(length: int, width: int) -> Iterator[slice]:
    step = max(1, _CHUNK_VALUES // max(1, width))
    return (slice(start, start + step) for start in range(0, length, step))
