"""What estimators of several layers share: their input, an encoder per layer, and its held-out predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sklearn
from sklearn.base import BaseEstimator, clone
from sklearn.utils.metadata_routing import get_routing_for_object
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_consistent_length,
    validate_data,
)

from featpipe.blocks import LayerBlocks
from featpipe.encoding._layers import check_search, layer_matrix, layer_names, layer_widths
from featpipe.encoding.layers._ridge_held_out import is_plain_search, ridge_held_out
from featpipe.encoding.ridge._encoder import RidgeEncoder
from featpipe.encoding.ridge._ridge import Split
from featpipe.errors import RequestError

_FLOATS = [np.float64, np.float32]


@dataclass(frozen=True)
class LayerProblem:
    """Layers and responses of the same stimuli, checked.

    Parameters
    ----------
    X : LayerBlocks, or ndarray of shape (n_stimuli, n_features)
    Y : ndarray of shape (n_stimuli, n_targets)
    metadata : dict of str to ndarray of shape (n_stimuli,)
        ``sample_weight`` and ``groups``, where they were given.
    widths : sequence of int, optional
        Columns per layer of a matrix.
    """

    X: Any
    Y: np.ndarray
    metadata: dict[str, np.ndarray]
    widths: Sequence[int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Labels of the layers."""
        return layer_names(self.X, self.widths)

    @property
    def groups(self) -> np.ndarray | None:
        """Labels that no fold divides."""
        return self.metadata.get("groups")

    @property
    def weight(self) -> np.ndarray:
        """Weight of each stimulus, ndarray of shape (n_stimuli,)."""
        return self.metadata.get("sample_weight", np.ones(len(self.Y)))

    def layer(self, position: int) -> np.ndarray:
        """Read one layer: ndarray of shape (n_stimuli, width)."""
        return layer_matrix(self.X, position, self.widths)


def check_problem(estimator, X, y, *, sample_weight, groups, widths) -> tuple[LayerProblem, bool]:
    """Return layers and responses, checked, and whether the response was 1-D; sets ``n_features_in_``.

    Raises
    ------
    RequestError
        Widths that do not fit, negative weights.
    ValueError
        What scikit-learn finds wrong with the arrays.
    """
    for_x = {"dtype": _FLOATS, "ensure_min_samples": 2, "estimator": estimator}
    for_y = {"dtype": _FLOATS, "ensure_2d": False, "ensure_all_finite": "allow-nan", "estimator": estimator}
    check_search(estimator, X)
    if isinstance(X, LayerBlocks):
        y = check_array(y, input_name="y", **for_y)
        estimator.n_features_in_ = X.shape[1]
    else:
        X, y = validate_data(estimator, X, y, validate_separately=(for_x, for_y))
    check_consistent_length(X, y)
    layer_widths(X, widths)
    metadata = {} if groups is None else {"groups": np.asarray(groups)}
    if sample_weight is not None:
        metadata["sample_weight"] = _check_sample_weight(sample_weight, y, dtype=np.float64)
        if np.any(metadata["sample_weight"] < 0) or not metadata["sample_weight"].any():
            raise RequestError(
                f"sample_weight must be >= 0 and not all 0, got {metadata['sample_weight'].min()} to "
                f"{metadata['sample_weight'].max()}."
            )
    return LayerProblem(X, y.reshape(len(y), -1), metadata, widths), y.ndim == 1


def check_features(estimator, X, widths):
    """Return features to predict from, with the layers that were fitted.

    Raises
    ------
    RequestError
        Other layers, or layers of other widths.
    """
    if not isinstance(X, LayerBlocks):
        return validate_data(estimator, X, dtype=_FLOATS, reset=False)
    found = tuple(zip(layer_names(X, widths), layer_widths(X, widths), strict=True))
    fitted = tuple(zip(estimator.layer_names_, estimator.layer_widths_, strict=True))
    if found != fitted:
        raise RequestError(f"{type(estimator).__name__} was fitted to layers {fitted}, but got {found}.")
    return X


def fitted_layer(estimator, X, position: int) -> np.ndarray:
    """Return a layer to predict from: of `LayerBlocks`, or of a matrix of the layers that were fitted side by side."""
    return layer_matrix(X, position, None if isinstance(X, LayerBlocks) else estimator.layer_widths_)


def fit_layer(estimator, features: np.ndarray, Y: np.ndarray, metadata: dict[str, np.ndarray]) -> Any:
    """Fit a clone to one layer, with the weights and groups that it takes."""
    fitted = clone(estimator)
    wanted = _taken(fitted, metadata)
    with sklearn.config_context(enable_metadata_routing=True):
        fitted.fit(features, Y, **wanted)
    for part in (fitted, *fitted.get_params().values()):
        if isinstance(part, BaseEstimator):
            vars(part).pop("_metadata_request", None)  # refers to itself, which no file can hold
    return fitted


def held_out_predictions(
    estimator, features: np.ndarray, problem: LayerProblem, splits: Sequence[Split]
) -> Iterator[np.ndarray]:
    """Yield what an encoder of one layer predicts for each fold's held-out stimuli: (n_test, n_targets).

    Whatever the encoder chooses, a penalty for instance, it chooses on the fold's own training stimuli. A plain
    search of `RidgeEncoder` is solved from one Gram matrix, which gives the same numbers.

    Parameters
    ----------
    estimator : estimator
        Cloned for every fold.
    features : ndarray of shape (n_stimuli, width)
    problem : LayerProblem
    splits : sequence of (rows to fit, rows to predict)
    """
    if is_plain_search(estimator):
        taken = _taken(estimator, problem.metadata)
        yield from ridge_held_out(estimator, features, problem.Y, splits, **taken)
        return
    for train, test in splits:
        part = {name: values[train] for name, values in problem.metadata.items()}
        predicted = fit_layer(estimator, features[train], problem.Y[train], part).predict(features[test])
        yield predicted.reshape(len(test), -1)


def encoder_of(estimator: BaseEstimator | None) -> Any:
    """Return the encoder that is fitted to every layer."""
    return RidgeEncoder() if estimator is None else estimator


def encoder_for(estimator, targets: np.ndarray, n_targets: int) -> Any:
    """Return a clone for some of the targets: penalties and labels that are given for every target are theirs."""
    given = {
        name: np.asarray(value)[targets]
        for name, value in estimator.get_params().items()
        if name.rpartition("__")[2] in ("alpha", "penalty") and np.shape(value) == (n_targets,)
    }
    return clone(estimator).set_params(**given)


def _taken(estimator, metadata: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the metadata that an estimator asks for, or that its `fit` has and it was never asked about."""
    with sklearn.config_context(enable_metadata_routing=True):
        requests = getattr(getattr(get_routing_for_object(estimator), "fit", None), "requests", {})
        undecided = {name: True for name in metadata if name in requests and requests[name] is None}
        if undecided:
            estimator.set_fit_request(**undecided)
        wanted = get_routing_for_object(estimator).consumes("fit", metadata.keys())
    return {name: metadata[name] for name in metadata if name in wanted}
