"""`PerROI`: a clone of any pipeline for every region of interest, and no more fits than differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn import get_config
from sklearn.base import BaseEstimator, MetaEstimatorMixin, MultiOutputMixin, RegressorMixin, clone
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted

from featpipe.encoding.regions._independence import fits_targets_independently, same_parameters
from featpipe.encoding.regions._regions_of_targets import (
    JointFit,
    joint_fit,
    mean_over_regions,
    region_positions,
)
from featpipe.encoding.regions._target_view import TargetView, target_result
from featpipe.errors import RequestError

_PENALTIES = ("target", "group")


class PerROI(MetaEstimatorMixin, MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Fit one clone of an estimator to the targets of every region of interest.

    Each region has its own choice of whatever its clone chooses: layer, penalty, early stopping. Regions whose
    clones have equal parameters, and whose fit treats targets one by one, are fitted at once to the union of
    their targets, so that a ridge of 48 regions costs one factorisation.

    Parameters
    ----------
    estimator : estimator
        A regressor, or a Pipeline that may begin with stimulus ids.
    rois : mapping of str to array of int, or of bool of shape (n_targets,), optional
        Positions or mask of each region's targets, by name such as ``lh.V1v``. Regions may overlap. Targets in
        none form a last region, ``other``: all of them, without `rois`.
    penalty : {"target", "group"}
        "target" leaves penalties as the estimator has them. "group" has the targets of a region share one: an
        estimator with ``penalty="target"`` among its parameters gets ``"shared"``, or labels of the regions that
        are fitted at once. A target in two regions is then fitted in each.
    params : mapping of str to mapping, optional
        Parameters of some regions' clones, such as ``{"lh.V1v": {"features__layers": ["layer1"]}}``.
    n_jobs : int, optional
        Fits at a time, through joblib (``joblib.parallel_config("dask")`` uses a cluster).

    Attributes
    ----------
    rois_ : dict of str to ndarray of int
        Positions of every region's targets.
    estimators_ : dict of str to estimator or TargetView
        The fitted clone of a region, or a view of its targets in a fit of several regions.
    coef_, intercept_, alpha_ : ndarray, of a first axis n_targets
        Where the fit is linear and of one feature space: coefficients averaged as predictions are. The penalties
        where each target has one fit.
    n_features_in_ : int

    Notes
    -----
    An estimator says that it treats targets one by one with ``fits_targets_independently = True``; `RidgeEncoder`
    with a penalty per target does, as does a Pipeline that ends in it after steps that do not look at targets.
    """

    __metadata_request__score = {"sample_weight": True}  # noqa: RUF012 (scikit-learn's form)

    def __init__(self, estimator, rois=None, *, penalty="target", params=None, n_jobs=None):
        self.estimator = estimator
        self.rois = rois
        self.penalty = penalty
        self.params = params
        self.n_jobs = n_jobs

    def fit(self, X, y, **fit_params):
        """Fit every region.

        Parameters
        ----------
        X : whatever the estimator is fitted to: ids, a matrix, LayerBlocks
        y : array of shape (n_stimuli, n_targets) or (n_stimuli,)
            Responses, or any object with a shape that indexes by rows and is an array to NumPy.
        **fit_params
            Handed on to the clones: ``sample_weight``, ``groups``; with metadata routing, to whoever asks for them.

        Raises
        ------
        RequestError
            Regions that do not fit the targets, parameters for a region that is not there, or no penalty to share.
        """
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        y = y if hasattr(y, "shape") and not hasattr(y, "iloc") else np.asarray(y)
        self._single = len(y.shape) == 1
        self._n_targets = 1 if self._single else y.shape[1]
        self.rois_ = region_positions(self.rois, self._n_targets)
        plans = self._plans()
        routed = process_routing(self, "fit", **fit_params).estimator.fit if _routes() else fit_params
        fitted = Parallel(n_jobs=self.n_jobs)(
            delayed(_fit)(estimator, X, y, fit.targets, routed) for estimator, fit in plans
        )
        self._fits, self._fitted = [fit for _, fit in plans], fitted
        views = {
            name: _view(estimator, fit, name)
            for estimator, fit in zip(fitted, self._fits, strict=True)
            for name in fit.columns
        }
        self.estimators_ = {name: views[name] for name in self.rois_}
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(fitted[0], name):
                setattr(self, name, getattr(fitted[0], name))
            elif hasattr(self, name):
                delattr(self, name)  # of an earlier fit
        return self

    def predict(self, X):
        """Predict responses: ndarray of shape (n_stimuli, n_targets), or (n_stimuli,).

        A target in several regions gets the mean of their predictions.
        """
        check_is_fitted(self, "estimators_")
        predicted = [
            np.asarray(one.predict(X)).reshape(-1, len(fit.targets))
            for one, fit in zip(self._fitted, self._fits, strict=True)
        ]
        return self._finish(self._mean(predicted), axis=1)

    @property
    def coef_(self) -> np.ndarray:
        """Coefficients: ndarray of shape (n_targets, n_features), or (n_features,)."""
        results = [value.reshape(len(fit.targets), -1) for value, fit in self._linear("coef_")]
        if len({value.shape[1] for value in results}) > 1:
            raise AttributeError("Regions have different features, so there is no coef_ of all targets.")
        return self._finish(self._mean([value.T for value in results]).T, axis=0)

    @property
    def intercept_(self) -> np.ndarray:
        """Intercepts: ndarray of shape (n_targets,), or float."""
        results = [np.broadcast_to(value, fit.targets.shape) for value, fit in self._linear("intercept_")]
        return self._finish(self._mean(results), axis=0)

    @property
    def alpha_(self) -> np.ndarray:
        """Penalties: ndarray of shape (n_targets,), or float."""
        n_targets = sum(len(fit.targets) for fit in self._fits)
        if n_targets > self._n_targets:
            raise AttributeError("Some targets are fitted in several regions; see estimators_ for alpha_.")
        results = [np.broadcast_to(value, fit.targets.shape) for value, fit in self._results("alpha_")]
        return self._finish(self._mean(results), axis=0)

    def _plans(self) -> list[tuple[Any, JointFit]]:
        """Return unfitted clones, and what each is to be fitted to."""
        if self.penalty not in _PENALTIES:
            raise RequestError(f"penalty must be one of {', '.join(_PENALTIES)}, got {self.penalty!r}.")
        group = self.penalty == "group"
        plans = []
        for estimator, names in self._alike():
            joint = joint_fit(self.rois_, names, repeat=group)
            if group:
                labels = joint.labels if len(names) > 1 else "shared"
                estimator.set_params(**dict.fromkeys(_penalties_of(estimator), labels))
            plans.append((estimator, joint))
        return plans

    def _alike(self) -> list[tuple[Any, list[str]]]:
        """Return a clone and the regions that it can fit at once."""
        params = self.params or {}
        if unknown := [name for name in params if name not in self.rois_]:
            raise RequestError(
                f"params are given for region {unknown[0]!r}, but there are {', '.join(map(repr, self.rois_))}."
            )
        found: list[tuple[Any, list[str]]] = []
        for name in self.rois_:
            estimator = clone(self.estimator).set_params(**params.get(name, {}))
            same = (names for one, names in found if same_parameters(one, estimator))
            if fits_targets_independently(estimator) and (names := next(same, None)) is not None:
                names.append(name)
            else:
                found.append((estimator, [name]))
        return found

    def _mean(self, values: list[np.ndarray]) -> np.ndarray:
        return mean_over_regions(self._fits, values, self.rois_, self._n_targets)

    def _results(self, name: str) -> list[tuple[np.ndarray, JointFit]]:
        check_is_fitted(self, "estimators_")
        return [(target_result(one, name), fit) for one, fit in zip(self._fitted, self._fits, strict=True)]

    def _linear(self, name: str) -> list[tuple[np.ndarray, JointFit]]:
        if len(self._fits) > 1 and isinstance(self.estimator, Pipeline):
            raise AttributeError(
                f"Regions have steps of their own before the last, so there is no {name} of all."
            )
        return self._results(name)

    def _finish(self, values: np.ndarray, axis: int) -> Any:
        """Return values of one target as they are for a response of one dimension."""
        return values.take(0, axis=axis) if self._single else values

    def get_metadata_routing(self):
        """Return who gets what of the metadata."""
        mapping = MethodMapping().add(caller="fit", callee="fit")
        router = MetadataRouter(owner=self).add_self_request(self)
        return router.add(estimator=self.estimator, method_mapping=mapping)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.estimator).input_tags
        return tags


def _fit(estimator: Any, X, y, targets: np.ndarray, params: Mapping[str, Any]) -> Any:
    """Fit a clone to some targets; all of them in order are not copied."""
    n_targets = 1 if len(y.shape) == 1 else y.shape[1]
    if not np.array_equal(targets, np.arange(n_targets)):
        y = y if len(y.shape) == 2 else np.asarray(y)[:, None]
        # rows stay rows in memory, as those of a file are read: products of another layout have other bits
        y = np.take(y, targets, axis=1) if isinstance(y, np.ndarray) else y[:, targets]
    return estimator.fit(X, y, **params)


def _view(estimator: Any, fit: JointFit, name: str) -> Any:
    """Return the estimator itself where it was fitted to just the region's targets, in their order."""
    if np.array_equal(fit.columns[name], np.arange(len(fit.targets))):
        return estimator
    return TargetView(estimator, fit.columns[name], len(fit.targets))


def _penalties_of(estimator: Any) -> list[str]:
    """Return the names of parameters that say whose the penalties are."""
    given = estimator.get_params(deep=True)
    names = [name for name in given if name == "penalty" or name.endswith("__penalty")]
    found = [name for name in names if isinstance(given[name], str) and given[name] in ("target", "shared")]
    if not found:
        raise RequestError(
            f"penalty='group' needs an estimator with a parameter penalty='target', as RidgeEncoder has; "
            f"{type(estimator).__name__} has none."
        )
    return found


def _routes() -> bool:
    return bool(get_config()["enable_metadata_routing"])
