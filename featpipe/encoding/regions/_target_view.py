"""Some of the targets of a fitted estimator, as if it had been fitted to them alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import r2_score
from sklearn.pipeline import Pipeline

_AXES = {"coef_": 0, "intercept_": 0, "alpha_": 0, "best_score_": 0, "dual_coef_": 0}  # of the targets


class TargetView:
    """A view of some targets of an estimator that was fitted to more.

    Nothing is copied: the estimator is shared, and its results (``coef_``, ``alpha_``, …, of a Pipeline those of
    its last step) are sliced when asked for; they are NumPy views where the targets are neighbours.

    Parameters
    ----------
    estimator : fitted estimator
    columns : ndarray of int, shape (n_view,)
        Which of its targets.
    n_targets : int
        How many targets it was fitted to.

    Notes
    -----
    Which axis of a result the targets lie along is what the estimator's class says in ``target_axes``, a mapping
    of names to axes, else the axis that is as long as there are targets. `predict` takes as long as that of the
    whole estimator.
    """

    def __init__(self, estimator: Any, columns: np.ndarray, n_targets: int) -> None:
        self.estimator = estimator
        self.columns = columns
        self.n_targets = n_targets

    def predict(self, X):
        """Predict the responses of these targets: ndarray of shape (n_stimuli, n_view)."""
        return _take(np.asarray(self.estimator.predict(X)), self.columns, 1)

    def score(self, X, y, sample_weight=None) -> float:
        """Return R², the mean over these targets."""
        return float(r2_score(y, self.predict(X), sample_weight=sample_weight))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "estimator" not in vars(self):
            raise AttributeError(name)
        value = target_result(self.estimator, name)
        if not name.endswith("_") or name == "feature_names_in_":
            return value
        return self._sliced(name, value)

    def _sliced(self, name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._sliced(name, entry) for key, entry in value.items()}
        if not isinstance(value, np.ndarray) or self.n_targets not in value.shape:
            return value
        axes = _AXES | getattr(_last(self.estimator), "target_axes", {})
        along = [axis for axis, length in enumerate(value.shape) if length == self.n_targets]
        if name not in axes and len(along) > 1:
            raise AttributeError(
                f"{name} of shape {value.shape} does not tell which axis its {self.n_targets} targets lie along; name "
                f"it in {type(_last(self.estimator)).__name__}.target_axes."
            )
        return _take(value, self.columns, axes.get(name, along[0]))

    def __repr__(self) -> str:
        return f"TargetView({len(self.columns)} of {self.n_targets} targets of {self.estimator!r})"


def target_result(estimator: Any, name: str) -> Any:
    """Return a result of an estimator, or of the last step of a Pipeline; raises `AttributeError`."""
    if isinstance(estimator, Pipeline) and not hasattr(estimator, name):
        return target_result(estimator[-1], name)
    return getattr(estimator, name)


def _last(estimator: Any) -> Any:
    return _last(estimator[-1]) if isinstance(estimator, Pipeline) else estimator


def _take(values: np.ndarray, columns: np.ndarray, axis: int) -> np.ndarray:
    neighbours = np.array_equal(columns, np.arange(columns[0], columns[0] + len(columns)))
    which: Any = slice(int(columns[0]), int(columns[-1]) + 1) if neighbours else columns
    return values[(slice(None),) * axis + (which,)]
