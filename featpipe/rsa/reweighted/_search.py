"""Choose penalty and shares on held-out stimuli."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from featpipe.errors import RequestError
from featpipe.rsa._rdms import RDMs
from featpipe.rsa._scores import rdm_rho
from featpipe.rsa.reweighted._problem import Pairs, Ridge
from featpipe.rsa.reweighted._target import pair_targets

Fold = tuple[np.ndarray, np.ndarray]  # rows of stimuli to fit, to score


def default_shares(kinds: Sequence[str]) -> list[tuple[float, ...]]:
    """Return each kind alone and, of several, all alike."""
    alone = [tuple(float(kind == other) for other in kinds) for kind in kinds]
    return alone if len(kinds) == 1 else [*alone, (1 / len(kinds),) * len(kinds)]


def fitted_pairs(y: RDMs, pairs: Pairs, chosen: np.ndarray, weights: Mapping[str, float], normalisation: str):
    """Return what some pairs are fitted to, and which of them have been measured.

    Dissimilarities are normalised over the chosen pairs alone, so nothing is known of the others.

    Returns
    -------
    target : ndarray of shape (n_known,)
    known : ndarray of int
        Positions of the pairs.
    """
    target = np.full(len(pairs.first), np.nan)
    for code in np.unique(pairs.stimulus_set[chosen]):
        own = chosen[pairs.stimulus_set[chosen] == code]
        rows, places = np.unique(np.concatenate([pairs.first[own], pairs.second[own]]), return_inverse=True)
        square = np.full((len(rows), len(rows)), np.nan)
        upper = np.triu_indices(len(rows), 1)
        square[upper] = pair_targets(y[rows], weights, normalisation)
        target[own] = square[tuple(np.sort(np.stack(np.split(places, 2)), axis=0))]
    known = np.flatnonzero(~np.isnan(target))
    return target[known], known


def search(
    y: RDMs,
    pairs: Pairs,
    folds: Iterable[Fold],
    candidates: Sequence[Ridge],
    alphas: np.ndarray,
    *,
    train_on: Mapping[str, float],
    select_on: Sequence[str],
    normalisation: str,
) -> np.ndarray:
    """Score every candidate and penalty by signed Spearman correlation with held-out stimuli.

    Parameters
    ----------
    y : RDMs
    pairs : Pairs
        Of the same stimuli.
    folds : iterable of (rows to fit, rows to score)
        A pair is fitted, or scored, if both of its stimuli are.
    candidates : sequence of Ridge
    alphas : ndarray of shape (n_alphas,)
    train_on : mapping of target to weight
    select_on : sequence of str
        Targets to score.
    normalisation : {"rank", "zscore"}

    Returns
    -------
    scores : ndarray of shape (n_candidates, n_alphas)
        Mean over RDMs, then over folds.

    Raises
    ------
    RequestError
        No fold has three measured pairs to score.
    """
    scores = []
    measured = y.select(targets=list(select_on))
    for train, test in folds:
        target, chosen = fitted_pairs(y, pairs, pairs.among(train), train_on, normalisation)
        held = pairs.among(test)
        if not len(chosen) or not len(held):
            continue
        found = []
        for candidate in candidates:
            with warnings.catch_warnings():  # a search may look where nothing is to be found
                warnings.simplefilter("ignore", ConvergenceWarning)
                predicted = candidate.fit(pairs, chosen, target, alphas).predict(pairs, held)
            found.append([_rho(measured, pairs, held, test, column) for column in predicted.T])
        scores.append(found)
    scores = [found for found in scores if np.isfinite(found).all()]
    if not scores:
        raise RequestError(
            "No inner fold has three measured pairs of one stimulus set to score. Use fewer folds, or give one alpha."
        )
    return np.mean(scores, axis=0)


def _rho(measured: RDMs, pairs: Pairs, held: np.ndarray, test: np.ndarray, predicted: np.ndarray) -> float:
    values = np.full((len(measured), len(measured)), np.nan)
    first, second = pairs.first[held], pairs.second[held]
    values[first, second] = values[second, first] = predicted
    rows = np.sort(test)
    names = [f"{name}#{row}" for row, name in zip(rows, measured.ids[rows], strict=True)]  # repeats apart
    part = measured[rows]
    part = RDMs(part.values, names, subjects=part.subjects, targets=part.targets, times=part.times)
    rhos = rdm_rho(part, RDMs(values[np.ix_(rows, rows)], names))
    known = rhos[np.isfinite(rhos)]
    return float(known.mean()) if len(known) else np.nan


def candidates_of(
    ridge: Ridge, kinds: Sequence[str], shares: Sequence[Sequence[float]] | None
) -> list[Ridge]:
    """Return one ridge per candidate of shares.

    Raises
    ------
    RequestError
        Shares that are not one per kind, negative, or all 0.
    """
    wanted = default_shares(kinds) if shares is None else [tuple(map(float, one)) for one in shares]
    for one in wanted:
        if len(one) != len(kinds) or min(one) < 0 or sum(one) == 0:
            raise RequestError(
                f"shares must hold tuples of {len(kinds)} numbers >= 0, not all 0, for {', '.join(kinds)}; got {one}."
            )
    extra = {kind: share for kind, share in ridge.shares.items() if kind not in kinds}
    return [
        replace(
            ridge, shares={kind: share / sum(one) for kind, share in zip(kinds, one, strict=True)} | extra
        )
        for one in wanted
    ]


def best_of(scores: np.ndarray, alphas: np.ndarray) -> tuple[int, int]:
    """Return (candidate, alpha) with the largest score; of equals the first candidate and the largest penalty."""
    order = np.argsort(alphas)[::-1]
    places = itertools.product(range(scores.shape[0]), order.tolist())
    return max(places, key=lambda place: scores[place])
