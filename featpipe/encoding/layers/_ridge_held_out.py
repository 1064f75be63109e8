"""Held-out predictions of ridge, with penalties searched anew in every fold, from one Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from featpipe.encoding._folds import check_enough, inner_splits, present_splits
from featpipe.encoding._penalties import given_penalties, search_penalties
from featpipe.encoding.ridge._closed_form import closed_form_scores
from featpipe.encoding.ridge._encoder import RidgeEncoder
from featpipe.encoding.ridge._gram import GramStatistics, Subset
from featpipe.encoding.ridge._ridge import (
    Split,
    batches,
    best_penalties,
    cross_validated_scores,
    missing_patterns,
)

_CLOSED_FORMS = ("loo", "gcv")


def is_plain_search(estimator: Any) -> bool:
    """Say whether `ridge_held_out` solves an encoder: a penalty per target, on the processor."""
    if type(estimator) is not RidgeEncoder:
        return False
    if isinstance(estimator.cv, str) and estimator.cv not in _CLOSED_FORMS:
        return False
    usual = {"penalty": "target", "device": "cpu", "search_precision": "exact"}
    given = estimator.get_params(deep=False)
    return all(isinstance(given[name], str) and given[name] == value for name, value in usual.items())


def ridge_held_out(
    estimator: RidgeEncoder,
    X: np.ndarray,
    Y: np.ndarray,
    splits: Sequence[Split],
    *,
    sample_weight: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Yield what an encoder fitted to each fold predicts for its held-out stimuli: (n_test, n_targets).

    Equal to cloning and fitting the encoder for every fold. Penalties are chosen on the fold's own training stimuli:
    in closed form from their decomposition, or in folds of these. The features are multiplied once for all folds.

    Parameters
    ----------
    estimator : RidgeEncoder
        For which `is_plain_search` is true.
    X : ndarray of shape (n_stimuli, n_features)
    Y : ndarray of shape (n_stimuli, n_targets)
        NaN where a trial is missing.
    splits : sequence of (rows to fit, rows to predict)
    sample_weight, groups : ndarray of shape (n_stimuli,), optional

    Raises
    ------
    RequestError
        As `RidgeEncoder.fit`.
    """
    gram = GramStatistics(X, weight=sample_weight, center=bool(estimator.fit_intercept))
    for train, test in splits:
        folds = _folds(estimator, Y, train, groups)
        predicted = np.empty((len(test), Y.shape[1]), dtype=X.dtype)
        for targets, present in missing_patterns(Y[train]):
            local = present[gram.weight[train[present]] > 0]
            check_enough(local, targets)
            chosen = Y if len(targets) == Y.shape[1] else Y[:, targets]
            subset = gram.decompose(train[local])
            if estimator.alpha is not None:
                alpha = given_penalties(estimator.alpha, Y.shape[1])[targets]
            else:
                kept = (
                    [(train[a], train[b]) for a, b in present_splits(folds, local, targets)] if folds else []
                )
                alpha = _chosen_penalties(estimator, subset, chosen, kept)
            predicted[:, targets] = _predictions(subset, chosen, alpha, test, estimator.target_batch)
        yield predicted


def _folds(
    estimator: RidgeEncoder, Y: np.ndarray, train: np.ndarray, groups: np.ndarray | None
) -> list[Split]:
    """Return the folds of a search among the training stimuli of a fold, none where it needs none."""
    if estimator.alpha is not None or isinstance(estimator.cv, str):
        return []
    return inner_splits(estimator.cv, train, Y[train], None if groups is None else groups[train])


def _chosen_penalties(
    estimator: RidgeEncoder, subset: Subset, Y: np.ndarray, folds: list[Split]
) -> np.ndarray:
    alphas = search_penalties(estimator.alphas)
    how = {"scoring": estimator.scoring, "target_batch": estimator.target_batch}
    if folds:
        scores = cross_validated_scores(subset.gram, Y, alphas, folds, **how)
    else:
        scores = closed_form_scores(subset, Y, alphas, method=estimator.cv, **how)
    return best_penalties(scores, alphas)[0]


def _predictions(
    subset: Subset, Y: np.ndarray, alpha: np.ndarray, test: np.ndarray, target_batch: int
) -> np.ndarray:
    """Return predictions of ridge fitted to a subset for other stimuli, without its coefficients."""
    projected = subset.project(test)  # (n_test, rank)
    share = subset.weight / subset.total
    predicted = np.empty((len(test), Y.shape[1]))
    for part in batches(Y.shape[1], target_batch):
        response = Y[subset.rows, part].astype(np.float64)
        offset = share @ response if subset.gram.center else np.zeros(response.shape[1])
        latent = subset.decomposition.left.T @ (response - offset)
        predicted[:, part] = projected @ (subset.decomposition.shrink(alpha[part]) * latent) + offset
    return predicted
