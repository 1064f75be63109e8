"""Banded ridge at given penalties: dual coefficients per target, then coefficients of the features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from featpipe.encoding._arrays import on_device, to_numpy
from featpipe.encoding.banded._bands import Bands, NotPositiveDefinite
from featpipe.encoding.ridge._ridge import batches
from featpipe.errors import RequestError


def dual_solution(
    bands: Bands, Y: np.ndarray, delta: np.ndarray, *, target_batch: int = 1024, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Solve banded ridge for every target, one factorisation for each point that targets share.

    Minimises ``Σ_i w_i (Y[i, t] - b_t - Σ_l X_l[i] c_l)² + Σ_l exp(-delta[l, t]) ||c_l||²``.

    Parameters
    ----------
    bands : Bands
        Of the features X_l less their origin, and the weights w; without centring b is 0.
    Y : ndarray of shape (n_stimuli, n_targets)
        Responses without NaN.
    delta : ndarray of shape (n_bands, n_targets)
        ``log(gamma / alpha)``.
    target_batch : int
    device : str
        That of `bands`.

    Returns
    -------
    dual : ndarray of shape (n_stimuli, n_targets), float64
        ``c_l = exp(delta[l]) X_l' dual``.
    offset : ndarray of shape (n_targets,), float64
        Intercept for features less their origin.

    Raises
    ------
    RequestError
        Penalties so small that the problem is singular in float64.
    """
    dual, offset = np.empty(Y.shape), np.empty(Y.shape[1])
    points, member = np.unique(delta, axis=1, return_inverse=True)
    for number, point in enumerate(points.T):
        chosen = np.flatnonzero(member.ravel() == number)
        try:
            inverse = bands.inverse(point)
        except NotPositiveDefinite:
            raise RequestError(
                f"The penalties exp(-delta) = {np.exp(-point)} are too small for features of this size: the problem is "
                "singular in float64. Give larger alphas."
            ) from None
        for part in (chosen[batch] for batch in batches(len(chosen), target_batch)):
            response = on_device(np.ascontiguousarray(Y[:, part], dtype=np.float64), device)
            dual[:, part] = to_numpy(inverse.times(response))
            offset[part] = to_numpy(inverse.offset(response))
    return dual, offset


def band_coefficients(
    layers: Iterable[np.ndarray], dual: np.ndarray, delta: np.ndarray, *, target_batch: int = 1024
) -> Iterator[np.ndarray]:
    """Yield the coefficients of each band: ndarray of shape (n_targets, width), in the dtype of the features.

    Without an intercept or with one, features need not be centred: dual coefficients add up to 0 in the latter.
    """
    for layer, gain in zip(layers, np.exp(delta), strict=True):
        coef = np.empty((dual.shape[1], layer.shape[1]), dtype=layer.dtype)
        for part in batches(dual.shape[1], target_batch):
            coef[part] = (dual[:, part] * gain[part]).T.astype(layer.dtype) @ layer
        yield coef
