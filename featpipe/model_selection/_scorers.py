"""Names of scores: a scalar scorer for scikit-learn's searches, a function per target for `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import sklearn
from sklearn.metrics import get_scorer as sklearn_scorer
from sklearn.metrics import make_scorer

from featpipe.errors import RequestError
from featpipe.metrics import METRICS, pearson_r, r2

Metric = Callable[..., np.ndarray]


def mean_pearson_r(y_true, y_pred) -> float:
    """Return the mean over targets of `featpipe.metrics.pearson_r`."""
    return float(pearson_r(y_true, y_pred).mean())


def mean_r2(y_true, y_pred) -> float:
    """Return the mean over targets of `featpipe.metrics.r2`."""
    return float(r2(y_true, y_pred).mean())


def mean_rdm_rho(y_true, y_pred) -> float:
    """Return the mean over subjects of `featpipe.rsa.rdm_rho`, which has a sign."""
    from featpipe.rsa import rdm_rho

    return float(np.nanmean(rdm_rho(y_true, y_pred)))


_USUAL = ("pearson_r", "r2")
_USUAL_OF_RDMS = ("rdm_rho", "rdm_r2", "rdm_percent")
_MEANS = {"pearson_r": mean_pearson_r, "r2": mean_r2, "rdm_rho": mean_rdm_rho}


def score_targets(metrics: Mapping[str, Metric], y_true, y_pred, **weight) -> dict[str, np.ndarray]:
    """Return every metric for every target, NaN for targets with fewer than two responses here.

    A target that was not measured on the held-out stimuli of a fold has no score there. Zero would count it as
    one that cannot be predicted.

    Parameters
    ----------
    metrics : mapping of name to function, see `get_metrics`
    y_true : array of shape (n_stimuli, n_targets) or (n_stimuli,), or an object that only the metrics know
    y_pred : of the same kind
    **weight : ``sample_weight``, where the scores are weighted

    Returns
    -------
    dict of name to ndarray of shape (n_targets,)
    """
    scores = {name: np.atleast_1d(metric(y_true, y_pred, **weight)) for name, metric in metrics.items()}
    if not hasattr(y_true, "__array__"):
        return scores
    measured = np.atleast_1d((~np.isnan(np.asarray(y_true, dtype=np.float64))).sum(axis=0))
    return {name: np.where(measured < 2, np.nan, values) for name, values in scores.items()}


def mean_over_folds(scores: np.ndarray) -> np.ndarray:
    """Return the mean over the folds in which a target has a score.

    Parameters
    ----------
    scores : ndarray of shape (n_folds, n_targets)

    Returns
    -------
    mean : ndarray of shape (n_targets,)
        NaN where no fold has one.
    """
    known = ~np.isnan(scores)
    counts = known.sum(axis=0)
    total = np.where(known, scores, 0.0).sum(axis=0)
    return np.divide(total, counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def own_score(estimator, X, y) -> float:
    """Return the estimator's own score: the default of a search, unweighted."""
    with sklearn.config_context(enable_metadata_routing=False):  # Pipeline.score would route weights of None
        return estimator.score(X, y)


def get_scorer(scoring):
    """Return a scorer for ``GridSearchCV(scoring=…)``: a scalar, the mean over targets.

    Parameters
    ----------
    scoring : {"pearson_r", "r2", "rdm_rho"}, any name that scikit-learn knows, or a scorer

    Returns
    -------
    scorer : callable (estimator, X, y) -> float
        Ours can be pickled and take no sample weights: searches are scored unweighted.

    Raises
    ------
    RequestError
        A squared correlation of RDMs: it would choose a model of the wrong sign.
    """
    if isinstance(scoring, str) and scoring in _MEANS:
        return make_scorer(_MEANS[scoring])
    if isinstance(scoring, str) and scoring.startswith("rdm_"):
        raise RequestError(
            f"A search cannot look at {scoring!r}. Squares reward RDMs of the wrong sign: choose 'rdm_rho', the signed "
            "mean correlation."
        )
    return sklearn_scorer(scoring)


def get_metrics(
    scoring: str | Sequence[str] | Mapping[str, Metric] | None, *, rdms: bool | None = None
) -> dict[str, Metric]:
    """Return functions ``(y_true, y_pred, sample_weight=None) -> (n_targets,)`` by name.

    Parameters
    ----------
    scoring : name, sequence of names, or mapping of names to functions
        Names are "pearson_r" and "r2" for responses, those of `featpipe.rsa.RDM_METRICS` for RDMs. None takes
        what is usual for what is scored.
    rdms : bool, optional
        Whether RDMs are scored; metrics of the other kind are then unknown. Metrics of both by default.
    """
    if isinstance(scoring, Mapping):
        return dict(scoring)
    known = _known(rdms)
    if scoring is None:
        scoring = _USUAL_OF_RDMS if rdms else _USUAL
    names = [scoring] if isinstance(scoring, str) else list(scoring)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = f"Unknown metric {unknown[0]!r}" if unknown else "No metric was given"
        raise RequestError(
            f"{what}. Choose from {', '.join(known)}, or pass a mapping of names to functions "
            "(y_true, y_pred, sample_weight=None) that return one score per target."
        )
    return {name: known[name] for name in names}


def _known(rdms: bool | None) -> dict[str, Metric]:
    if rdms is False:
        return dict(METRICS)
    try:
        from featpipe.rsa import RDM_METRICS
    except ImportError:
        return dict(METRICS)
    return dict(RDM_METRICS) if rdms else {**METRICS, **RDM_METRICS}
