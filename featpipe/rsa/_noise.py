"""Covariance of measurement noise, and what makes it white."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import linalg

from featpipe.errors import RequestError


def noise_precision(residuals: Any, *, shrinkage: float | str = "ledoit-wolf", dof: int | None = None):
    """Estimate the precision (inverse covariance) of noise, with shrinkage to a multiple of the identity.

    ``S' = (1 − λ) S + λ (tr S / n_features) I``, times n_observations / dof, inverted.

    Parameters
    ----------
    residuals : array of shape (n_observations, n_features) or (n_stimuli, n_features, n_repeats)
        Residuals of a model, whose mean over observations is removed; or responses to repeats, NaN where a
        repeat is missing, whose mean over each stimulus's repeats is removed.
    shrinkage : "ledoit-wolf" or float
        λ in [0, 1]; by default the one of Ledoit & Wolf.
    dof : int, optional
        Degrees of freedom of the residuals: n_observations − 1, or the number of measured repeats minus one
        per stimulus. After a general linear model, n_observations minus the number of regressors.

    Returns
    -------
    precision : ndarray of shape (n_features, n_features)
        In inverse squared units of the residuals. That of rsatoolbox's ``shrinkage_eye``.

    Raises
    ------
    RequestError
        Residuals or shrinkage that cannot be used, or a covariance that has no inverse.

    References
    ----------
    Ledoit & Wolf (2004), Journal of Multivariate Analysis 88, section 3; Walther et al. (2016), NeuroImage
    137, section 2.3.
    """
    from sklearn.covariance import ledoit_wolf, shrunk_covariance  # slow to import

    centred, natural = _residuals(residuals)
    dof = natural if dof is None else dof
    if dof < 1:
        raise RequestError(f"The noise has {dof} degrees of freedom; give more observations or repeats.")
    if shrinkage == "ledoit-wolf":
        covariance, _ = ledoit_wolf(centred, assume_centered=True)
    elif isinstance(shrinkage, str) or not 0 <= shrinkage <= 1:
        raise RequestError(f"shrinkage is {shrinkage!r}; it must be 'ledoit-wolf' or a number from 0 to 1.")
    else:
        covariance = shrunk_covariance(centred.T @ centred / len(centred), shrinkage=shrinkage)
    return _inverse(np.atleast_2d(covariance) * (len(centred) / dof))


def whitening(noise: Any, n_features: int) -> np.ndarray:
    """Return W with W Wᵀ = noise, a precision: rows times W have white noise. Raises `RequestError`."""
    if noise is None:
        raise RequestError(
            "The Mahalanobis distance needs noise=, the precision of the noise; noise_precision estimates it from "
            "residuals or repeats."
        )
    precision = np.asarray(noise, dtype=np.float64)
    if precision.shape != (n_features, n_features):
        raise RequestError(
            f"noise= has shape {precision.shape}; a precision of {n_features} features has "
            f"({n_features}, {n_features})."
        )
    if not np.isfinite(precision).all() or not np.allclose(precision, precision.T, rtol=1e-6, atol=0):
        raise RequestError("noise= must be a symmetric matrix of finite values: a precision, not residuals.")
    try:
        return linalg.cholesky((precision + precision.T) / 2, lower=True)
    except linalg.LinAlgError as error:
        raise RequestError(
            "noise= is not positive definite, so it is no precision. Estimate it with shrinkage."
        ) from error


def _residuals(values: Any) -> tuple[np.ndarray, int]:
    """Return residuals (n_observations, n_features) and their degrees of freedom."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in (2, 3):
        raise RequestError(
            f"Noise is estimated from (n_observations, n_features) or (n_stimuli, n_features, n_repeats), got "
            f"shape {values.shape}."
        )
    if values.ndim == 2:
        centred = values - values.mean(axis=0)
        dof = len(centred) - 1
    else:
        measured = measured_repeats(values)
        counts = np.maximum(measured.sum(axis=1), 1)
        centred = values - (np.nansum(values, axis=2) / counts[:, None])[:, :, None]
        centred = centred.transpose(0, 2, 1)[measured]
        dof = int(measured.sum() - measured.any(axis=1).sum())
    if not np.isfinite(centred).all():
        raise RequestError("The residuals hold NaN or infinity; leave those observations out.")
    return centred, dof


def measured_repeats(repeats: np.ndarray) -> np.ndarray:
    """Return which repeats were measured: ndarray of bool of shape (n_stimuli, n_repeats).

    Raises
    ------
    RequestError
        Infinity, or a repeat with some features measured and some not.
    """
    missing = np.isnan(repeats)
    partly = missing.any(axis=1) & ~missing.all(axis=1)
    if partly.any():
        stimulus, repeat = np.argwhere(partly)[0]
        raise RequestError(
            f"Repeat {repeat} of stimulus {stimulus} (counted from 0) has NaN in some features only. A repeat is "
            "measured in all features or in none; leave out the features that miss more."
        )
    if np.isinf(repeats).any():
        raise RequestError("The repeats hold infinity; mark what was not measured with NaN.")
    return ~missing.any(axis=1)


def _inverse(covariance: np.ndarray) -> np.ndarray:
    try:
        factor = linalg.cho_factor(covariance, lower=True)
    except linalg.LinAlgError as error:
        raise RequestError(
            f"The covariance of {len(covariance)} features is singular without more shrinkage; raise shrinkage or "
            "give more observations."
        ) from error
    inverse = linalg.cho_solve(factor, np.eye(len(covariance)))
    return (inverse + inverse.T) / 2
