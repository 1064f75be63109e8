"""Mixtures of bands to begin a search with."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from sklearn.utils import check_random_state

from featpipe.errors import RequestError


def first_gammas(n_iter, traces: np.ndarray, concentration, random_state) -> np.ndarray:
    """Return mixtures of the bands, the most telling first.

    All bands alike; each band at equal variance; single bands; pairs; then draws from Dirichlet distributions.
    Bands without variance have no part in them.

    Parameters
    ----------
    n_iter : int, or array of shape (n_candidates, n_bands)
        How many mixtures, or the mixtures themselves.
    traces : ndarray of shape (n_bands,)
        Sum of squares of each band's features.
    concentration : float or sequence of float
        Of the Dirichlet distributions, used in turn; small values draw mixtures of few bands.
    random_state : int, RandomState or None

    Returns
    -------
    gammas : ndarray of shape (n_candidates, n_bands)
        Rows on the simplex.

    Raises
    ------
    RequestError
        On numbers, mixtures or concentrations that are none.
    """
    live = traces > 0 if np.any(traces > 0) else np.ones(len(traces), dtype=bool)
    if not isinstance(n_iter, int | np.integer):
        return _given(n_iter, len(traces))
    if n_iter < 1:
        raise RequestError(f"n_iter must be an int >= 1 or an array of mixtures, got {n_iter!r}.")
    n_live = int(live.sum())
    if n_live == 1:
        return live[None, :].astype(np.float64)
    ordered = [_alike(n_live), _alike_in_variance(traces[live]), np.eye(n_live), _pairs(n_live)]
    known = np.concatenate(ordered)
    known = known[np.sort(np.unique(known.round(12), axis=0, return_index=True)[1])][:n_iter]
    drawn = dirichlet_gammas(n_iter - len(known), n_live, concentration, random_state)
    gammas = np.zeros((n_iter, len(traces)))
    gammas[:, live] = np.concatenate([known, drawn])
    return gammas


def dirichlet_gammas(n_draws: int, n_bands: int, concentration, random_state) -> np.ndarray:
    """Draw mixtures, one concentration after the other: ndarray of shape (n_draws, n_bands)."""
    given = np.atleast_1d(np.asarray(concentration, dtype=np.float64))
    if given.ndim != 1 or not given.size or not np.all(np.isfinite(given) & (given > 0)):
        raise RequestError(
            f"concentration must be a number > 0 or a list of such numbers, got {concentration!r}."
        )
    rng = check_random_state(random_state)
    drawn = [rng.dirichlet(np.full(n_bands, given[number % len(given)])) for number in range(n_draws)]
    return np.reshape(drawn, (n_draws, n_bands))


def _alike(n_bands: int) -> np.ndarray:
    return np.full((1, n_bands), 1 / n_bands)


def _alike_in_variance(traces: np.ndarray) -> np.ndarray:
    share = traces.max() / np.where(traces > 0, traces, 1.0)
    return (share / share.sum() if np.all(traces > 0) else np.full(len(traces), 1 / len(traces)))[None, :]


def _pairs(n_bands: int) -> np.ndarray:
    pairs = np.zeros((n_bands * (n_bands - 1) // 2, n_bands))
    for row, pair in zip(pairs, combinations(range(n_bands), 2), strict=True):
        row[list(pair)] = 0.5
    return pairs


def _given(gammas, n_bands: int) -> np.ndarray:
    given = np.asarray(gammas)
    given = given.astype(np.float64) if given.dtype.kind in "fiu" else np.empty(0)
    if given.ndim != 2 or given.shape[1] != n_bands or not len(given):
        raise RequestError(
            f"n_iter must be an int >= 1 or mixtures of shape (n_candidates, {n_bands}), got {gammas!r}."
        )
    if np.any(given < 0) or not np.allclose(given.sum(axis=1), 1, atol=1e-6):
        raise RequestError(
            "Each row of n_iter must be >= 0 and add up to 1 over the bands; their common size belongs in alphas."
        )
    return given
