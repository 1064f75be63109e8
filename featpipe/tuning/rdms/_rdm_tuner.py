"""What tuners that are fitted to RDMs have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from featpipe.errors import RequestError
from featpipe.features._cached import as_ids
from featpipe.rsa import RDMs, rdm, rdm_rho
from featpipe.tuning._tuner import Tuner


class RDMTuner(Tuner):
    """A tuner whose target is `RDMs` of the ids; it has parameters `train_on` and `validate_on`."""

    def predict(self, X) -> RDMs:
        """Return the predicted dissimilarities of all pairs, also across stimulus sets, as one RDM."""
        check_is_fitted(self)
        ids = as_ids(X)
        return RDMs(self._dissimilarities(ids), ids, subjects=["predicted"])

    def score(self, X, y) -> float:
        """Return the mean over subjects of the signed Spearman correlation within stimulus sets."""
        check_is_fitted(self)
        measured = self._check_y(y, as_ids(X))
        return float(np.nanmean(rdm_rho(measured, self.predict(X))))

    @abstractmethod
    def _dissimilarities(self, ids: np.ndarray) -> np.ndarray:
        """Return the predicted dissimilarities of all pairs, (n_stimuli, n_stimuli)."""

    def _check_y(self, y: Any, ids: np.ndarray) -> RDMs:
        if not isinstance(y, RDMs):
            raise RequestError(
                f"{type(self).__name__} is fitted to RDMs, and y is a {type(y).__name__}. For responses use "
                "ContrastiveTuner or ResponseTuner."
            )
        if not np.array_equal(y.ids, ids):
            raise RequestError(
                f"X holds {len(ids)} ids and y {len(y)}, or they differ in order: the first of X is {ids[0]!r}, of y "
                f"{y.ids[0]!r}. Select the RDMs with y.take(ids)."
            )
        wanted = [self.train_on] if isinstance(self.train_on, str) else self.train_on
        return y if wanted is None else y.select(targets=wanted)

    def _validated(self, y: RDMs) -> RDMs:
        """Return the RDMs that choose the epoch, of those that are fitted to."""
        wanted = [self.validate_on] if isinstance(self.validate_on, str) else self.validate_on
        return y if wanted is None else y.select(targets=wanted)


def correlation_distances(features: np.ndarray) -> np.ndarray:
    """Return 1 - r of the rows of features (n_stimuli, …), (n_stimuli, n_stimuli); 1 from a constant row."""
    values = rdm(features.reshape(len(features), -1), "correlation").values[0]
    return np.where(np.isnan(values), 1.0, values)
