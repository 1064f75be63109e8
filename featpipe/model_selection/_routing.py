"""Groups and sample weights on their way into nested searches.

scikit-learn routes metadata to whoever asks for it and refuses what nobody has decided about. Here a step
that was never asked is taken to decline, so that any pipeline runs; who has ears gets them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import sklearn
from sklearn.base import clone
from sklearn.linear_model import RidgeCV
from sklearn.model_selection._search import BaseSearchCV
from sklearn.utils.metadata_routing import get_routing_for_object

from featpipe.model_selection._scorers import get_scorer, own_score

_METHODS = ("fit", "score")


def routed(pipeline, metadata: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a clone of a pipeline that has decided about every item, and the items that it wants.

    Parameters
    ----------
    pipeline : estimator
    metadata : mapping of name to array of shape (n_stimuli,), or None where there is none

    Returns
    -------
    pipeline : estimator
        Scorer names of its searches are replaced by scorers; requests that the user set are kept.
    wanted : dict
        For ``pipeline.fit(X, y, **wanted)`` with metadata routing enabled.

    Warns
    -----
    UserWarning
        When no step takes an item, or a search inside splits without the groups.
    """
    given = {name: value for name, value in metadata.items() if value is not None}
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = clone(pipeline)
        for part in parts_of(pipeline):
            _name_scorer(part)
        for part in parts_of(pipeline):
            _decline_undecided(part, given)
        wanted = get_routing_for_object(pipeline).consumes("fit", given.keys())
        if "groups" in given:
            _warn_of_blind_searches(pipeline)
    for name in sorted(given.keys() - set(wanted) - {"groups"}):
        warnings.warn(
            f"{name} was given, but no step of {type(pipeline).__name__} takes it, so it changes nothing. "
            f"Call set_fit_request({name}=True) on the steps that should.",
            UserWarning,
            stacklevel=3,
        )
    return pipeline, {name: given[name] for name in given if name in wanted}


def take(wanted: Mapping[str, Any], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the items of some stimuli."""
    return {name: np.asarray(value)[rows] for name, value in wanted.items()}


def parts_of(pipeline) -> Iterator[Any]:
    """Yield the pipeline and everything that its parameters hold, each object once."""
    seen: set[int] = set()
    for part in (pipeline, *pipeline.get_params(deep=True).values()):
        if id(part) not in seen and not isinstance(part, type):
            seen.add(id(part))
            yield part


def _name_scorer(part) -> None:
    """Give a search a scorer that can be told to do without weights, in place of a name or of none."""
    if isinstance(part, BaseSearchCV | RidgeCV) and isinstance(part.scoring, str):
        part.set_params(scoring=get_scorer(part.scoring))
    elif isinstance(part, BaseSearchCV) and part.scoring is None:
        part.set_params(scoring=own_score)


def _decline_undecided(part, given: Mapping[str, Any]) -> None:
    if not hasattr(part, "_get_metadata_request"):
        return
    request = part._get_metadata_request()
    for method in _METHODS:
        requests = getattr(request, method).requests
        undecided = {name: False for name in given if name in requests and requests[name] is None}
        if undecided:
            getattr(part, f"set_{method}_request")(**undecided)


def _warn_of_blind_searches(pipeline) -> None:
    for part in parts_of(pipeline):
        if hasattr(part, "get_params") and "cv" in part.get_params(deep=False) and _splits_blindly(part):
            warnings.warn(
                f"Groups were given, but the search in {type(part).__name__} splits with cv={part.cv!r}, which "
                "ignores them: its choice is made on stimuli of groups that it was fitted on. Set "
                "cv=GroupKFold().",
                UserWarning,
                stacklevel=4,
            )


def _splits_blindly(part) -> bool:
    if isinstance(part.cv, str):
        return False  # closed forms, which refuse groups of several stimuli
    if hasattr(part.cv, "split"):
        return "groups" not in get_routing_for_object(part.cv).consumes("split", ["groups"])
    if part.cv is not None and not isinstance(part.cv, int | np.integer):
        return False  # folds given one by one: whoever made them knew the groups
    # an int respects groups only in an estimator that asks for them itself
    own = part._get_metadata_request().fit.requests if hasattr(part, "_get_metadata_request") else {}
    return own.get("groups") is not True
