"""Crossnobis: squared Mahalanobis distances that noise does not make larger."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from featpipe.errors import RequestError
from featpipe.rsa._noise import measured_repeats, whitening
from featpipe.rsa._rdms import RDMs


def crossnobis(
    repeats: Any,
    *,
    noise: np.ndarray | None = None,
    ids: Sequence[str] | np.ndarray | None = None,
    per_feature: bool = False,
) -> RDMs:
    """Compute cross-validated squared Mahalanobis distances over repeats.

    ``d_ij = mean over a ≠ b of (x_ia − x_ja)ᵀ P (x_ib − x_jb)``, over the repeats a and b in which both
    stimuli were measured. Noise of different repeats is independent, so that its expectation is the
    distance of the true patterns; where those are equal it is negative half of the time.

    Parameters
    ----------
    repeats : array of shape (n_stimuli, n_features, n_repeats)
        Responses; NaN in all features where a repeat is missing.
    noise : array of shape (n_features, n_features), optional
        Precision P of the noise, as `noise_precision` estimates it; the identity by default.
    ids : sequence of str, length n_stimuli, optional
    per_feature : bool
        Divide by n_features, as rsatoolbox does.

    Returns
    -------
    RDMs
        One RDM, in squared units of the noise; NaN for pairs that have fewer than two repeats in common.

    Raises
    ------
    RequestError
        Another shape, one repeat or stimulus, a repeat measured in part, or noise that is no precision.

    References
    ----------
    Walther et al. (2016), NeuroImage 137, section 2.4; Diedrichsen et al. (2020), eq. 8.
    """
    X = np.asarray(repeats, dtype=np.float64)
    if X.ndim != 3 or X.shape[0] < 2 or X.shape[2] < 2:
        raise RequestError(
            f"Crossnobis needs two stimuli and two repeats or more, as (n_stimuli, n_features, n_repeats); got "
            f"shape {X.shape}. Without repeats, use rdm(X, 'sqmahalanobis')."
        )
    measured = measured_repeats(X)
    X = np.ascontiguousarray(X.transpose(2, 0, 1))  # (n_repeats, n_stimuli, n_features)
    X -= np.nanmean(X.reshape(-1, X.shape[2]), axis=0)  # the same for all: differences keep their digits
    if noise is not None:
        X = X @ whitening(noise, X.shape[2])
    values = _complete(X) if measured.all() else _over_pairs(X, measured)
    values /= X.shape[2] if per_feature else 1
    return RDMs(values, ids, subjects=["repeats"])


def _complete(X: np.ndarray) -> np.ndarray:
    """Return the mean over all ordered pairs of repeats: the pairs with themselves are taken off the sum."""
    n_repeats = len(X)
    total = X.sum(axis=0)
    inner = total @ total.T - sum(x @ x.T for x in X)
    return _distances(inner) / (n_repeats * (n_repeats - 1))


def _over_pairs(X: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return the mean over the pairs of repeats that two stimuli have in common."""
    n_stimuli = X.shape[1]
    total, counts = np.zeros((n_stimuli, n_stimuli)), np.zeros((n_stimuli, n_stimuli))
    for a, b in combinations(range(len(X)), 2):
        both = np.flatnonzero(measured[:, a] & measured[:, b])
        inner = X[a, both] @ X[b, both].T
        total[np.ix_(both, both)] += _distances((inner + inner.T) / 2)
        counts[np.ix_(both, both)] += 1
    return np.divide(total, counts, out=np.full_like(total, np.nan), where=counts > 0)


def _distances(inner: np.ndarray) -> np.ndarray:
    """Return g_ii + g_jj − 2 g_ij of inner products."""
    own = np.diag(inner)
    return own[:, None] + own - 2 * inner
