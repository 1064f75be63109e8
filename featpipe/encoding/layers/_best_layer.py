"""`BestLayer`: the layer that predicts a target, or a region, best in inner folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    encoder_for,
    encoder_of,
    fit_layer,
    fitted_layer,
    held_out_predictions,
)
from featpipe.encoding.regions._independence import fits_targets_independently
from featpipe.encoding.regions._regions_of_targets import region_positions
from featpipe.encoding.ridge._ridge import Split
from featpipe.errors import RequestError
from featpipe.metrics import METRICS

_CHOICES = ("target", "group", "all")


class BestLayer(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Predict every target from the one layer that predicts it, or its region, best in inner folds.

    Parameters
    ----------
    estimator : estimator, optional
        Cloned for every layer: takes a matrix and all targets. `RidgeEncoder` by default. With ``cv="gcv"`` its
        penalties cost no further folds.
    widths : sequence of int, optional
        Columns of each layer, for a matrix; one layer by default. `LayerBlocks` know theirs.
    per : {"target", "group", "all"}
        Whose choice it is: each target's, that of the targets of each region together, or that of all together.
    rois : mapping of str to array of int, or of bool of shape (n_targets,), optional
        Regions, for ``per="group"``. Targets in none form one more. A target in several takes the layer with the best
        mean of their scores.
    cv : int, splitter or iterable of (train, test)
        Inner folds of the choice. An int shuffles with a fixed seed, or respects `groups`.
    scoring : {"pearson_r", "r2"}
        What the choice maximises: the mean over folds, weighted by `sample_weight`; over targets, their mean.
    n_jobs : int, optional
        Layers at a time, through joblib.

    Attributes
    ----------
    layer_ : ndarray of str, shape (n_targets,), or str for a 1-D response
        The layer chosen.
    layer_scores_ : ndarray of shape (n_layers, n_targets), or (n_layers,)
        Inner scores. That of the chosen layer is biased upwards by the choice: never a result.
    estimators_ : dict of str to estimator
        Of every layer that was chosen, fitted to all stimuli and to the targets that chose it.
    coef_ : ndarray of shape (n_targets, n_features), or (n_features,)
        Zero for layers that were not chosen; where encoders are linear. Made when asked for.
    intercept_ : ndarray of shape (n_targets,), or float
    layer_names_ : tuple of str
    layer_widths_ : tuple of int
    n_features_in_ : int

    Notes
    -----
    What an encoder chooses, such as its penalties, it chooses anew on the training stimuli of each inner fold. Of
    equally good layers the first is taken.
    """

    __metadata_request__fit = {"sample_weight": True, "groups": True}  # noqa: RUF012 (scikit-learn's form)
    __metadata_request__score = {"sample_weight": True}  # noqa: RUF012

    def __init__(
        self,
        estimator=None,
        *,
        widths=None,
        per="target",
        rois=None,
        cv=5,
        scoring="pearson_r",
        n_jobs=None,
    ):
        self.estimator = estimator
        self.widths = widths
        self.per = per
        self.rois = rois
        self.cv = cv
        self.scoring = scoring
        self.n_jobs = n_jobs

    def fit(self, X, y, sample_weight=None, groups=None):
        """Choose layers in inner folds, and fit an encoder to each that is chosen.

        Parameters
        ----------
        X : LayerBlocks, or array of shape (n_stimuli, n_features)
        y : array of shape (n_stimuli, n_targets) or (n_stimuli,)
            Responses; NaN where a trial is missing.
        sample_weight : float or array of shape (n_stimuli,), optional
            Weight of each stimulus, >= 0.
        groups : array of shape (n_stimuli,), optional
            Stimuli of one group are never on both sides of an inner fold.

        Raises
        ------
        RequestError
            When parameters and data do not fit together.
        """
        self._check_parameters()
        problem, single = check_problem(
            self, X, y, sample_weight=sample_weight, groups=groups, widths=self.widths
        )
        n_targets = problem.Y.shape[1]
        rois = region_positions(self.rois, n_targets) if self.per == "group" else None
        splits = inner_splits(self.cv, problem.Y, problem.Y, problem.groups)
        estimator = encoder_of(self.estimator)
        self.layer_names_ = problem.names
        self.layer_widths_ = layer_widths(problem.X, self.widths)
        run = Parallel(n_jobs=self.n_jobs)
        positions = range(len(self.layer_names_))
        scores = np.stack(
            run(delayed(_score)(estimator, problem, layer, splits, self.scoring) for layer in positions)
        )
        self._chosen = best_layers(scores, per=self.per, rois=rois)
        wanted = [
            (layer, np.flatnonzero(self._chosen == layer)) for layer in np.unique(self._chosen).tolist()
        ]
        fitted = run(delayed(_fit)(estimator, problem, layer, targets) for layer, targets in wanted)
        self.estimators_ = {
            self.layer_names_[layer]: one for (layer, _), one in zip(wanted, fitted, strict=True)
        }
        names = np.asarray(self.layer_names_)[self._chosen]
        self.layer_ = str(names[0]) if single else names
        self.layer_scores_ = scores[:, 0] if single else scores
        return self

    def predict(self, X):
        """Predict responses: ndarray of shape (n_stimuli, n_targets), or (n_stimuli,)."""
        check_is_fitted(self)
        X = check_features(self, X, self.widths)
        predicted: Any = None
        for position, targets, estimator in self._fits():
            part = estimator.predict(fitted_layer(self, X, position)).reshape(len(X), -1)
            if predicted is None:
                predicted = np.empty((len(X), len(self._chosen)), dtype=part.dtype)
            predicted[:, targets] = part
        return predicted[:, 0] if self._single else predicted

    @property
    def coef_(self) -> np.ndarray:
        """Coefficients of all layers side by side."""
        parts = self._linear("coef_")
        coef = np.zeros((len(self._chosen), sum(self.layer_widths_)), dtype=parts[0].dtype)
        stops = np.cumsum(self.layer_widths_)
        for part, (position, targets, _) in zip(parts, self._fits(), strict=True):
            columns = slice(stops[position] - self.layer_widths_[position], stops[position])
            coef[targets, columns] = part.reshape(len(targets), -1)
        return coef[0] if self._single else coef

    @property
    def intercept_(self) -> np.ndarray | float:
        """Intercept of each target's encoder."""
        intercept = np.zeros(len(self._chosen))
        for part, (_, targets, _) in zip(self._linear("intercept_"), self._fits(), strict=True):
            intercept[targets] = part
        return float(intercept[0]) if self._single else intercept

    @property
    def fits_targets_independently(self) -> bool:
        """Whether a target's fit is the same whatever other targets there are."""
        return self.per == "target" and fits_targets_independently(encoder_of(self.estimator))

    @property
    def _single(self) -> bool:
        return self.layer_scores_.ndim == 1

    def _fits(self) -> list[tuple[int, np.ndarray, Any]]:
        """Return (position of a chosen layer, its targets, its encoder)."""
        positions = [self.layer_names_.index(name) for name in self.estimators_]
        return [
            (position, np.flatnonzero(self._chosen == position), estimator)
            for position, estimator in zip(positions, self.estimators_.values(), strict=True)
        ]

    def _linear(self, name: str) -> list[np.ndarray]:
        check_is_fitted(self)
        estimators = self.estimators_.values()
        if not all(hasattr(estimator, name) for estimator in estimators):
            raise AttributeError(f"{type(encoder_of(self.estimator)).__name__} has no {name}.")
        return [np.asarray(getattr(estimator, name)) for estimator in estimators]

    def _check_parameters(self) -> None:
        if self.per not in _CHOICES:
            raise RequestError(f"per must be one of {', '.join(_CHOICES)}, got {self.per!r}.")
        if self.scoring not in METRICS:
            raise RequestError(f"scoring must be one of {', '.join(METRICS)}, got {self.scoring!r}.")
        if self.per == "group" and self.rois is None:
            raise RequestError(
                "per='group' needs rois, a mapping of names to positions or masks of targets; give them, or set "
                "per='target' or 'all'."
            )


def best_layers(scores: np.ndarray, *, per: str, rois: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """Choose the layer with the best score for every target.

    Parameters
    ----------
    scores : ndarray of shape (n_layers, n_targets)
    per : {"target", "group", "all"}
    rois : mapping of str to ndarray of int
        Regions that together hold every target, for ``per="group"``.

    Returns
    -------
    positions : ndarray of int, shape (n_targets,)
    """
    if per == "target":
        return np.argmax(scores, axis=0)
    if per == "all":
        return np.full(scores.shape[1], np.argmax(scores.mean(axis=1)))
    total, holders = np.zeros_like(scores), np.zeros(scores.shape[1])
    for positions in (rois or {}).values():
        total[:, positions] += scores[:, positions].mean(axis=1, keepdims=True)
        holders[positions] += 1
    return np.argmax(total / holders, axis=0)


def _score(
    estimator, problem: LayerProblem, position: int, splits: Sequence[Split], scoring: str
) -> np.ndarray:
    """Return the mean score over the folds in which a target has one, 0 where it has none: (n_targets,)."""
    total, folds = np.zeros(problem.Y.shape[1]), np.zeros(problem.Y.shape[1])
    predictions = held_out_predictions(estimator, problem.layer(position), problem, splits)
    for predicted, (_, test) in zip(predictions, splits, strict=True):
        response, weight = problem.Y[test], problem.weight[test]
        known = (~np.isnan(response[weight > 0])).sum(axis=0) > 1
        scores = METRICS[scoring](response, predicted, sample_weight=weight)
        total += np.where(known, scores, 0.0)
        folds += known
    return total / np.maximum(folds, 1)


def _fit(estimator, problem: LayerProblem, position: int, targets: np.ndarray):
    n_targets = problem.Y.shape[1]
    Y = problem.Y if len(targets) == n_targets else problem.Y[:, targets]
    chosen = encoder_for(estimator, targets, n_targets)
    return fit_layer(chosen, problem.layer(position), Y, problem.metadata)
