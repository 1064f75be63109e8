"""Convex combinations: weights on the simplex that minimise a quadratic form, for many targets at once."""

from __future__ import annotations

import numpy as np

_RIDGE = 1e-8  # of the mean diagonal: equal layers then share their weight, and every system has a solution
_TOLERANCE = 1e-12  # of the squared error: a slope smaller than this is rounding


def simplex_weights(moments: np.ndarray) -> np.ndarray:
    """Find the convex combination of predictions with the least squared error, for every target.

    Minimises ``w' S w`` over ``w >= 0, Σ w = 1`` for each target, where ``S[k, l] = Σ_i e_k[i] e_l[i]`` are inner
    products of residuals: since the weights add up to 1, ``w' S w`` is the squared error of the combination.
    An active-set method, exact up to rounding; all targets take their steps together.

    Parameters
    ----------
    moments : ndarray of shape (n_targets, n_layers, n_layers)
        S of every target, symmetric and positive semi-definite.

    Returns
    -------
    weights : ndarray of shape (n_targets, n_layers), float64
        Layers with equal residuals get equal weights; where all residuals are 0, all layers do.

    References
    ----------
    Breiman (1996), "Stacked regressions", Machine Learning 24, section 2; Lawson & Hanson (1974), "Solving least
    squares problems", chapter 23, for the method.
    """
    n_targets, n_layers = moments.shape[:2]
    S = _scaled(np.asarray(moments, dtype=np.float64))
    weights = np.zeros((n_targets, n_layers))
    weights[np.arange(n_targets), np.argmin(np.einsum("tkk->tk", S), axis=1)] = 1.0
    free = weights > 0  # layers that may have a weight
    open_ = np.arange(n_targets)
    for _ in range(10 * n_layers + 10):  # far more than are needed: a guard against cycles of rounding
        if not len(open_):
            break
        solved = _step(S[open_], weights[open_], free[open_])
        weights[open_], free[open_], done = solved
        open_ = open_[~done]
    return weights


def _scaled(S: np.ndarray) -> np.ndarray:
    """Return forms of mean diagonal 1 with a little on the diagonal."""
    size = np.einsum("tkk->t", S) / S.shape[1]
    scaled = S / np.where(size > 0, size, 1.0)[:, None, None]
    scaled += _RIDGE * np.eye(S.shape[1])
    return scaled


def _step(S: np.ndarray, weights: np.ndarray, free: np.ndarray):
    """Move every target to the optimum over its free layers, or up to where a weight becomes 0.

    Returns
    -------
    weights, free : ndarray of shape (n_open, n_layers)
    done : ndarray of bool, shape (n_open,)
    """
    goal = _optimum(S, free)
    blocked = free & (goal <= 0)
    reach = np.where(blocked, weights / np.where(blocked, weights - goal, 1.0), np.inf)
    length = np.minimum(reach.min(axis=1), 1.0)
    moved = np.where(free, weights + length[:, None] * (goal - weights), 0.0)
    stopped = blocked & (reach <= length[:, None])
    moved[stopped] = 0.0
    free = free & ~stopped
    arrived = ~stopped.any(axis=1)
    gradient = np.einsum("tkl,tl->tk", S, moved)
    level = np.einsum("tk,tk->t", moved, gradient)
    gain = np.where(free, -np.inf, level[:, None] - gradient)
    best = gain.argmax(axis=1)
    enters = arrived & (gain[np.arange(len(gain)), best] > _TOLERANCE * level)
    free[enters, best[enters]] = True
    return moved / moved.sum(axis=1, keepdims=True), free, arrived & ~enters


def _optimum(S: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Return ``S_f⁻¹ 1 / 1' S_f⁻¹ 1`` over the free layers f of each target, 0 elsewhere: (n_open, n_layers)."""
    system = np.where(free[:, :, None] & free[:, None, :], S, 0.0)
    system[:, np.arange(S.shape[1]), np.arange(S.shape[1])] += ~free
    found = np.linalg.solve(system, free[:, :, None].astype(np.float64))[:, :, 0] * free
    return found / found.sum(axis=1, keepdims=True)
