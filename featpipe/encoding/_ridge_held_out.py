"""Held-out predictions of ridge, with penalties searched anew in every fold, from one Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from featpipe.encoding._encoder import RidgeEncoder
from featpipe.encoding._folds import check_enough, inner_splits, present_splits
from featpipe.encoding._gram import GramStatistics
from featpipe.encoding._penalties import given_penalties, search_penalties
from featpipe.encoding._ridge import (
    Split,
    batches,
    best_penalties,
    cross_validated_scores,
    missing_patterns,
)


def is_plain_search(estimator: Any) -> bool:
    """Say whether `ridge_held_out` solves an encoder: K folds, a penalty per target, on the processor."""
    if type(estimator) is not RidgeEncoder or isinstance(estimator.cv, str):
        return False
    usual = {"penalty": "target", "device": "cpu", "search_precision": "exact"}
    given = {name: value for name, value in estimator.get_params(deep=False).items() if name in usual}
    return all(isinstance(value, str) and value == usual[name] for name, value in given.items())


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

    Equal to cloning and fitting the encoder for every fold. Penalties are chosen on the fold's own training stimuli,
    in folds of these; the features are multiplied once for all folds of all folds.

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
        inner = [] if estimator.alpha is not None else _inner(estimator, Y, train, groups)
        predicted = np.empty((len(test), Y.shape[1]), dtype=X.dtype)
        for targets, present in missing_patterns(Y[train]):
            local = present[gram.weight[train[present]] > 0]
            check_enough(local, targets)
            folds = [(train[a], train[b]) for a, b in present_splits(inner, local, targets)] if inner else []
            chosen = Y if len(targets) == Y.shape[1] else Y[:, targets]
            alpha = _penalties(estimator, gram, chosen, targets, folds, Y.shape[1])
            predicted[:, targets] = _predictions(
                gram, chosen, alpha, train[local], test, estimator.target_batch
            )
        yield predicted


def _inner(estimator: RidgeEncoder, Y: np.ndarray, train: np.ndarray, groups: np.ndarray | None):
    return inner_splits(estimator.cv, train, Y[train], None if groups is None else groups[train])


def _penalties(estimator, gram, Y, targets, folds, n_targets) -> np.ndarray:
    if estimator.alpha is not None:
        return given_penalties(estimator.alpha, n_targets)[targets]
    alphas = search_penalties(estimator.alphas)
    scores = cross_validated_scores(
        gram, Y, alphas, folds, scoring=estimator.scoring, target_batch=estimator.target_batch
    )
    return best_penalties(scores, alphas)[0]


def _predictions(
    gram: GramStatistics, Y: np.ndarray, alpha: np.ndarray, rows: np.ndarray, test: np.ndarray, target_batch
) -> np.ndarray:
    """Return predictions of ridge fitted to `rows` for `test`, without its coefficients."""
    subset = gram.decompose(rows)
    projected = subset.project(test)  # (n_test, rank)
    share = gram.weight[rows] / gram.weight[rows].sum()
    predicted = np.empty((len(test), Y.shape[1]))
    for part in batches(Y.shape[1], target_batch):
        response = Y[rows, part].astype(np.float64)
        offset = share @ response if gram.center else np.zeros(response.shape[1])
        latent = subset.decomposition.left.T @ (response - offset)
        predicted[:, part] = projected @ (subset.decomposition.shrink(alpha[part]) * latent) + offset
    return predicted
