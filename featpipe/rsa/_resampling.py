"""Comparisons of RDMs after stimuli were drawn with replacement, without ranking anything anew.

A stimulus drawn k times and another drawn l times make k·l equal pairs, so a bootstrap of stimuli is a weight
per pair. Ranks under weights follow from the order of the pairs, which is found once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from featpipe.rsa._ranks import unit_rows
from featpipe.rsa._similarity import MIN_PAIRS, find_method, known_pairs


def pair_weights(n_stimuli: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw stimuli with replacement n times: how often each pair is drawn, ndarray of shape (n, n_pairs).

    Pairs of a stimulus with itself are not counted.
    """
    first, second = np.triu_indices(n_stimuli, 1)
    drawn = rng.multinomial(n_stimuli, np.full(n_stimuli, 1 / max(1, n_stimuli)), size=n)
    return drawn[:, first] * drawn[:, second]


def weighted_similarity(
    a: np.ndarray, b: np.ndarray, weights: np.ndarray, method: str = "spearman"
) -> np.ndarray:
    """Compare rows of dissimilarities with every pair repeated as often as each row of weights says.

    Equal to `similarity` of the repeated pairs.

    Parameters
    ----------
    a : ndarray of shape (n_a, n_pairs)
    b : ndarray of shape (n_b, n_pairs)
    weights : ndarray of int, shape (n_draws, n_pairs)
    method : as in `similarity`

    Returns
    -------
    values : ndarray of shape (n_draws, n_a, n_b)
    """
    values = np.full((len(weights), len(a), len(b)), np.nan)
    patterns_a = list(known_pairs(a))
    for rows_b, known_b in known_pairs(b):
        for rows_a, known_a in patterns_a:
            both = known_a & known_b
            compare = _comparison(a[np.ix_(rows_a, both)], b[np.ix_(rows_b, both)], method)
            for draw, weight in enumerate(weights[:, both]):
                if np.count_nonzero(weight) >= MIN_PAIRS:
                    values[draw][np.ix_(rows_a, rows_b)] = compare(weight)
    return values


def _comparison(a: np.ndarray, b: np.ndarray, method: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function of a draw's weights, (n_pairs,) to (n_a, n_b)."""
    once, compare = find_method(method)
    if method not in _PREPARED:
        return lambda weight: compare(*(once(np.repeat(part, weight, axis=1)) for part in (a, b)))
    prepare, finish = _PREPARED[method]
    of_a, of_b = prepare(a), prepare(b)
    return lambda weight: finish(of_a(weight), of_b(weight), weight)


def _ranked(vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from weights to centred ranks under them, times the root of the weights."""
    order = np.argsort(vectors, axis=1)
    before, after = _tie_bounds(np.take_along_axis(vectors, order, axis=1), order)

    def under(weight: np.ndarray) -> np.ndarray:
        counted = np.zeros((len(vectors), vectors.shape[1] + 1))
        np.cumsum(weight[order], axis=1, out=counted[:, 1:])
        below, upto = np.take_along_axis(counted, before, 1), np.take_along_axis(counted, after, 1)
        ranks = (below + upto) / 2  # the mean rank of the tied, less 1/2
        return (ranks - weight.sum() / 2) * np.sqrt(weight)

    return under


def _tie_bounds(ordered: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many values lie below each one, and how many up to it and its ties."""
    before, after = np.empty_like(order), np.empty_like(order)
    for row, (values, places) in enumerate(zip(ordered, order, strict=True)):
        starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
        sizes = np.diff(np.r_[starts, len(values)])
        before[row, places] = np.repeat(starts, sizes)
        after[row, places] = np.repeat(starts + sizes, sizes)
    return before, after


def _centred(vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    def under(weight: np.ndarray) -> np.ndarray:
        mean = vectors @ weight / weight.sum()
        return (vectors - mean[:, None]) * np.sqrt(weight)

    return under


def _raw(vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda weight: vectors * np.sqrt(weight)


def _cosine(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.clip(unit_rows(a) @ unit_rows(b).T, -1, 1)


def _rho_a(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    m = float(weight.sum())
    return a @ b.T * (12 / (m**3 - m))


_PREPARED = {
    "spearman": (_ranked, _cosine),
    "pearson": (_centred, _cosine),
    "cosine": (_raw, _cosine),
    "rho_a": (_ranked, _rho_a),
}
