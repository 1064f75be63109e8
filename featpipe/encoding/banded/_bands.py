"""Bands of features as second moments, and the inverse that belongs to a penalty for each of them.

With delta_l = log(gamma_l / alpha) the penalised problem is that of a Gaussian process with covariance
``K = Σ_l exp(delta_l) X_l X_l'`` and noise ``1 / w_i``. Everything that a search asks follows from one matrix,
``A = M - M 1 1' M / (1' M 1)`` with ``M = (K + diag(1/w))^-1`` (``A = M`` without an intercept): the dual
coefficients are ``A y``, and what any fold leaves is in the blocks of A, see `_banded_folds`. One factorisation
then serves all folds, where decomposing each training set would take one for each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import is_numpy_array
from scipy.linalg import lapack

from featpipe.encoding._arrays import array_namespace, on_device, to_numpy

_CHUNK_VALUES = 1 << 22  # values turned to float64 at a time: 32 MiB


class NotPositiveDefinite(ArithmeticError):
    """Penalties too small for the precision: ``K + diag(1/w)`` cannot be factorised."""


class Inverse(ABC):
    """The matrix A of one penalty per band, on some stimuli."""

    @abstractmethod
    def times(self, Y: Any) -> Any:
        """Return A Y: array of shape (n_stimuli, n_targets)."""

    @abstractmethod
    def block(self, rows: Any) -> Any:
        """Return A of some stimuli among themselves: array of shape (n_rows, n_rows)."""

    @abstractmethod
    def columns(self, rows: Any, values: Any) -> Any:
        """Return ``A[:, rows] @ values``: array of shape (n_stimuli, n_targets)."""

    @abstractmethod
    def offset(self, Y: Any) -> Any:
        """Return the intercepts for features less their origin: array of shape (n_targets,)."""


@dataclass(frozen=True)
class _DualInverse(Inverse):
    """A itself, and M 1 over its sum (zeros without an intercept)."""

    matrix: Any
    share: Any

    def times(self, Y: Any) -> Any:
        return self.matrix @ Y

    def block(self, rows: Any) -> Any:
        return self.matrix[rows[:, None], rows]

    def columns(self, rows: Any, values: Any) -> Any:
        return self.matrix[:, rows] @ values

    def offset(self, Y: Any) -> Any:
        return self.share @ Y


@dataclass(frozen=True)
class _PrimalInverse(Inverse):
    """``A = diag(w) - R R'`` with few columns in R."""

    weight: Any
    factor: Any
    share: Any

    def times(self, Y: Any) -> Any:
        return self.weight[:, None] * Y - self.factor @ (self.factor.T @ Y)

    def block(self, rows: Any) -> Any:
        part = self.factor[rows]
        block = -(part @ part.T)
        _add_to_diagonal(block, self.weight[rows])
        return block

    def columns(self, rows: Any, values: Any) -> Any:
        product = -(self.factor @ (self.factor[rows].T @ values))
        product[rows] += self.weight[rows][:, None] * values
        return product

    def offset(self, Y: Any) -> Any:
        return self.share @ Y


class Bands(ABC):
    """Several bands of features of the same stimuli.

    Attributes
    ----------
    weight : array of shape (n_stimuli,), float64
    center : bool
        Whether the model has an intercept.
    inner : ndarray of shape (n_bands, n_bands)
        ``⟨K_l, K_m⟩`` of the bands' Gram matrices, from which the size of any mixture follows.
    traces : ndarray of shape (n_bands,)
    """

    weight: Any
    center: bool
    inner: np.ndarray
    traces: np.ndarray

    @abstractmethod
    def inverse(self, delta: np.ndarray, dtype: Any = np.float64) -> Inverse:
        """Factorise for one log penalty ratio per band, (n_bands,); -inf leaves a band out.

        Raises
        ------
        NotPositiveDefinite
        """

    @abstractmethod
    def forms(self, left: Any, right: Any) -> np.ndarray:
        """Return ``left[:, t]' K_l right[:, t]``: ndarray of shape (n_bands, n_targets), float64."""

    @abstractmethod
    def take(self, rows: np.ndarray) -> Bands:
        """Return the bands of some stimuli, with the same origin."""

    def size(self, delta: np.ndarray) -> float:
        """Return a bound on the largest eigenvalue of ``diag(w)^½ K diag(w)^½`` (Frobenius)."""
        gain = np.exp(delta)
        return float(np.sqrt(max(gain @ self.inner @ gain, 0.0))) * float(self.weight.max())


class DualBands(Bands):
    """Bands as products of stimuli: kernels of shape (n_bands, n_stimuli, n_stimuli)."""

    def __init__(self, kernels: Any, weight: Any, *, center: bool) -> None:
        self.kernels, self.weight, self.center = kernels, weight, center
        flat = kernels.reshape(len(kernels), -1)
        self.inner = np.asarray([[float(a @ b) for b in flat] for a in flat])
        self.traces = np.asarray([float(band[:: len(weight) + 1].sum()) for band in flat])

    def inverse(self, delta: np.ndarray, dtype: Any = np.float64) -> Inverse:
        xp = array_namespace(self.kernels)
        gain = _like(np.exp(delta), self.kernels)
        total = (gain @ self.kernels.reshape(len(delta), -1)).reshape(self.kernels.shape[1:])
        total = xp.astype(total, _dtype(xp, dtype), copy=False)
        _add_to_diagonal(total, xp.astype(1 / self.weight, total.dtype))
        matrix = inverted(total)
        if not self.center:
            return _DualInverse(matrix, xp.zeros_like(matrix[0]))
        sums = xp.sum(matrix, axis=1)
        share = sums / xp.sum(sums)
        matrix -= sums[:, None] * share
        return _DualInverse(matrix, share)

    def forms(self, left: Any, right: Any) -> np.ndarray:
        xp = array_namespace(self.kernels)
        kernels = (xp.astype(kernel, left.dtype, copy=False) for kernel in self.kernels)
        return np.stack([_float64(xp.sum(left * (kernel @ right), axis=0)) for kernel in kernels])

    def take(self, rows: np.ndarray) -> Bands:
        rows = _like(rows, self.kernels, keep=True)
        return DualBands(self.kernels[:, rows[:, None], rows], self.weight[rows], center=self.center)


class PrimalBands(Bands):
    """Bands as the features themselves, for fewer features than stimuli: X of shape (n_stimuli, n_features)."""

    def __init__(self, X: Any, widths: Sequence[int], weight: Any, *, center: bool) -> None:
        self.X, self.widths, self.weight, self.center = X, tuple(widths), weight, center
        stops = np.cumsum(widths)
        self.slices = [slice(int(stop) - width, int(stop)) for stop, width in zip(stops, widths, strict=True)]
        self._gram = (X * weight[:, None]).T @ X
        squares = self._gram**2
        self.inner = np.asarray([[float(squares[a, b].sum()) for b in self.slices] for a in self.slices])
        self.inner /= float(weight.max()) ** 2  # `size` multiplies it again
        self.traces = np.asarray([float((X[:, part] ** 2).sum()) for part in self.slices])

    def inverse(self, delta: np.ndarray, dtype: Any = np.float64) -> Inverse:
        xp = array_namespace(self.X)
        root = _like(np.repeat(np.exp(delta / 2), self.widths), self.X)
        gram = self._gram * root * root[:, None]
        _add_to_diagonal(gram, xp.ones_like(root))
        gram = xp.astype(gram, _dtype(xp, dtype), copy=False)
        scaled = xp.astype(self.X * root * self.weight[:, None], gram.dtype, copy=False)
        factor = _half_solved(gram, scaled)  # W X L^-T, so that M = diag(w) - factor factor'
        weight = xp.astype(self.weight, gram.dtype, copy=False)
        if not self.center:
            return _PrimalInverse(weight, factor, xp.zeros_like(weight))
        sums = weight - factor @ xp.sum(factor, axis=0)
        total = xp.sum(sums)
        factor = xp.concat([factor, (sums / xp.sqrt(total))[:, None]], axis=1)
        return _PrimalInverse(weight, factor, sums / total)

    def forms(self, left: Any, right: Any) -> np.ndarray:
        xp = array_namespace(self.X)
        X = xp.astype(self.X, left.dtype, copy=False)
        products = (X.T @ left) * (X.T @ right)  # (n_features, n_targets)
        return np.stack([_float64(xp.sum(products[part], axis=0)) for part in self.slices])

    def take(self, rows: np.ndarray) -> Bands:
        rows = _like(rows, self.X, keep=True)
        return PrimalBands(self.X[rows], self.widths, self.weight[rows], center=self.center)


def make_bands(
    layers: Iterable[np.ndarray],
    widths: Sequence[int],
    weight: np.ndarray,
    *,
    center: bool = True,
    device: str = "cpu",
) -> tuple[Bands, np.ndarray]:
    """Return the bands of a problem, in the cheaper of the two forms, and their origin.

    Parameters
    ----------
    layers : iterable of ndarray of shape (n_stimuli, width)
        Read once, one at a time.
    widths : sequence of int, length n_bands
    weight : ndarray of shape (n_stimuli,), > 0 or 0 for stimuli never taken
    center : bool
        Subtract the weighted mean, which keeps statistics well conditioned; an intercept makes it harmless.
    device : str

    Returns
    -------
    bands : Bands
    origin : ndarray of shape (n_features,), float64
        What was subtracted.
    """
    n_stimuli, n_features = len(weight), sum(widths)
    primal = 2 * n_features <= n_stimuli  # below that A Y costs more by the features than by A
    store = np.empty((n_stimuli, n_features)) if primal else np.zeros((len(widths), n_stimuli, n_stimuli))
    origin = np.zeros(n_features)
    stops = np.cumsum(widths)
    for number, layer in enumerate(layers):
        columns = slice(int(stops[number]) - widths[number], int(stops[number]))
        if center:
            origin[columns] = _means(layer, weight)
        for part, chunk in _centred(layer, origin[columns]):
            if primal:
                store[:, columns][:, part] = chunk
            else:
                store[number] += chunk @ chunk.T
    placed, weight = on_device(store, device), on_device(weight, device)
    if primal:
        return PrimalBands(placed, widths, weight, center=center), origin
    return DualBands(placed, weight, center=center), origin


def _means(layer: np.ndarray, weight: np.ndarray) -> np.ndarray:
    share = weight / weight.sum()
    return np.concatenate([share @ layer[:, part].astype(np.float64) for part in _parts(layer)])


def _centred(layer: np.ndarray, origin: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (columns, features less their origin in float64); of constant features not even rounding is left."""
    for part in _parts(layer):
        chunk = layer[:, part].astype(np.float64) - origin[part]
        chunk[:, np.abs(chunk).max(axis=0) <= 8 * np.finfo(np.float64).eps * np.abs(origin[part])] = 0.0
        yield part, chunk


def _parts(layer: np.ndarray) -> list[slice]:
    step = max(1, _CHUNK_VALUES // len(layer))
    return [slice(start, start + step) for start in range(0, layer.shape[1], step)]


def inverted(matrix: Any) -> Any:
    """Return the inverse of a symmetric positive definite matrix, which is overwritten."""
    xp = array_namespace(matrix)
    if not is_numpy_array(matrix):
        return xp.cholesky_inverse(_factorised(matrix))
    kind = "d" if matrix.dtype == np.float64 else "s"
    lower, failed = getattr(lapack, f"{kind}potrf")(matrix.T, lower=1, overwrite_a=1, clean=0)
    if not failed:
        lower, failed = getattr(lapack, f"{kind}potri")(lower, lower=1, overwrite_c=1)
    if failed:
        raise NotPositiveDefinite
    inverse = lower.T  # its upper triangle is filled
    for start in range(0, len(inverse), 256):  # block by block: a transposed copy of all misses the cache
        stop = start + 256
        inverse[stop:, start:stop] = inverse[start:stop, stop:].T
        corner = inverse[start:stop, start:stop]
        below = np.tril_indices(len(corner), -1)
        corner[below] = corner.T[below]
    return inverse


def _factorised(matrix: Any) -> Any:
    """Return the lower Cholesky factor on a device."""
    xp = array_namespace(matrix)
    factor, info = xp.linalg.cholesky_ex(matrix)
    if int(info):
        raise NotPositiveDefinite
    return factor


def _half_solved(gram: Any, scaled: Any) -> Any:
    """Return ``scaled @ L^-T`` for ``gram = L L'``."""
    xp = array_namespace(gram)
    if not is_numpy_array(gram):
        return xp.linalg.solve_triangular(_factorised(gram), scaled.T, upper=False).T
    kind = "d" if gram.dtype == np.float64 else "s"
    lower, failed = getattr(lapack, f"{kind}potrf")(gram.T, lower=1, overwrite_a=1)
    if failed:
        raise NotPositiveDefinite
    return getattr(lapack, f"{kind}trtrs")(lower, scaled.T, lower=1)[0].T


def _add_to_diagonal(matrix: Any, values: Any) -> None:
    matrix.reshape(-1)[:: len(matrix) + 1] += values


def _like(values: np.ndarray, other: Any, *, keep: bool = False) -> Any:
    """Return an ndarray beside another array, in its dtype unless that is to be kept."""
    if is_numpy_array(other):
        return values if keep else values.astype(other.dtype, copy=False)
    xp = array_namespace(other)
    return xp.asarray(values, device=other.device, dtype=None if keep else other.dtype)


def _dtype(xp: Any, dtype: Any) -> Any:
    return getattr(xp, np.dtype(dtype).name)


def _float64(values: Any) -> np.ndarray:
    return to_numpy(values).astype(np.float64, copy=False)
