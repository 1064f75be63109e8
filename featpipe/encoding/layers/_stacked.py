"""`StackedLayers`: an encoder per layer, and for every target the convex combination that predicts it best."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from featpipe.encoding._folds import inner_splits
from featpipe.encoding._layers import layer_widths
from featpipe.encoding.layers._per_layer import (
    LayerProblem,
    check_features,
    check_problem,
    encoder_of,
    fit_layer,
    fitted_layer,
    held_out_predictions,
)
from featpipe.encoding.layers._simplex import simplex_weights
from featpipe.encoding.regions._independence import fits_targets_independently
from featpipe.encoding.ridge._ridge import Split
from featpipe.errors import RequestError

_MEMORY = 1 << 31  # bytes of held-out residuals beyond which they go to a temporary file
_CHUNK_VALUES = 1 << 24  # residuals turned to float64 at a time: 128 MiB


class StackedLayers(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Predict every target by a convex combination of encoders, one for each layer.

    An encoder is fitted to each layer. With ``p_l`` its predictions for stimuli that it was not fitted to, in inner
    folds, the weights of target t minimise ``Σ_i w_i (y[i] - Σ_l a_l p_l[i])²`` over ``a_l >= 0, Σ_l a_l = 1``.
    Layers that add nothing get no weight, and a combination of layers is hardly ever worse than its best one.

    Parameters
    ----------
    estimator : estimator, optional
        Cloned for every layer: takes a matrix and all targets. `RidgeEncoder` by default. With ``cv="gcv"`` its
        penalties cost no further folds.
    widths : sequence of int, optional
        Columns of each layer, for a matrix; one layer by default. `LayerBlocks` know theirs.
    cv : int, splitter or iterable of (train, test)
        Inner folds of the weights. An int shuffles with a fixed seed, or respects `groups`.
    shrinkage : float
        Draws weights towards equal ones, >= 0: adds ``shrinkage · m · Σ_l a_l²`` to the mean squared error, with m
        the layers' mean squared error. At 0 the published method; equal weights in the limit.
    n_jobs : int, optional
        Layers at a time, through joblib.

    Attributes
    ----------
    estimators_ : list of estimator
        Of each layer, fitted to all stimuli and targets.
    weights_ : ndarray of shape (n_layers, n_targets), or (n_layers,) for a 1-D response
    coef_ : ndarray of shape (n_targets, n_features), or (n_features,)
        Coefficients times weights, layers side by side; where encoders are linear. Made when asked for.
    intercept_ : ndarray of shape (n_targets,), or float
    layer_names_ : tuple of str
    layer_widths_ : tuple of int
    n_features_in_ : int

    Notes
    -----
    What an encoder chooses, such as its penalties, it chooses anew on the training stimuli of each inner fold:
    held-out responses have no part in their own predictions. Layers are in memory one at a time (`n_jobs` at a
    time), held-out residuals in a temporary file where they are large. A response of NaN is a missing trial, as far
    as the encoder takes it for one.

    References
    ----------
    Breiman (1996), "Stacked regressions", Machine Learning 24, 49-64. Lin, Naselaris, Kay & Wehbe (2023), "Stacked
    regressions and structured variance partitioning for interpretable brain maps", section 2.2.
    """

    __metadata_request__fit = {"sample_weight": True, "groups": True}  # noqa: RUF012 (scikit-learn's form)
    __metadata_request__score = {"sample_weight": True}  # noqa: RUF012

    def __init__(self, estimator=None, *, widths=None, cv=5, shrinkage=0.0, n_jobs=None):
        self.estimator = estimator
        self.widths = widths
        self.cv = cv
        self.shrinkage = shrinkage
        self.n_jobs = n_jobs

    def fit(self, X, y, sample_weight=None, groups=None):
        """Fit the encoders, and their weights to what they predict in inner folds.

        Parameters
        ----------
        X : LayerBlocks, or array of shape (n_stimuli, n_features)
        y : array of shape (n_stimuli, n_targets) or (n_stimuli,)
            Responses; NaN where a trial is missing.
        sample_weight : float or array of shape (n_stimuli,), optional
            Weight of each stimulus, >= 0, in the encoders that take it and in the weights of layers.
        groups : array of shape (n_stimuli,), optional
            Stimuli of one group are never on both sides of an inner fold.

        Raises
        ------
        RequestError
            When parameters and data do not fit together.
        """
        if not self.shrinkage >= 0:
            raise RequestError(f"shrinkage must be >= 0, got {self.shrinkage!r}.")
        problem, single = check_problem(
            self, X, y, sample_weight=sample_weight, groups=groups, widths=self.widths
        )
        splits = inner_splits(self.cv, problem.Y, problem.Y, problem.groups)
        estimator = encoder_of(self.estimator)
        self.layer_names_ = problem.names
        self.layer_widths_ = layer_widths(problem.X, self.widths)
        fits = Parallel(n_jobs=self.n_jobs, return_as="generator")(
            delayed(_fit)(estimator, problem, position, splits) for position in range(len(self.layer_names_))
        )
        self.estimators_ = []
        n_held_out = sum(len(test) for _, test in splits)
        shape = (len(self.layer_names_), n_held_out, problem.Y.shape[1])
        with _room(shape, np.result_type(problem.Y.dtype, np.float32)) as residuals:
            for position, (fitted, predicted) in enumerate(fits):
                self.estimators_.append(fitted)
                _write_residuals(predicted, problem, splits, out=residuals[position])
            weights = stacking_weights(residuals, shrinkage=self.shrinkage).T
        self.weights_ = weights[:, 0] if single else weights
        return self

    def predict(self, X):
        """Predict responses: ndarray of shape (n_stimuli, n_targets), or (n_stimuli,)."""
        check_is_fitted(self)
        X = check_features(self, X, self.widths)
        predicted: Any = 0.0
        for position, (estimator, weights) in enumerate(zip(self.estimators_, self._weights(), strict=True)):
            if weights.any():
                part = estimator.predict(fitted_layer(self, X, position)).reshape(len(X), -1)
                predicted = predicted + part * weights.astype(part.dtype)
        return predicted[:, 0] if self.weights_.ndim == 1 else predicted

    @property
    def coef_(self) -> np.ndarray:
        """Coefficients of all layers side by side."""
        parts = self._linear("coef_")
        first = parts[0].reshape(len(self._weights().T), -1)
        coef = np.empty((len(first), sum(self.layer_widths_)), dtype=first.dtype)
        stops = np.cumsum(self.layer_widths_)
        for part, weights, width, stop in zip(parts, self._weights(), self.layer_widths_, stops, strict=True):
            coef[:, stop - width : stop] = part.reshape(len(coef), -1) * weights[:, None]
        return coef[0] if self.weights_.ndim == 1 else coef

    @property
    def intercept_(self) -> np.ndarray | float:
        """Intercept of the combination."""
        parts = self._linear("intercept_")
        total = sum(np.ravel(part) * weights for part, weights in zip(parts, self._weights(), strict=True))
        return float(total[0]) if self.weights_.ndim == 1 else total

    @property
    def fits_targets_independently(self) -> bool:
        """Whether a target's fit is the same whatever other targets there are."""
        return fits_targets_independently(encoder_of(self.estimator))

    def _weights(self) -> np.ndarray:
        check_is_fitted(self)
        return self.weights_.reshape(len(self.layer_names_), -1)

    def _linear(self, name: str) -> list[np.ndarray]:
        check_is_fitted(self)
        if not all(hasattr(estimator, name) for estimator in self.estimators_):
            raise AttributeError(f"{type(self.estimators_[0]).__name__} has no {name}.")
        return [np.asarray(getattr(estimator, name)) for estimator in self.estimators_]


def stacking_weights(residuals: np.ndarray, *, shrinkage: float = 0.0) -> np.ndarray:
    """Find the convex combination of each target's predictions with the least squared error.

    Parameters
    ----------
    residuals : ndarray of shape (n_layers, n_held_out, n_targets)
        Held-out predictions less responses, times the root of the stimulus's weight; 0 where a response is missing.
    shrinkage : float
        Fraction of the layers' mean squared error that is added on the diagonal.

    Returns
    -------
    weights : ndarray of shape (n_targets, n_layers), float64
        >= 0, with sum 1.

    References
    ----------
    Breiman (1996), section 2.
    """
    n_layers, n_held_out, n_targets = residuals.shape
    weights = np.empty((n_targets, n_layers))
    step = max(1, _CHUNK_VALUES // (n_layers * n_held_out))
    for start in range(0, n_targets, step):
        part = slice(start, start + step)
        errors = np.ascontiguousarray(residuals[:, :, part].transpose(2, 0, 1), dtype=np.float64)
        moments = errors @ errors.transpose(0, 2, 1)  # (n_batch, n_layers, n_layers)
        diagonal = np.einsum("tkk->tk", moments)
        diagonal += shrinkage * diagonal.mean(axis=1, keepdims=True)
        weights[part] = simplex_weights(moments)
    return weights


def _fit(estimator, problem: LayerProblem, position: int, splits: Sequence[Split]):
    """Return an encoder of one layer, fitted to all stimuli, and its held-out predictions fold after fold."""
    features = problem.layer(position)
    predicted = list(held_out_predictions(estimator, features, problem, splits))
    return fit_layer(estimator, features, problem.Y, problem.metadata), predicted


def _write_residuals(
    predicted: Sequence[np.ndarray], problem: LayerProblem, splits: Sequence[Split], out: np.ndarray
) -> None:
    root = np.sqrt(problem.weight)
    start = 0
    for part, (_, test) in zip(predicted, splits, strict=True):
        residual = (part - problem.Y[test]) * root[test, None]
        out[start : start + len(test)] = np.where(np.isnan(problem.Y[test]), 0.0, residual)
        start += len(test)


@contextmanager
def _room(shape: tuple[int, ...], dtype) -> Iterator[np.ndarray]:
    """Give an array in memory, or in a temporary file where it is large."""
    if np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize <= _MEMORY:
        yield np.empty(shape, dtype=dtype)
        return
    with tempfile.TemporaryFile() as file:
        yield np.memmap(file, dtype=dtype, mode="w+", shape=shape)
