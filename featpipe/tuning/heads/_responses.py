"""Responses of any unit, brought to one: mean 0 and standard deviation 1 over the stimuli that are fitted."""

from __future__ import annotations

import numpy as np

from featpipe.errors import RequestError
from featpipe.tuning.heads._columns import Columns

_COLUMNS = 1024  # turned to float64 at a time


def moments(Y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean and standard deviation of each target, NaN left out: (n_targets,) float64.

    The deviation of a target that is constant but for rounding is 1.
    """
    mean, scale = np.zeros(Y.shape[1]), np.ones(Y.shape[1])
    for start in range(0, Y.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        values = Y[:, part].astype(np.float64)
        there = weight[:, None] * ~np.isnan(values)
        total = there.sum(axis=0)
        values = np.nan_to_num(values)
        mean[part] = (there * values).sum(axis=0) / total
        deviation = np.sqrt((there * (values - mean[part]) ** 2).sum(axis=0) / total)
        varies = deviation > 1e-6 * np.abs(mean[part])  # float32 holds seven digits
        scale[part] = np.where(varies, deviation, 1.0)
    return mean, scale


def standardised(Y: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return ``(Y - mean) / scale`` as float32."""
    out = np.empty(Y.shape, dtype=np.float32)
    for start in range(0, Y.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        out[:, part] = (Y[:, part] - mean[part]) / scale[part]
    return out


def check_present(Y: np.ndarray, columns: Columns, rows: np.ndarray, held_out: np.ndarray | None) -> None:
    """Raise `RequestError` where a target has no response to fit, or a ROI none to stop by."""
    if not np.isnan(Y).any():
        return
    missing = np.isnan(Y[rows]).all(axis=0)
    if missing.any():
        raise RequestError(
            f"Target {int(np.argmax(missing))}{' and others' * bool(missing.sum() > 1)} has no response among the "
            f"{len(rows)} stimuli that are fitted. Leave such targets out."
        )
    if held_out is None:
        return
    there = np.bincount(columns.part, weights=~np.isnan(Y[held_out]).all(axis=0)[columns.column])
    if not there.all():
        raise RequestError(
            f"ROI {columns.names[int(np.argmin(there))]!r} has no response among the {len(held_out)} stimuli held out "
            "for early stopping. Raise validation_fraction, or set it to 0 to train without."
        )
