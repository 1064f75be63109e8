"""Ranks of dissimilarities, many vectors at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

_ROUNDING = 8  # times the spacing of the dtype at the largest value: what a constant may vary by
_PACKED_BITS = 16  # of a float64 that give way to the position; more would tie too much by mistake
_MAGNITUDE = np.int64((1 << 63) - 1)  # all bits but the sign
_CHUNK_VALUES = 1 << 17  # sorted at a time: what a core's cache holds


def ranks(vectors: np.ndarray) -> np.ndarray:
    """Rank the values of each row from 1 on, ties averaged: ndarray of shape (n_rows, n_pairs), float64.

    Values of a row that differ by rounding alone are all tied. There must be no NaN.
    """
    return _placed(vectors, np.arange(1.0, vectors.shape[1] + 1), lambda tied: tied)


def unit_ranks(vectors: np.ndarray) -> np.ndarray:
    """Return centred ranks of length one, so that a dot product is Spearman's rho; 0 where constant."""
    m = vectors.shape[1]
    centre, length = (m + 1) / 2, math.sqrt(max(1, m**3 - m) / 12)
    ramp = (np.arange(1.0, m + 1) - centre) / length
    return _placed(vectors, ramp, lambda tied: unit_rows((tied - centre)[None])[0])


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Divide each row by its length; a row of zeros stays."""
    length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def is_flat(vectors: np.ndarray) -> np.ndarray:
    """Say which rows vary by no more than rounding: ndarray of bool, shape (n_rows,)."""
    return _flat_between(vectors.min(axis=1), vectors.max(axis=1))


def _flat_between(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return high - low <= _ROUNDING * np.finfo(low.dtype).eps * np.maximum(np.abs(low), np.abs(high))


def _placed(vectors: np.ndarray, ramp: np.ndarray, of_tied: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Put the entries of a ramp where the values' order says; rows with ties get a function of their ranks."""
    vectors = vectors if vectors.dtype.kind == "f" else vectors.astype(np.float64)
    n_rows, m = vectors.shape
    placed = np.empty((n_rows, m))
    step = max(1, _CHUNK_VALUES // max(1, m))
    scratch = np.empty((min(step, n_rows), m), dtype=np.int64)  # memory that is new for every part costs more
    for start in range(0, n_rows if m else 0, step):
        part = vectors[start : start + step]
        order, unsure = _order(part, scratch[: len(part)])
        for row, places in enumerate(order):
            placed[start + row][places] = ramp
        for tied in (np.flatnonzero(unsure) + start).tolist():
            placed[tied] = of_tied(_tied_ranks(vectors[tied]))
    return placed


def _order(vectors: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ascending order of each row, and which rows may have ties; `keys` is written over.

    Sorting whole numbers that hold a value's leading bits and its position is several times as fast as
    `argsort`. Rows in which two values share their leading bits may be in the wrong order; they count as tied.
    """
    bits = max(1, vectors.shape[1] - 1).bit_length()
    if bits > _PACKED_BITS:
        order = np.argsort(vectors, axis=1)
        ordered = np.take_along_axis(vectors, order, axis=1)
        return order, (ordered[:, 1:] == ordered[:, :-1]).any(axis=1) | is_flat(vectors)
    position = (1 << bits) - 1
    np.bitwise_and(_ordered_integers(vectors), ~position, out=keys)
    keys |= np.arange(vectors.shape[1])
    keys.sort(axis=1)
    unsure = np.array([_close(row, position) for row in keys], dtype=bool)
    keys &= position
    ends = vectors[np.arange(len(vectors))[:, None], keys[:, [0, -1]]]
    return keys, unsure | _flat_between(ends[:, 0], ends[:, 1])


def _close(keys: np.ndarray, position: int) -> bool:
    """Say whether two sorted keys differ in their position alone."""
    differing = (keys[1:] ^ keys[:-1]).view(np.uint64)  # unsigned: signs may differ
    return bool(len(differing) and differing.min() <= position)


def _ordered_integers(vectors: np.ndarray) -> np.ndarray:
    """Return int64 in the order of the values: the bits of float64, with negative numbers turned around."""
    values = np.ascontiguousarray(vectors, dtype=np.float64)
    if values.view(np.int64).min() >= 0:
        return values.view(np.int64)
    bits = (values + 0.0).view(np.int64)  # no negative zero
    return bits ^ ((bits >> 63) & _MAGNITUDE)


def _tied_ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata  # slow to import, and most data have no ties

    return np.asarray(rankdata(np.zeros(len(values)) if is_flat(values[None])[0] else values))
