"""Steps that were fitted elsewhere, on stimuli that a fold may be about to score."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.frozen import FrozenEstimator

from featpipe.errors import RequestError
from featpipe.model_selection._inside import estimators_in


def refuse_frozen_leaks(pipeline: Any, ids: np.ndarray, splits: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Refuse a frozen step whose ``training_ids_`` meet the test stimuli of a fold.

    Raises
    ------
    RequestError
        Names the step's kind, the fold and the first stimulus.
    """
    for kind, trained in _frozen_training(pipeline):
        for number, (_, test) in enumerate(splits):
            if len(shared := np.intersect1d(ids[test].astype(str), trained)):
                raise RequestError(
                    f"Fold {number} would score {len(shared)} stimuli that the frozen {kind} was fitted on, first "
                    f"{str(shared[0])!r}. Freeze one that was fitted on other stimuli, or let it be fitted inside the "
                    "folds (leave FrozenEstimator out)."
                )


def _frozen_training(pipeline: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield kind and training ids of everything frozen that says what it was fitted on.

    Whatever a parameter holds may be used, such as the candidates of a search; and whatever a frozen estimator
    holds was fitted, such as the best estimator of a search or the steps of a union.
    """
    for part in estimators_in(pipeline, lambda estimator: estimator.get_params(deep=False)):
        if isinstance(part, FrozenEstimator):
            for fitted in estimators_in(part.estimator, vars):
                if "training_ids_" in vars(fitted):
                    yield type(fitted).__name__, np.asarray(fitted.training_ids_).astype(str)
