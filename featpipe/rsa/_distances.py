"""RDMs of a matrix of features or responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.errors import RequestError
from featpipe.rsa._noise import whitening
from featpipe.rsa._rdms import RDMs
from featpipe.rsa._tiles import Preparation, PreparedRows, fill_distances

LEAST_HELD, MOST_HELD, MOST_STREAMED = (
    512,
    2048,
    256,
)  # rows of a tile: small against the result, large enough to be fast


@dataclass(frozen=True)
class Metric:
    """A distance as a function of squared Euclidean distances between prepared rows.

    Parameters
    ----------
    preparation : Preparation
    scaled : float
        What a squared distance is multiplied by.
    root : bool
        Whether the square root follows.
    least_features : int
        With fewer the distance is undefined.
    """

    preparation: Preparation
    scaled: float = 1.0
    root: bool = False
    least_features: int = 1

    def finish(self, squared: np.ndarray, per: int = 1) -> np.ndarray:
        """Turn squared distances into this distance, in place; squares are divided by `per` first."""
        squared *= self.scaled / per
        return np.sqrt(squared, out=squared) if self.root else squared


_AS_IT_IS = Preparation()
METRICS = {
    # |z_i − z_j|² = 2 (1 − z_i·z_j) for rows of unit length
    "correlation": Metric(Preparation(centred=True, unit=True), scaled=0.5, least_features=2),
    "cosine": Metric(Preparation(unit=True), scaled=0.5),
    "euclidean": Metric(_AS_IT_IS, root=True),
    "sqeuclidean": Metric(_AS_IT_IS),
}
NOISE_METRICS = {"mahalanobis": "euclidean", "sqmahalanobis": "sqeuclidean"}  # of whitened rows


def rdm(
    X: Any,
    metric: str = "correlation",
    *,
    ids: Sequence[str] | np.ndarray | None = None,
    noise: np.ndarray | None = None,
    per_feature: bool = False,
    dtype: Any = np.float64,
) -> RDMs:
    """Compute the dissimilarities between the rows of a matrix.

    ======================  =============================================================
    ``correlation``         1 − Pearson r of x_i and x_j
    ``cosine``              1 − x_i·x_j / (|x_i| |x_j|)
    ``euclidean``           |x_i − x_j|
    ``sqeuclidean``         |x_i − x_j|²
    ``mahalanobis``         √((x_i − x_j)ᵀ P (x_i − x_j)) with the noise precision P
    ``sqmahalanobis``       its square
    ======================  =============================================================

    as `scipy.spatial.distance.pdist` has them. rsatoolbox squares and divides by the number of channels:
    its ``euclidean`` is ``sqeuclidean`` with ``per_feature=True`` here, its ``mahalanobis`` is
    ``sqmahalanobis`` with ``per_feature=True``; ``correlation`` is the same.

    Parameters
    ----------
    X : array of shape (n_stimuli, n_features)
        Finite; neither copied nor changed. Products of float32 are taken in float32 over blocks of columns
        and summed in float64; pairs that are close are computed from their differences, so that small
        distances keep their digits.
    metric : str
        One of the above.
    ids : sequence of str, length n_stimuli, optional
        The numbers of the rows by default.
    noise : array of shape (n_features, n_features), optional
        Precision P (inverse covariance) of the noise, positive definite, for the Mahalanobis distances; as
        `noise_precision` estimates it.
    per_feature : bool
        Divide squared distances by n_features before any root, so that they compare across layers.
    dtype : {float64, float32}
        Of the result.

    Returns
    -------
    RDMs
        One RDM. A pair with a row of no variance (correlation) or no length (cosine) is NaN, as in scipy and
        rsatoolbox: it has no direction.

    Raises
    ------
    RequestError
        Another metric, no matrix, fewer than two stimuli, NaN or infinity, or noise that is missing, not
        wanted or not positive definite.

    References
    ----------
    Walther et al. (2016), NeuroImage 137, sections 2.2 and 2.3.
    """
    X = _as_matrix(X)
    names = _names(ids, len(X))
    if metric in NOISE_METRICS:
        X = X.astype(np.float64, copy=False) @ whitening(noise, X.shape[1])
        metric = NOISE_METRICS[metric]
    elif noise is not None:
        raise RequestError(f"noise= is for the Mahalanobis distances, not for {metric!r}; leave it out.")
    finish = finisher(metric, X.shape, per_feature)
    values = np.empty((1, len(X), len(X)), dtype=result_dtype(dtype))
    precision = np.float32 if X.dtype in (np.float16, np.float32) else np.float64
    rows = PreparedRows(X.__getitem__, names, precision, METRICS[metric].preparation, owned=False)
    held = int(np.clip(len(X) // 4, LEAST_HELD, MOST_HELD))
    fill_distances(values[0], rows, X.shape[1], finish, held=held, streamed=MOST_STREAMED)
    return adopt(values, names, ["features"])


def finisher(
    metric: str, shape: tuple[int, int], per_feature: bool = False
) -> Callable[[np.ndarray], np.ndarray]:
    """Return what turns squared distances into the metric's; raises `RequestError` where it is undefined."""
    if metric not in METRICS:
        raise RequestError(
            f"There is no metric {metric!r} here, only {', '.join([*METRICS, *NOISE_METRICS])}; the last two need "
            "a matrix and noise=."
        )
    chosen = METRICS[metric]
    if per_feature and chosen.preparation.unit:
        raise RequestError(f"per_feature divides squared distances; {metric!r} has no scale to divide.")
    if shape[0] < 2:
        raise RequestError(f"There are no pairs among {shape[0]} stimuli; an RDM needs two or more.")
    if shape[1] < chosen.least_features:
        raise RequestError(
            f"{metric!r} is undefined over {shape[1]} features; it needs {chosen.least_features} or more."
        )
    return lambda squared: chosen.finish(squared, per=shape[1] if per_feature else 1)


def result_dtype(dtype: Any) -> np.dtype:
    """Check what `RDMs` can hold; raises `RequestError`."""
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise RequestError(f"RDMs are float32 or float64, not {np.dtype(dtype)}.")
    return np.dtype(dtype)


def adopt(values: np.ndarray, ids: Sequence[str] | np.ndarray, subjects: Sequence[str]) -> RDMs:
    """Make RDMs of values that are known to be right, without the copies that checking takes.

    Only a small `RDMs` with the same labels is checked; a large matrix would be held several times.
    """
    names = _names(ids, values.shape[1])
    if len(np.unique(names)) < len(names):  # pairs of one stimulus with itself are NaN in RDMs
        return RDMs(values, names, subjects=subjects)
    made = RDMs(np.zeros((len(values), 0, 0), values.dtype), [], subjects=subjects)
    made.__setstate__({**made.__dict__, "values": values, "ids": names})
    return made


def _names(ids: Sequence[str] | np.ndarray | None, n_stimuli: int) -> np.ndarray:
    names = np.asarray(range(n_stimuli) if ids is None else ids, dtype=str)
    if names.shape != (n_stimuli,):
        raise RequestError(f"There are {names.size} ids for {n_stimuli} stimuli; give one each.")
    return names


def _as_matrix(X: Any) -> np.ndarray:
    matrix = np.asarray(X)
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiub":
        raise RequestError(
            f"An RDM is computed from numbers of shape (n_stimuli, n_features), got shape {matrix.shape} of "
            f"{matrix.dtype}. Repeats go through crossnobis, LayerBlocks through feature_rdms."
        )
    return matrix
