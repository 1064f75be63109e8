"""Penalties as users give them."""

from __future__ import annotations

import numpy as np

from featpipe.errors import RequestError


def given_penalties(alpha, n_targets: int) -> np.ndarray:
    """Return one penalty for every target, (n_targets,), from a scalar or as many values."""
    given = np.asarray(alpha, dtype=np.float64)
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
