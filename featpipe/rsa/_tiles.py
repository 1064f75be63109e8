"""Squared distances between rows, tile by tile, in float32 where that is what the features are.

Every metric here is a squared Euclidean distance between *prepared* rows: centred and of unit length for
1 − r, of unit length for 1 − cosine, as they are otherwise. Distances do not change when one vector is taken
off all rows, so the mean of the first few goes: what all stimuli have in common would drown the differences
in rounding. Products are summed in float64 over blocks of columns, and pairs that are still too close for
``|a|² + |b|² − 2 a·b`` are done again from their differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.errors import RequestError
from featpipe.rsa._threads import n_blas_threads, one_blas_thread

_COMMON_ROWS = 32  # rows whose mean is what all stimuli have in common
_GROUP_BYTES = 1 << 18  # rows prepared at once: they stay in a processor's cache
_BLOCK_VALUES = 1 << 19  # prepared values multiplied at once
_LEAST_STEP, _MOST_STEP = 1024, 16384  # columns whose products are summed in the features' own precision
_CLOSE = {4: 1e-2, 8: 1e-6}  # by bytes of a value: d² / (|a|² + |b|²) under which products lose too much


@dataclass(frozen=True, eq=False)
class Tile:
    """Prepared rows: their values by columns, and the squared length of each, shape (n_rows,)."""

    columns: Callable[..., np.ndarray]
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def part(self, rows: slice, whole: slice) -> Tile:
        """Return some of the rows, numbered as `whole` numbers all of them."""
        inner = slice(rows.start - whole.start, rows.stop - whole.start)
        return Tile(lambda columns: self.columns(columns, inner), self.lengths[inner])


@dataclass(frozen=True)
class Preparation:
    """What is done to a row before squared distances are taken.

    Parameters
    ----------
    centred : bool
        Take off the row's own mean.
    unit : bool
        Divide by the row's length.
    """

    centred: bool = False
    unit: bool = False


class PreparedRows:
    """Rows of features, read and prepared some at a time.

    Means and lengths are measured in float64 when a row is first read, and remembered.

    Parameters
    ----------
    read : callable (slice of rows) -> ndarray of shape (n_rows, n_features)
    ids : ndarray of shape (n_stimuli,)
        What messages call the rows.
    dtype : dtype
        float32 or float64: the precision of products.
    preparation : Preparation
    owned : bool
        Whether `read` gives new arrays, which are then prepared in place, or views of someone's matrix,
        which are prepared block by block and never copied as a whole.

    Attributes
    ----------
    constant : ndarray of bool, shape (n_stimuli,)
        Rows without a direction (no variance, or no length), as far as they were read.
    """

    def __init__(
        self,
        read: Callable[[slice], np.ndarray],
        ids: np.ndarray,
        dtype: Any,
        preparation: Preparation,
        *,
        owned: bool,
    ) -> None:
        n_stimuli = len(ids)
        self._read, self._preparation, self._owned = read, preparation, owned
        self._ids, self._dtype = ids, np.dtype(dtype)
        self._mean, self._scale = np.zeros(n_stimuli), np.ones(n_stimuli)
        self._lengths = np.full(n_stimuli, np.nan)  # squared, of prepared rows; NaN before the first reading
        self._common: np.ndarray | None = None
        self.constant = np.zeros(n_stimuli, dtype=bool)
        self.n_stimuli = n_stimuli

    def tile(self, rows: slice) -> Tile:
        """Read some rows; raises `RequestError` where they hold NaN or infinity."""
        values = self._read(rows)
        known = not np.isnan(self._lengths[rows]).any()
        groups = [(slice(rows.start + g.start, rows.start + g.stop), values[g]) for g in _groups(values)]
        for here, some in () if known else groups:
            self._measure(here, some)
        if self._common is None:
            self._common = self._mean_row(values, rows.start)
        for here, some in groups if self._owned or not known else ():
            prepared = self._prepare(some if self._owned else some.astype(self._dtype), here, slice(None))
            if not known:
                self._lengths[here] = np.square(prepared).sum(axis=1, dtype=np.float64)
        if self._owned:
            return Tile(lambda columns, inner=slice(None): values[inner, columns], self._lengths[rows])

        def columns_of(columns: slice, inner: slice = slice(0, len(values))) -> np.ndarray:  # noqa: B008
            here = slice(rows.start + inner.start, rows.start + inner.stop)
            return self._prepare(values[inner, columns].astype(self._dtype), here, columns)

        return Tile(columns_of, self._lengths[rows])

    def _measure(self, rows: slice, values: np.ndarray) -> None:
        """Measure mean and length of rows; a row is constant when its spread is rounding."""
        values = values.astype(np.float64)
        mean = values.mean(axis=1)
        if self._preparation.centred:
            values -= mean[:, None]
            self._mean[rows] = mean
        length = np.sqrt(np.einsum("ij,ij->i", values, values))
        if not np.isfinite(length).all():
            bad = self._ids[rows.start + int(np.argmin(np.isfinite(length)))]
            raise RequestError(
                f"The features of stimulus {str(bad)!r} hold NaN or infinity; distances need finite features. "
                "Extract them anew, or leave the stimulus out."
            )
        if self._preparation.unit:
            rounding = 8 * np.finfo(np.float64).eps * np.sqrt(values.shape[1]) * np.abs(self._mean[rows])
            self.constant[rows] = length <= rounding
            self._scale[rows] = np.divide(1, length, out=np.zeros_like(length), where=length > rounding)

    def _mean_row(self, values: np.ndarray, start: int) -> np.ndarray:
        """Return the mean of the first prepared rows: ndarray of shape (n_features,)."""
        some = values[:_COMMON_ROWS]
        total = np.zeros(values.shape[1])
        for row, value in enumerate(some, start):
            total += (value - self._mean[row]) * self._scale[row]
        return (total / len(some)).astype(self._dtype)

    def _prepare(self, values: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Prepare values in place."""
        if self._preparation.centred:
            mean = self._mean[rows]
            high = mean.astype(values.dtype)
            values -= high[:, None]
            values -= (mean - high).astype(values.dtype)[:, None]  # what rounding the mean left
        if self._preparation.unit:
            values *= self._scale[rows].astype(values.dtype)[:, None]
        assert self._common is not None
        values -= self._common[columns]
        return values


def spans(start: int, stop: int, step: int) -> Iterator[slice]:
    """Cut a range into slices of at most `step`."""
    return (slice(at, min(at + step, stop)) for at in range(start, stop, step))


def fill_distances(
    out: np.ndarray,
    rows: PreparedRows,
    n_features: int,
    finish: Callable[[np.ndarray], np.ndarray],
    *,
    held: int,
    streamed: int,
) -> None:
    """Fill a matrix with distances, each pair of stimuli computed once.

    Threads share the pieces, and each multiplies on its own: the result does not depend on how many there
    are, and small products need not wait for one another.

    Parameters
    ----------
    out : ndarray of shape (n_stimuli, n_stimuli)
        NaN becomes the pairs of constant rows.
    rows : PreparedRows
    n_features : int
    finish : callable
        Turns squared distances into distances, in place.
    held, streamed : int
        Rows of a tile that is held while pieces of `streamed` rows pass by, one a thread.
    """
    with ThreadPoolExecutor(n_blas_threads()) as pool, one_blas_thread():
        for first in spans(0, rows.n_stimuli, held):
            tile = rows.tile(first)

            def place(piece: slice, first: slice = first, tile: Tile = tile) -> None:
                if piece.start >= first.stop:
                    above, against, other = first, tile, rows.tile(piece)
                else:  # a piece of the tile itself, against the rows down to its own
                    above = slice(first.start, piece.stop)
                    against, other = tile.part(above, first), tile.part(piece, first)
                block = finish(squared_distances(against, other, n_features))
                out[above, piece] = block
                out[piece, above] = block.T

            own = list(spans(first.start, first.stop, streamed))[::-1]  # the longest first
            later = spans(first.stop, rows.n_stimuli, streamed)
            for _ in pool.map(place, [*own, *later]):
                pass  # raises what a thread raised
    out[rows.constant] = np.nan
    out[:, rows.constant] = np.nan
    np.fill_diagonal(out, 0)


def squared_distances(tile: Tile, other: Tile, n_features: int) -> np.ndarray:
    """Return |a_i − b_j|² between the rows of two tiles: ndarray in float64."""
    step = int(np.clip(_BLOCK_VALUES // (len(tile) + len(other)), _LEAST_STEP, _MOST_STEP))
    products = np.zeros((len(tile), len(other)))
    for columns in spans(0, n_features, step):
        block = tile.columns(columns) @ other.columns(columns).T
        products += block
    products *= -2
    products += tile.lengths[:, None]
    products += other.lengths
    np.maximum(products, 0, out=products)
    if len(near := _close_pairs(products, tile, other, block.dtype)):
        _from_differences(products, near, tile, other, n_features)
    if not np.isfinite(products.sum()):
        raise RequestError(
            "Squared distances overflow the features' precision; divide the features by a constant."
        )
    return products


def _close_pairs(squared: np.ndarray, tile: Tile, other: Tile, dtype: np.dtype) -> np.ndarray:
    """Return the places of distances that rounding may have spoilt: ndarray of shape (n_pairs, 2)."""
    found = []
    for rows in spans(0, len(squared), max(1, _BLOCK_VALUES // 2 // max(1, squared.shape[1]))):
        size = tile.lengths[rows, None] + other.lengths
        near = np.argwhere(squared[rows] < _CLOSE[dtype.itemsize] * size)
        near[:, 0] += rows.start
        found.append(near)
    return np.concatenate(found)


def _from_differences(out: np.ndarray, pairs: np.ndarray, tile: Tile, other: Tile, n_features: int) -> None:
    """Overwrite some squared distances with sums of squared differences."""
    totals = np.zeros(len(pairs))
    for columns in spans(0, n_features, _LEAST_STEP):
        a = tile.columns(columns)
        b = other.columns(columns)
        for some in spans(0, len(pairs), _BLOCK_VALUES // 2 // _LEAST_STEP):
            totals[some] += np.square(a[pairs[some, 0]] - b[pairs[some, 1]]).sum(axis=1)
    out[pairs[:, 0], pairs[:, 1]] = totals


def _groups(values: np.ndarray) -> Iterator[slice]:
    """Cut rows into groups that stay in a processor's cache."""
    return spans(0, len(values), max(1, _GROUP_BYTES // max(1, values.shape[1] * values.itemsize)))
