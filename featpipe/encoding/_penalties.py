"""Penalties as users give them."""

from __future__ import annotations

import numpy as np

from featpipe.errors import RequestError


def given_penalties(alpha, n_targets: int) -> np.ndarray:
    """Return one penalty for every target, (n_targets,), from a scalar or as many values."""
    try:
        given = np.asarray(alpha, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RequestError(f"alpha must be a number, or one for each target, got {alpha!r}.") from error
    if given.ndim > 1 or given.size not in (1, n_targets):
        raise RequestError(
            f"alpha has shape {given.shape}, but there are {n_targets} targets; give one number, or one for "
            "each target."
        )
    if not np.all(np.isfinite(given)) or np.any(given < 0):
        raise RequestError(
            f"Penalties must be finite and >= 0, got alpha from {given.min()} to {given.max()}."
        )
    return np.broadcast_to(given.ravel(), (n_targets,)).copy()


def search_penalties(alphas) -> np.ndarray:
    """Return the penalties to choose from as an array, (n_alphas,)."""
    given = np.atleast_1d(np.asarray(alphas))
    candidates = given.astype(np.float64) if given.dtype.kind in "fiu" else np.array([])
    if candidates.ndim != 1 or not candidates.size or not np.all(np.isfinite(candidates) & (candidates > 0)):
        raise RequestError(
            f"alphas must be a list of finite penalties > 0, got {alphas!r}. For alpha = 0 give alpha itself."
        )
    return candidates


def penalty_groups(penalty, n_targets: int) -> np.ndarray | None:
    """Return a number per target, equal where targets share a penalty, (n_targets,); None for one each."""
    if isinstance(penalty, str):
        if penalty not in ("target", "shared"):
            raise RequestError(f"penalty must be 'target', 'shared' or a label per target, got {penalty!r}.")
        return None if penalty == "target" else np.zeros(n_targets, dtype=np.int64)
    labels = np.asarray(penalty)
    if labels.shape != (n_targets,):
        raise RequestError(
            f"penalty has shape {labels.shape}, but there are {n_targets} targets; give one label for each."
        )
    return np.unique(labels, return_inverse=True)[1]


def shared_penalties(
    scores: np.ndarray, alphas: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return for every target the penalty of the best mean score in its group, and its own score there.

    Parameters
    ----------
    scores : ndarray of shape (n_alphas, n_targets)
    alphas : ndarray of shape (n_alphas,)
    groups : ndarray of int, shape (n_targets,)
        Numbers from 0 up.

    Returns
    -------
    alpha, score : ndarray of shape (n_targets,)
    """
    total = np.stack([np.bincount(groups, weights=row) for row in scores])
    order = np.argsort(alphas)[::-1]  # the largest of equally good ones
    best = order[np.argmax(total[order], axis=0)][groups]
    return np.asarray(alphas)[best], scores[best, np.arange(len(groups))]
