"""Scores per target: Pearson r and R², accumulated in float64 whatever the dtype of the arrays.

Degenerate targets score 0 in both metrics and are meant to be counted, see `is_constant`: a constant
prediction or response has no correlation, and a constant response has no variance to explain (scikit-learn
gives R² = 1 when a constant is predicted exactly, which would count a dead voxel as a perfect one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from featpipe.errors import RequestError

_CHUNK_VALUES = 1 << 22  # values turned to float64 at a time: 32 MiB
_ROUNDING = 8 * float(np.finfo(np.float64).eps)  # of a mean, relative to the largest value


@dataclass(frozen=True)
class Moments:
    """Weighted sums of responses and predictions per target, from which r and R² follow.

    Those of disjoint sets of stimuli add up (`__add__`), so that scores over all folds need no more
    memory than those of one.

    Parameters
    ----------
    weight, mean_true, mean_pred : ndarray of shape (n_targets,)
    ss_true, ss_pred, cross : ndarray of shape (n_targets,)
        Weighted sums of squares and products about the means.
    ss_error : ndarray of shape (n_targets,)
        Weighted sum of ``(y_true - y_pred)²``.
    noise_true, noise_pred : ndarray of shape (n_targets,)
        Sums of squares that rounding alone can cause.

    References
    ----------
    Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance".
    """

    weight: np.ndarray
    mean_true: np.ndarray
    mean_pred: np.ndarray
    ss_true: np.ndarray
    ss_pred: np.ndarray
    cross: np.ndarray
    ss_error: np.ndarray
    noise_true: np.ndarray
    noise_pred: np.ndarray

    def __add__(self, other: Moments) -> Moments:
        weight = self.weight + other.weight
        share = _ratio(other.weight, weight)
        lever = self.weight * share
        true, pred = other.mean_true - self.mean_true, other.mean_pred - self.mean_pred
        return Moments(
            weight,
            self.mean_true + share * true,
            self.mean_pred + share * pred,
            self.ss_true + other.ss_true + lever * true**2,
            self.ss_pred + other.ss_pred + lever * pred**2,
            self.cross + other.cross + lever * true * pred,
            self.ss_error + other.ss_error,
            self.noise_true + other.noise_true,
            self.noise_pred + other.noise_pred,
        )

    @property
    def constant_true(self) -> np.ndarray:
        """Targets whose responses do not vary: ndarray of bool, shape (n_targets,)."""
        return self.ss_true <= self.noise_true

    @property
    def constant_pred(self) -> np.ndarray:
        """Targets whose predictions do not vary: ndarray of bool, shape (n_targets,)."""
        return self.ss_pred <= self.noise_pred

    def pearson_r(self) -> np.ndarray:
        """Return Pearson's r, 0 where either side is constant: ndarray of shape (n_targets,)."""
        norm = np.sqrt(self.ss_true) * np.sqrt(self.ss_pred)  # no overflow of the product
        r = np.clip(_ratio(self.cross, norm), -1.0, 1.0)
        return np.where(self.constant_true | self.constant_pred, 0.0, r)

    def r2(self) -> np.ndarray:
        """Return R², 0 where the responses are constant: ndarray of shape (n_targets,)."""
        return np.where(self.constant_true, 0.0, 1.0 - _ratio(self.ss_error, self.ss_true))


def pearson_r(y_true, y_pred, *, sample_weight=None) -> np.ndarray:
    """Return Pearson's correlation of responses and predictions for every target.

    Parameters
    ----------
    y_true : array of shape (n_stimuli, n_targets) or (n_stimuli,)
        Responses; a stimulus whose response is NaN is left out of that target.
    y_pred : array of the same shape
        Predictions, finite wherever the response is.
    sample_weight : array of shape (n_stimuli,), optional
        Non-negative weights.

    Returns
    -------
    r : ndarray of shape (n_targets,), float64
        In [-1, 1]; 0 where the responses or the predictions are constant.

    Raises
    ------
    RequestError
        On shapes that differ, or predictions that are not finite.
    """
    return moments(y_true, y_pred, sample_weight=sample_weight).pearson_r()


def r2(y_true, y_pred, *, sample_weight=None) -> np.ndarray:
    """Return the coefficient of determination, ``1 - Σ(y - ŷ)² / Σ(y - ȳ)²``, for every target.

    ȳ is the mean of the responses given here, as in scikit-learn. Parameters and errors are those of
    `pearson_r`.

    Returns
    -------
    r2 : ndarray of shape (n_targets,), float64
        At most 1; 0 where the responses are constant, whatever the prediction.
    """
    return moments(y_true, y_pred, sample_weight=sample_weight).r2()


METRICS: dict[str, Callable[..., np.ndarray]] = {"pearson_r": pearson_r, "r2": r2}


def moments(y_true, y_pred, *, sample_weight=None) -> Moments:
    """Return the `Moments` of responses and predictions; parameters are those of `pearson_r`."""
    y_true, y_pred = _columns(y_true), _columns(y_pred)
    if y_true.shape != y_pred.shape:
        raise RequestError(
            f"Responses have shape {y_true.shape} and predictions {y_pred.shape}; both must be "
            "(n_stimuli, n_targets) of the same stimuli and targets."
        )
    weight = _weights(sample_weight, len(y_true))
    parts = [_moments(y_true[:, part], y_pred[:, part], weight) for part in _chunks(*y_true.shape)]
    if not parts:
        raise RequestError("There is no target to score: the responses have no column.")
    return Moments(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Moments)))


def is_constant(values) -> np.ndarray:
    """Say which columns vary by no more than rounding: ndarray of bool, shape (n_columns,).

    NaN are left out; a column without any finite value is constant.
    """
    return moments(values, np.zeros_like(_columns(values))).constant_true


def _columns(values) -> np.ndarray:
    values = np.asarray(values)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2:
        raise RequestError(
            f"Scores need arrays of shape (n_stimuli, n_targets) or (n_stimuli,), got {values.shape}."
        )
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def _weights(sample_weight, n_stimuli: int) -> np.ndarray:
    if sample_weight is None:
        return np.ones(n_stimuli)
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.shape != (n_stimuli,) or not np.all(np.isfinite(weight)) or np.any(weight < 0):
        raise RequestError(
            f"sample_weight needs one finite weight >= 0 for each of {n_stimuli} stimuli, got an array of "
            f"shape {weight.shape}" + (f" from {weight.min()} to {weight.max()}." if weight.size else ".")
        )
    return weight


def _chunks(n_stimuli: int, n_targets: int) -> Iterator[slice]:
    step = max(1, _CHUNK_VALUES // max(1, n_stimuli))
    return (slice(start, start + step) for start in range(0, n_targets, step))


def _moments(y_true: np.ndarray, y_pred: np.ndarray, weight: np.ndarray) -> Moments:
    true, pred = y_true.astype(np.float64), y_pred.astype(np.float64)
    missing = np.isnan(true)
    seen = np.where(missing, 0.0, weight[:, None])
    true[missing] = pred[missing] = 0.0
    if not np.all(np.isfinite(pred)) or not np.all(np.isfinite(true)):
        raise RequestError(
            "Scores need finite predictions and responses that are finite or NaN (a missing trial); got "
            "infinity, or NaN among the predictions. Look for features that overflow."
        )
    total = seen.sum(axis=0)
    mean_true, mean_pred = _ratio((seen * true).sum(axis=0), total), _ratio((seen * pred).sum(axis=0), total)
    ss_error = np.einsum("nt,nt,nt->t", seen, true - pred, true - pred)
    noise_true = _rounding(true, y_true.dtype, total)
    noise_pred = _rounding(pred, y_pred.dtype, total)
    true -= mean_true
    pred -= mean_pred
    ss_true, ss_pred, cross = (
        np.einsum("nt,nt,nt->t", seen, a, b) for a, b in ((true, true), (pred, pred), (true, pred))
    )
    return Moments(total, mean_true, mean_pred, ss_true, ss_pred, cross, ss_error, noise_true, noise_pred)


def _rounding(values: np.ndarray, dtype: np.dtype, total: np.ndarray) -> np.ndarray:
    """Return the sum of squares about the mean that rounding to a dtype can make of a constant."""
    largest = np.abs(values).max(axis=0, initial=0.0)
    return total * ((float(np.finfo(dtype).eps) + _ROUNDING) * largest) ** 2


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide, with 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)
