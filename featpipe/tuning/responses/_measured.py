"""Responses as tuners fit them: in units of their own spread, of the stimuli that have any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.errors import RequestError
from featpipe.tuning.heads._responses import moments, standardised


@dataclass(frozen=True, eq=False)
class Measured:
    """Responses, and which stimuli take part.

    Parameters
    ----------
    values : ndarray of shape (n_stimuli, n_targets), float32
        Mean 0 and standard deviation 1 over the fitted stimuli; NaN where a response is missing.
    mean, scale : ndarray of shape (n_targets,), float64
        What was subtracted, and divided by, in the unit of the responses.
    rows, held_out : ndarray of int
        Stimuli to fit, and to stop by: those of them that have a response. None: nothing stops the training.
    """

    values: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    rows: np.ndarray
    held_out: np.ndarray | None

    @classmethod
    def of(cls, Y: np.ndarray, rows: np.ndarray, held_out: np.ndarray | None) -> Measured:
        """Standardise responses (n_stimuli, n_targets) by the moments of the fitted stimuli alone.

        Raises
        ------
        RequestError
            A target has no response to fit, or fewer than two stimuli with a response are left to stop by.
        """
        there = ~np.isnan(Y).all(axis=1)
        rows = rows[there[rows]]
        if (missing := np.isnan(Y[rows]).all(axis=0)).any():
            raise RequestError(
                f"Target {int(np.argmax(missing))}{' and others' * bool(missing.sum() > 1)} has no response among the "
                f"{len(rows)} stimuli that are fitted. Leave such targets out."
            )
        if held_out is not None:
            held_out = held_out[there[held_out]]
            if len(held_out) < 2:
                raise RequestError(
                    f"{len(held_out)} of the stimuli held out for early stopping have responses; two are the least. "
                    "Raise validation_fraction, or set it to 0 to train without."
                )
        mean, scale = moments(Y[rows], np.ones(len(rows)))
        return cls(standardised(Y, mean, scale), mean, scale, rows, held_out)

    @property
    def filled(self) -> np.ndarray:
        """The values, with the mean, 0, where a response is missing."""
        return np.nan_to_num(self.values)


def responses_of(y: Any, n_stimuli: int, name: str) -> np.ndarray:
    """Return responses as float32 (n_stimuli, n_targets) or (n_stimuli,).

    Raises
    ------
    RequestError
        They are no numbers, infinite, or not as many as the ids.
    """
    Y = np.asarray(y)
    if Y.ndim not in (1, 2) or len(Y) != n_stimuli or Y.dtype.kind not in "biuf":
        raise RequestError(
            f"{name} is fitted to responses of shape (n_stimuli, n_targets), here ({n_stimuli}, n_targets); got "
            f"{type(y).__name__} of shape {Y.shape} and {Y.dtype}."
        )
    if np.isinf(Y).any():
        raise RequestError("Responses must be finite, or NaN where missing; got infinity.")
    return Y.astype(np.float32, copy=False)
