"""The search of penalties by folds, by whichever way costs least, and the solution that it ends in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from featpipe.encoding._arrays import like
from featpipe.encoding.ridge._closed_form import ClosedForm
from featpipe.encoding.ridge._deletion import Deletion, DeletionScores, pays_off
from featpipe.encoding.ridge._gram import GramStatistics, Subset
from featpipe.encoding.ridge._ridge import (
    RidgeSolution,
    Split,
    best_penalties,
    cross_validated_scores,
    ridge,
)
from featpipe.encoding.ridge._scaled import ScaledResponses, batches

Fitted = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # alpha, score, coef, intercept


def fit_by_folds(
    gram: GramStatistics,
    Y: Any,
    alphas: np.ndarray,
    splits: Sequence[Split],
    *,
    rows: np.ndarray,
    scoring: str = "r2",
    target_batch: int = 1024,
    precision: str = "exact",
    consume: bool = False,
) -> Fitted:
    """Choose penalties by K folds and solve ridge with them.

    Parameters
    ----------
    gram : GramStatistics
    Y : array of shape (n_stimuli, n_targets)
    alphas : ndarray of shape (n_alphas,)
    splits : sequence of (rows to fit, rows to score)
    rows : ndarray of int
        Stimuli of the solution, with weights > 0.
    scoring, target_batch
        As in `cross_validated_scores`.
    precision : {"exact", "reduced"}
        "reduced" scores, for every target, the penalty that generalised cross-validation finds best and its two
        neighbours, then goes on to the neighbours of the best so far (`climb`): it ends in a penalty that is better
        than both its neighbours, and equals the exact search where scores have one peak. Every score is that of the
        exact search.

    consume : bool
        Whether the Gram matrix may be used up.

    Returns
    -------
    alpha, score : ndarray of shape (n_targets,)
    coef : ndarray of shape (n_targets, n_features)
    intercept : ndarray of shape (n_targets,)
    """
    reduced = precision == "reduced" and len(alphas) > 3
    if not _from_one_decomposition(gram, splits, rows, 4 if reduced else len(alphas)):
        scores = cross_validated_scores(gram, Y, alphas, splits, scoring=scoring, target_batch=target_batch)
        alpha, score = best_penalties(scores, alphas)
        subset = gram.decompose(rows, consume=consume)
        return alpha, score, *ridge(gram, Y, alpha, subset=subset, target_batch=target_batch)
    subset = gram.decompose(rows, consume=consume)
    responses = ScaledResponses(gram, Y, rows, target_batch)
    solution = RidgeSolution(subset, responses)
    latent = _fill(solution.store(), responses, subset, target_batch)
    table = DeletionScores(Deletion(subset, splits, alphas), responses, scoring, target_batch)
    scores = _climbed(table, latent, alphas) if reduced else _complete(table, latent, alphas)
    alpha, score = best_penalties(scores, alphas)
    for part in batches(responses.n_targets, target_batch):
        solution.solve(part, responses.values(rows, part), alpha[part], latent[:, part])
    return alpha, score, *solution.finish()


def fold_scores(
    gram: GramStatistics,
    Y: Any,
    alphas: np.ndarray,
    splits: Sequence[Split],
    *,
    rows: np.ndarray,
    scoring: str = "r2",
    target_batch: int = 1024,
) -> np.ndarray:
    """Score like `cross_validated_scores`, from one decomposition of all stimuli where that costs less."""
    if not _from_one_decomposition(gram, splits, rows, len(alphas)):
        return cross_validated_scores(gram, Y, alphas, splits, scoring=scoring, target_batch=target_batch)
    subset = gram.decompose(rows)
    responses = ScaledResponses(gram, Y, rows, target_batch)
    shape = (len(subset.decomposition.eigenvalues), responses.n_targets)
    store = np.empty(shape, dtype=np.float64 if "64" in str(gram.dtype) else np.float32)
    latent = _fill(like(store, gram.weight), responses, subset, target_batch)
    return _complete(
        DeletionScores(Deletion(subset, splits, alphas), responses, scoring, target_batch), latent, alphas
    )


def climb(
    guess: np.ndarray, alphas: np.ndarray, evaluate: Callable[[int, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Score penalties around a guess until each target's best is better than its neighbours.

    Targets that nothing predicts have no clear peak: where the best is <= 0, the smallest and the largest penalty are
    tried too, and their neighbours.

    Parameters
    ----------
    guess : ndarray of int, shape (n_targets,)
        Positions in `alphas`.
    alphas : ndarray of shape (n_alphas,)
    evaluate : callable (position, targets) -> scores, of shape (n_chosen,)

    Returns
    -------
    scores : ndarray of shape (n_alphas, n_targets)
        -inf where not evaluated.
    """
    order = np.argsort(alphas)
    rank = np.argsort(order)[guess]
    scores = np.full((len(alphas), len(guess)), -np.inf)  # in order of alpha
    seen = np.zeros(scores.shape, dtype=bool)
    last = len(alphas) - 1
    wanted = _around(rank, len(alphas))
    while wanted.any():
        for place in np.flatnonzero(wanted.any(axis=1)):
            chosen = np.flatnonzero(wanted[place])
            scores[place, chosen] = evaluate(int(order[place]), chosen)
        seen |= wanted
        rank = last - np.argmax(scores[::-1], axis=0)  # the largest of equals
        wanted = _around(rank, len(alphas)) & ~seen
        if not wanted.any():
            wanted[[0, last]] = (scores.max(axis=0) <= 0) & ~seen[[0, last]]
    return scores[np.argsort(order)]


def _around(rank: np.ndarray, n_alphas: int) -> np.ndarray:
    """Mark a place and its neighbours: ndarray of bool, shape (n_alphas, n_targets)."""
    return np.abs(np.arange(n_alphas)[:, None] - rank) <= 1


def _fill(latent: Any, responses: ScaledResponses, subset: Subset, target_batch: int) -> Any:
    """Write the responses of all targets in the directions of all stimuli: (rank, n_targets)."""
    for part in batches(responses.n_targets, target_batch):
        latent[:, part] = subset.latent(responses.values(subset.rows, part))
    return latent


def _complete(table: DeletionScores, latent: Any, alphas: np.ndarray) -> np.ndarray:
    columns = np.arange(latent.shape[1])
    return np.stack([table.score(position, columns, latent) for position in range(len(alphas))])


def _climbed(table: DeletionScores, latent: Any, alphas: np.ndarray) -> np.ndarray:
    responses, subset = table.responses, table.deletion.subset
    closed = ClosedForm(subset, responses, alphas, method="gcv", scoring="r2")
    guess = np.empty(responses.n_targets, dtype=np.int64)
    for part in batches(responses.n_targets, table.target_batch):
        values = responses.values(subset.rows, part)
        guess[part] = np.argmax(closed.scores(part, values, latent[:, part]), axis=0)
    return climb(guess, alphas, lambda position, chosen: table.score(position, chosen, latent))


def _from_one_decomposition(
    gram: GramStatistics, splits: Sequence[Split], rows: np.ndarray, n_alphas: int
) -> bool:
    return np.array_equal(np.union1d(*splits[0]), np.sort(rows)) and pays_off(gram, splits, n_alphas)
