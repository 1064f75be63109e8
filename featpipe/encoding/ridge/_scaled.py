"""Responses as the solvers take them: about their mean, in units near 1, a batch of targets at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from featpipe.encoding._arrays import (
    array_namespace,
    column_dots,
    double,
    float_type,
    like,
    submatrix,
    take,
    take_columns,
    to_numpy,
)
from featpipe.encoding.ridge._gram import GramStatistics

_LEAST_BATCH = 128  # fewer targets at a time multiply slowly
_LARGE_BATCH = 4096  # asked for where memory is no matter and every step has a cost of its own, on a GPU
_CONSTANT = 1e-13  # deviations from the mean that are rounding, relative to the largest response


class ScaledResponses:
    """Responses of some stimuli less their weighted mean, times a power of two per target.

    Scores are free of units, but squares in float32 of field strengths in tesla are not: a power of two brings
    every target near 1 and rounds nothing. A target that is constant but for rounding becomes 0.

    Parameters
    ----------
    gram : GramStatistics
        Gives weights, dtype and device.
    Y : array of shape (n_stimuli, n_targets), of NumPy or torch
        Responses, which stay where they are.
    rows : ndarray of shape (n_rows,)
        Stimuli; the responses of others are never looked at.
    target_batch : int

    Attributes
    ----------
    offset : ndarray of shape (n_targets,), float64
        Weighted mean; 0 without an intercept.
    unit : ndarray of shape (n_targets,), float64
        What responses are multiplied by; 0 for constant targets.
    """

    def __init__(self, gram: GramStatistics, Y: Any, rows: np.ndarray, target_batch: int) -> None:
        self.gram = gram
        self.Y = Y
        self.rows = rows
        self.n_targets = int(Y.shape[1])
        self.offset, self.unit = np.zeros(self.n_targets), np.zeros(self.n_targets)
        for part in batches(self.n_targets, target_batch):
            chosen = _chosen(Y, rows, part)
            weight = like(take(gram.weight, rows), chosen)
            self.offset[part], self.unit[part] = _scaling(chosen, weight, gram.center)

    def values(self, rows: np.ndarray, columns: Any, dtype: Any = None) -> Any:
        """Return scaled responses, unweighted: array of shape (len(rows), n_columns), of the Gram's kind.

        Parameters
        ----------
        rows : ndarray of int
        columns : slice or ndarray of int
        dtype : optional
            That of the features by default.
        """
        values = like(_chosen(self.Y, rows, columns), self.gram.weight)
        xp = array_namespace(values)
        dtype = float_type(self.gram.dtype if dtype is None else dtype, values)
        wide = xp.float64 if xp.float64 in (dtype, values.dtype) else xp.float32
        offset, unit = (xp.astype(like(v[columns], values), wide) for v in (self.offset, self.unit))
        # exact in float32 too where it matters: the difference of numbers that are close
        scaled = xp.astype(values, wide, copy=True)
        scaled -= offset
        scaled *= unit
        return xp.astype(scaled, dtype, copy=False)


def batches(n_targets: int, target_batch: int) -> Iterator[slice]:
    """Yield slices of at most `target_batch` targets, and of few enough that a batch is a small part of all.

    The latter not where `target_batch` is large.
    """
    small = n_targets if target_batch >= _LARGE_BATCH else max(_LEAST_BATCH, n_targets // 16)
    step = max(1, min(target_batch, small))
    return (slice(start, min(start + step, n_targets)) for start in range(0, n_targets, step))


def scatter_about_mean(values: Any, weight: Any) -> tuple[Any, Any, Any]:
    """Return ``sqrt(w) (y - mean)``, the mean and the sum of squares per column, 0 where that is rounding.

    Parameters
    ----------
    values : array of shape (n_rows, n_columns)
    weight : array of shape (n_rows,), float64

    Returns
    -------
    deviations : array of shape (n_rows, n_columns)
    mean : array of shape (n_columns,), in the dtype of `values`
    scatter : array of shape (n_columns,), float64
    """
    xp = array_namespace(values)
    total = float(weight.sum())
    mean = xp.astype(weight / total, values.dtype) @ values
    deviations = (values - mean) * xp.astype(weight**0.5, values.dtype)[:, None]
    scatter = column_dots(deviations, deviations)
    largest = double(xp.max(xp.abs(values), axis=0))
    rounding = 8 * float(xp.finfo(values.dtype).eps) * largest
    return deviations, mean, xp.where(scatter <= total * rounding**2, xp.zeros_like(scatter), scatter)


def _scaling(values: Any, weight: Any, center: bool) -> tuple[np.ndarray, np.ndarray]:
    xp = array_namespace(values)
    highest, lowest = (
        to_numpy(v).astype(np.float64) for v in (xp.max(values, axis=0), xp.min(values, axis=0))
    )
    offset = to_numpy(weight @ double(values)) / float(weight.sum()) if center else np.zeros(len(highest))
    spread = np.maximum(highest - offset, offset - lowest)
    unit = np.exp2(-np.clip(np.frexp(spread)[1], -1000, 1000).astype(np.float64))
    varies = spread > _CONSTANT * np.maximum(np.abs(highest), np.abs(lowest))
    return offset, np.where(varies, unit, 0.0)


def _chosen(Y: Any, rows: np.ndarray, columns: Any) -> Any:
    if len(rows) == Y.shape[0] and np.array_equal(rows, np.arange(Y.shape[0])):
        return take_columns(Y, columns)
    if isinstance(columns, slice):
        return take(Y[:, columns], rows)
    return submatrix(Y, rows, columns)
