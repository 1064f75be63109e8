"""All estimators that an estimator holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sklearn.base import BaseEstimator

from featpipe.encoding import TargetView


def estimators_in(root: Any, fields: Callable[[Any], Mapping[str, Any]]) -> Iterator[BaseEstimator]:
    """Yield an estimator and all that its fields hold, also in lists, tuples, mappings and views, each once.

    Parameters
    ----------
    root : estimator
    fields : callable (estimator) -> mapping
        ``vars`` for all that it holds, or its parameters.
    """
    seen: dict[int, Any] = {}  # keeps what it has seen alive: an id is unique only among the living
    left = [root]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, BaseEstimator):
            yield value
            value = fields(value)
        if isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value
        elif isinstance(value, TargetView):
            left.append(value.estimator)
