"""Whether a fit treats its targets one by one, and whether two estimators would be fitted alike.

Then regions of interest can share a fit: what is found for a target does not depend on the targets beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags

from featpipe.encoding.ridge._encoder import RidgeEncoder

# Transformers of these modules look at features only, unless their tags ask for targets.
_UNSUPERVISED = (
    *("sklearn.preprocessing", "sklearn.decomposition", "sklearn.random_projection"),
    *("sklearn.kernel_approximation", "sklearn.impute"),
    *("featpipe.features", "featpipe.encoding._scaler"),
)


def fits_targets_independently(estimator: Any) -> bool:
    """Whether fitting several targets at once is fitting each alone.

    An estimator says so with an attribute or property ``fits_targets_independently = True``. A Pipeline does if its
    last step does and the others do not look at targets. All others are taken not to: a search over a mean score,
    say, or a network.
    """
    if isinstance(estimator, Pipeline):
        *before, last = (step for _, step in estimator.steps)
        return fits_targets_independently(last) and all(map(_ignores_targets, before))
    if hasattr(estimator, "fits_targets_independently"):
        return bool(estimator.fits_targets_independently)
    return isinstance(estimator, RidgeEncoder) and _is_per_target(getattr(estimator, "penalty", "target"))


def _is_per_target(penalty: Any) -> bool:
    return isinstance(penalty, str) and penalty == "target"


def _ignores_targets(step: Any) -> bool:
    if step is None or isinstance(step, str):  # "passthrough"
        return True
    module = type(step).__module__
    known = any(module == name or module.startswith(f"{name}.") for name in _UNSUPERVISED)
    return known and not get_tags(step).target_tags.required


def same_parameters(one: Any, other: Any) -> bool:
    """Whether two values of parameters, estimators among them, are equal in type and content."""
    if one is other:
        return True
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return type(one) is type(other) and one.dtype == other.dtype and np.array_equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, BaseEstimator):
        return same_parameters(one.get_params(deep=False), other.get_params(deep=False))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same_parameters(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_parameters, one, other))
    return bool(one == other)
