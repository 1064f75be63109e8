"""`fit_final`: the fit for use, after the scores are known."""

from __future__ import annotations

import numpy as np
import sklearn

from featpipe.model_selection._routing import routed, take


def fit_final(pipeline, X, Y, *, rows=None, groups=None, sample_weight=None):
    """Fit a clone of a pipeline on some stimuli, with groups and weights routed as in `evaluate`.

    Parameters
    ----------
    pipeline : estimator
    X : array of shape (n_stimuli,)
        Ids.
    Y : array of shape (n_stimuli, n_targets), or any object with ``Y[rows, ...]``
    rows : array of int, optional
        All stimuli by default.
    groups, sample_weight : array of shape (n_stimuli,), optional

    Returns
    -------
    pipeline : estimator
        Fitted.
    """
    rows = np.arange(len(X)) if rows is None else np.asarray(rows)
    fitted, wanted = routed(pipeline, {"groups": groups, "sample_weight": sample_weight})
    with sklearn.config_context(enable_metadata_routing=True):
        return fitted.fit(X[rows], Y[rows, ...], **take(wanted, rows))
