"""Gram statistics of a feature matrix, and the decomposition of any subset of its rows from them.

The features are read once: folds subtract their held-out rows from the statistics of all stimuli and move
the mean, instead of multiplying the features again. Statistics are accumulated in float64 in chunks, also
for float32 features: a float32 Gram matrix loses every singular value below 3e-4 of the largest one, which
penalties from 1e-2 up would show.

Features that lie in memory are an array of NumPy or torch, and statistics stay of that kind and on its
device. Features that do not fit in memory come as an n_stimuli × n_stimuli matrix that was accumulated
elsewhere, from blocks of columns, and as a callable that yields these blocks again when coefficients are
made (`GramStatistics.from_stimulus_products`). Nothing else of the solvers knows the difference: penalties
are searched in the eigenvectors of that matrix, and a solution reads the features once, for all targets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from featpipe.encoding._arrays import (
    add_products,
    array_namespace,
    double,
    eigh,
    float_type,
    like,
    mirror,
    product,
    submatrix,
    take,
    to_numpy,
    transposed_product,
)
from featpipe.encoding.ridge._decomposition import Decomposition, floored_eigenvalues

_CHUNK_VALUES = 1 << 19  # values turned to float64 at a time: 4 MiB
_LEAST_ROWS = 512  # at a time all the same: fewer multiply slowly

Columns = Callable[[], Iterator[tuple[slice, Any]]]


class GramStatistics:
    """Second moments of centred features: feature by feature if there are fewer features than stimuli,
    else stimulus by stimulus.

    Parameters
    ----------
    X : array of shape (n_stimuli, n_features), float32 or float64, of NumPy or torch
        Features; kept as they are, never copied in whole.
    weight : ndarray of shape (n_stimuli,), optional
        Non-negative weight per stimulus.
    center : bool
        Whether the model has an intercept.

    Attributes
    ----------
    matrix : array of shape (n_features, n_features) or (n_stimuli, n_stimuli), float64
    primal : bool
        Whether the matrix is feature by feature.
    n_stimuli, n_features : int
    dtype : dtype of the features, and of coefficients
    weight : array of shape (n_stimuli,), float64
    """

    def __init__(self, X: Any, *, weight: np.ndarray | None = None, center: bool = True) -> None:
        self._describe(X.shape, X.dtype, center)
        self.X = X
        self._columns: Columns | None = None
        self.weight = like(np.ones(self.n_stimuli) if weight is None else np.asarray(weight, np.float64), X)
        self.primal = self.n_features <= self.n_stimuli
        self.origin = column_means(X, self.weight) if center else like(np.zeros(self.n_features), X)
        self.matrix = self._feature_gram(np.arange(self.n_stimuli)) if self.primal else self._stimulus_gram()

    @classmethod
    def from_stimulus_products(
        cls,
        matrix: Any,
        columns: Columns,
        *,
        n_features: int,
        dtype: Any = np.float32,
        weight: np.ndarray | None = None,
        center: bool = True,
    ) -> GramStatistics:
        """Take statistics that were accumulated elsewhere, of features that are read in blocks of columns.

        Parameters
        ----------
        matrix : array of shape (n_stimuli, n_stimuli), float64
            ``Σ_b (X_b - o_b)(X_b - o_b)'`` over the blocks of columns, unweighted, about any origin ``o_b``
            (the mean of the stimuli loses least to rounding), or about 0 where `center` is False. The
            weights and the means of any subset are applied to this matrix later. On a GPU if it is there.
        columns : callable () -> iterator of (slice, array of shape (n_stimuli, width))
            The features themselves, uncentred, of all the stimuli in the order of `matrix`, in blocks of
            columns whose slices make up ``range(n_features)`` in order. Called anew for every solution,
            and read through once for all of its targets.
        n_features : int
        dtype : dtype
            Of the coefficients.
        weight, center
            As for features in memory.
        """
        gram = cls.__new__(cls)
        gram._describe((matrix.shape[0], n_features), dtype, center)
        gram.X = None
        gram._columns = columns
        gram.weight = like(
            np.ones(gram.n_stimuli) if weight is None else np.asarray(weight, np.float64), matrix
        )
        gram.primal = False
        gram.matrix = matrix
        return gram

    def _describe(self, shape: tuple[int, ...], dtype: Any, center: bool) -> None:
        self.n_stimuli, self.n_features = int(shape[0]), int(shape[1])
        self.dtype = dtype
        self.center = center

    @property
    def streamed(self) -> bool:
        """Whether the features are read in blocks of columns, and better only once."""
        return self._columns is not None

    def decompose(self, rows: np.ndarray, *, consume: bool = False) -> Subset:
        """Decompose some stimuli: their features, centred on their own weighted mean.

        Parameters
        ----------
        rows : ndarray of int
        consume : bool
            Do so in the memory of `matrix`, which is gone afterwards: for the last subset.
        """
        subset = _PrimalSubset(self, rows, consume) if self.primal else _DualSubset(self, rows, consume)
        if consume:
            del self.matrix
        return subset

    def columns(self) -> Iterator[tuple[slice, Any]]:
        """Yield (slice of the features, their columns: array of shape (n_stimuli, width)), uncentred."""
        if self._columns is not None:
            yield from self._columns()
            return
        for part in _parts(self.n_features, self.n_stimuli):
            yield part, self.X[:, part]

    def feature_gram(self, rows: np.ndarray, *, consume: bool = False) -> Any:
        """Return ``Σ w (x - origin)(x - origin)'`` over some stimuli, (n_features, n_features), float64.

        A new array, or `matrix` itself where it may be consumed.
        """
        left_out = np.setdiff1d(np.arange(self.n_stimuli), rows)
        if len(left_out) + len(np.unique(rows)) != self.n_stimuli or len(np.unique(rows)) != len(rows):
            return self._feature_gram(rows)  # repeated rows: nothing to subtract from
        if len(left_out) > len(rows):
            return self._feature_gram(rows)
        if not len(left_out):
            return self.matrix if consume else double(self.matrix)
        return self.matrix - self._feature_gram(left_out)

    def centred(self, rows: np.ndarray) -> Iterator[tuple[slice, Any]]:
        """Yield (slice of `rows`, features less `origin` in float64), a chunk of stimuli at a time."""
        for part in _parts(len(rows), self.n_features):
            chunk = double(take(self.X, rows[part]))
            chunk -= self.origin
            yield part, chunk

    def _feature_gram(self, rows: np.ndarray) -> Any:
        total = like(np.zeros((self.n_features,) * 2), self.X)
        for part, chunk in self.centred(rows):
            chunk *= (take(self.weight, rows[part]) ** 0.5)[:, None]
            add_products(total, chunk.T)
        return mirror(total)

    def _stimulus_gram(self) -> Any:
        total = like(np.zeros((self.n_stimuli,) * 2), self.X)
        for part in _parts(self.n_features, self.n_stimuli):
            chunk = double(self.X[:, part])
            chunk -= self.origin[part]
            add_products(total, chunk)
        return mirror(total)


class Subset(ABC):
    """Some stimuli of `GramStatistics`, decomposed.

    Attributes
    ----------
    rows : ndarray of shape (n_rows,)
    weight : array of shape (n_rows,)
    decomposition : Decomposition
    """

    def __init__(self, gram: GramStatistics, rows: np.ndarray, consume: bool = False) -> None:
        self.gram = gram
        self.rows = rows
        self.weight = take(gram.weight, rows)
        self.total = float(self.weight.sum())
        self.decomposition = self._decompose(consume)

    def left(self, dtype: Any) -> Any:
        """Return the left factor in a dtype: (n_rows, rank)."""
        left = self.decomposition.left
        return array_namespace(left).astype(left, float_type(dtype, left), copy=False)

    def latent(self, values: Any) -> Any:
        """Return centred responses in the directions U, ``U' D^½ values``: (rank, n_columns), in their dtype."""
        return transposed_product(self.decomposition.left, values)

    def combine(self, weights: Any) -> Any:
        """Return ``D^½ U weights``: array of shape (n_rows, n_columns), in the dtype of `weights`."""
        return product(self.decomposition.left, weights)

    def row_norm(self) -> float:
        """Return the largest norm of a row of features that `coefficients` multiplies; 0 if it multiplies none."""
        return 0.0

    @abstractmethod
    def _decompose(self, consume: bool) -> Decomposition: ...

    @abstractmethod
    def project(self, rows: np.ndarray) -> Any:
        """Return ``(X[rows] - mean) W``: array of shape (len(rows), rank), float64."""

    @abstractmethod
    def right(self) -> Any:
        """Return W: array of shape (n_features, rank), in the dtype of the features."""

    @abstractmethod
    def mean(self) -> Any:
        """Return the weighted mean of the features: array of shape (n_features,), float64."""

    @abstractmethod
    def coefficients(self, weights: Any, out: np.ndarray) -> None:
        """Write ``(W weights)'``, the coefficients in features, of shape (n_targets, n_features).

        Parameters
        ----------
        weights : array of shape (rank, n_targets)
            Coefficients in the directions W; their dtype is that of the arithmetic.
        out : ndarray of shape (n_targets, n_features)
        """


class _PrimalSubset(Subset):
    def _decompose(self, consume: bool) -> Decomposition:
        gram = self.gram
        self._shift = like(np.zeros(gram.n_features), gram.X)  # mean of these rows less the origin
        if gram.center:
            for part, chunk in gram.centred(self.rows):
                self._shift += self.weight[part] @ chunk / self.total
        matrix = gram.feature_gram(self.rows, consume=consume)
        matrix -= self.total * (self._shift[:, None] * self._shift)
        eigenvalues, self._right = eigh(matrix, overwrite=True)
        eigenvalues, scale = floored_eigenvalues(eigenvalues, len(self.rows))
        left = like(np.empty((len(self.rows), len(scale))), gram.X)
        for part, chunk in gram.centred(self.rows):
            chunk -= self._shift
            projected = chunk @ self._right
            projected /= scale
            projected *= self.weight[part, None]
            left[part] = projected
        return Decomposition(left, eigenvalues, scale)

    def project(self, rows: np.ndarray) -> Any:
        xp = array_namespace(self._right)
        parts = [(chunk - self._shift) @ self._right for _, chunk in self.gram.centred(rows)]
        return xp.concat(parts, axis=0)

    def right(self) -> Any:
        return array_namespace(self._right).astype(self._right, self.gram.dtype, copy=False)

    def mean(self) -> Any:
        return self.gram.origin + self._shift

    def coefficients(self, weights: Any, out: np.ndarray) -> None:
        right = array_namespace(self._right).astype(self._right, weights.dtype, copy=False)
        _write(out, weights.T, right.T)


class _DualSubset(Subset):
    _mean: Any = None

    def _decompose(self, consume: bool) -> Decomposition:
        root = self.weight**0.5
        self._row_norm = self._largest_row()
        everything = np.array_equal(self.rows, np.arange(self.gram.n_stimuli))
        kernel = self._centred_kernel(self.rows, self.gram.matrix if consume and everything else None)
        if bool((self.weight != 1).any()):
            kernel *= root
            kernel *= root[:, None]
        eigenvalues, left = eigh(kernel, overwrite=True)
        eigenvalues, scale = floored_eigenvalues(eigenvalues, len(self.rows))
        left *= root[:, None]
        return Decomposition(left, eigenvalues, scale)

    def project(self, rows: np.ndarray) -> Any:
        return self._centred_kernel(rows) @ self.decomposition.left / self.decomposition.scale

    def right(self) -> Any:
        gram = self.gram
        scaled = self._stimulus_weights(self.decomposition.left / self.decomposition.scale)
        right = like(np.empty((gram.n_features, len(self.rows)), dtype=_numpy_dtype(gram.dtype)), gram.weight)
        for part, block in gram.columns():
            chunk = double(take(block, self.rows))
            if gram.center:
                chunk -= column_means(chunk, self.weight)
            right[part] = chunk.T @ scaled
        return right

    def mean(self) -> Any:
        if self._mean is None:
            mean = like(np.zeros(self.gram.n_features), self.gram.weight)
            if self.gram.center:
                for part, block in self.gram.columns():
                    mean[part] = column_means(take(like(block, mean), self.rows), self.weight)
            self._mean = mean
        return self._mean

    def coefficients(self, weights: Any, out: np.ndarray) -> None:
        xp = array_namespace(weights)
        scale = xp.astype(self.decomposition.scale, weights.dtype)
        dual = self._stimulus_weights(self.combine(weights / scale[:, None])).T  # (n_targets, n_rows)
        whole = np.array_equal(self.rows, np.arange(self.gram.n_stimuli))
        mean = like(np.zeros(self.gram.n_features), dual) if self.gram.streamed and self.gram.center else None
        for part, block in self.gram.columns():
            chosen = like(block if whole else take(block, self.rows), dual)
            _write(out[:, part], dual, xp.astype(chosen, weights.dtype, copy=False))
            if mean is not None:  # while the block is here
                mean[part] = column_means(chosen, self.weight)
        self._mean = mean if mean is not None else self._mean

    def latent(self, values: Any) -> Any:
        # The constant is one of these directions, or lies among those without variance. No centred response has a
        # part in it, but rounding does, which small penalties would divide by a small 1 - leverage.
        latent = super().latent(values)
        if self.gram.center:
            constant = self.decomposition.left.sum(0) / self.total**0.5
            constant = array_namespace(constant).astype(constant, values.dtype)
            latent -= constant[:, None] * (constant @ latent)
        return latent

    def row_norm(self) -> float:
        return self._row_norm

    def _stimulus_weights(self, dual: Any) -> Any:
        """Make weights of stimuli sum to 0, in place, so that the features need no centring."""
        if self.gram.center:
            share = array_namespace(dual).astype(self.weight / self.total, dual.dtype)
            dual -= share[:, None] * dual.sum(0)
        return dual

    def _centred_kernel(self, rows: np.ndarray, kernel: Any = None) -> Any:
        """Return inner products of `rows` and ours, both less our mean: (len(rows), n_rows); in place if given."""
        kernel = submatrix(self.gram.matrix, rows, self.rows) if kernel is None else kernel
        if not self.gram.center:
            return kernel
        share = self.weight / self.total
        own = kernel if rows is self.rows else submatrix(self.gram.matrix, self.rows, self.rows)
        ours = own @ share
        theirs = kernel @ share
        kernel -= theirs[:, None]
        kernel -= ours
        kernel += share @ ours
        return kernel

    def _largest_row(self) -> float:
        gram, xp = self.gram, array_namespace(self.gram.matrix)
        offset = 0.0 if gram.streamed else float(gram.origin @ gram.origin) ** 0.5
        return float(xp.max(xp.linalg.diagonal(gram.matrix))) ** 0.5 + offset


def column_means(X: Any, weight: Any) -> Any:
    """Return the weighted mean of every column, accumulated in float64: array of shape (n_columns,)."""
    total = like(np.zeros(X.shape[1]), X)
    for part in _parts(X.shape[0], X.shape[1]):
        total += weight[part] @ double(X[part])
    return total / weight.sum()


def _write(out: np.ndarray, left: Any, right: Any) -> None:
    if isinstance(left, np.ndarray) and out.dtype == left.dtype:
        np.matmul(left, right, out=out)
    else:
        out[...] = to_numpy(left @ right)


def _numpy_dtype(dtype: Any) -> Any:
    return np.float64 if "64" in str(dtype) else np.float32


def _parts(length: int, width: int) -> Iterator[slice]:
    step = max(_LEAST_ROWS, _CHUNK_VALUES // max(1, width))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
