"""Ridge regression of dissimilarities on predictors of pairs, by products with the predictors alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from sklearn.exceptions import ConvergenceWarning

Product = Callable[[np.ndarray], np.ndarray]

_ROUNDING = 64 * np.finfo(np.float64).eps  # of the largest value: nothing new is left in a direction


def ridge_path(
    product: Product, y: np.ndarray, penalties: np.ndarray, *, tol: float = 1e-7, max_steps: int = 500
) -> np.ndarray:
    """Solve ``(K + penalty I) a = y`` for every penalty at once.

    With ``K = Z Z'`` the weights of the predictors Z are ``w = Z' a``, the minimum of
    ``||y - Z w||² + penalty ||w||²``. Lanczos' method finds an orthonormal basis in which K is tridiagonal, and
    one eigendecomposition of that small matrix solves for all penalties. K is only ever multiplied by a vector.
    The basis is orthogonalised twice in each step, so that the solution is exact after as many steps as K
    has different eigenvalues.

    Parameters
    ----------
    product : callable (n_pairs,) -> (n_pairs,)
        Multiply by K, symmetric without negative eigenvalues.
    y : ndarray of shape (n_pairs,)
    penalties : ndarray of shape (n_penalties,)
        > 0.
    tol : float
        Largest residual that is accepted, relative to the length of y.
    max_steps : int

    Returns
    -------
    dual : ndarray of shape (n_pairs, n_penalties)

    Warns
    -----
    ConvergenceWarning
        The residual of the smallest penalty is still larger after `max_steps`.

    References
    ----------
    Golub & Van Loan (2013), Matrix Computations, sections 10.1 and 11.3.
    """
    length = np.linalg.norm(y)
    if length == 0:
        return np.zeros((len(y), len(penalties)))
    basis = np.empty((min(max_steps, len(y)), len(y)))
    basis[0] = y / length
    diagonal, beside = np.zeros(len(basis)), np.zeros(len(basis))
    for step in range(len(basis)):
        onward = product(basis[step])
        diagonal[step] = basis[step] @ onward
        known = basis[: step + 1]
        for _ in range(2):
            onward -= known.T @ (known @ onward)
        beside[step] = np.linalg.norm(onward)
        small = _tridiagonal_solutions(diagonal[: step + 1], beside[:step], penalties)
        residual = beside[step] * np.abs(small[-1]).max()
        if residual <= tol or beside[step] <= _ROUNDING * diagonal.max() or step + 1 == len(y):
            break
        if step + 1 < len(basis):
            basis[step + 1] = onward / beside[step]
    else:
        warnings.warn(
            f"The solution for penalty {penalties.min():.3g} has a residual of {residual:.1g} after {len(basis)} "
            f"steps, more than {tol:.1g}. Leave out the smallest penalties.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return length * (known.T @ small)


def _tridiagonal_solutions(diagonal: np.ndarray, beside: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Solve ``(T + penalty I) x = e_1``: ndarray of shape (n_steps, n_penalties)."""
    from scipy.linalg import eigh_tridiagonal  # slow to import, and loading a run needs none

    values, vectors = eigh_tridiagonal(diagonal, beside)
    return vectors @ (vectors[0][:, None] / (values[:, None].clip(0) + penalties))


def non_negative_ridge(gram: np.ndarray, right: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Minimise ``w' G w / 2 - w' b + penalty w' w / 2`` over weights that are not negative, exactly.

    Solved from the largest penalty to the smallest, each from the free weights of the one before it.

    Parameters
    ----------
    gram : ndarray of shape (n_predictors, n_predictors), float64
        ``G = Z' Z``.
    right : ndarray of shape (n_predictors,)
        ``b = Z' y``.
    penalties : ndarray of shape (n_penalties,)
        > 0, so that there is one solution.

    Returns
    -------
    weights : ndarray of shape (n_predictors, n_penalties)
    """
    weights = np.zeros((len(right), len(penalties)))
    free = np.zeros(len(right), dtype=bool)
    for place in np.argsort(penalties)[::-1]:
        weights[:, place], free = _principal_pivoting(gram, right, penalties[place], free)
    return weights


def _principal_pivoting(
    gram: np.ndarray, right: np.ndarray, penalty: float, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Exchange all weights of the wrong sign at once, or one at a time where that does not help.

    References
    ----------
    Kim & Park (2011), Fast nonnegative matrix factorization: an active-set-like method, SIAM J. Sci. Comput. 33,
    algorithm 1.
    """
    from scipy.linalg import cho_factor, cho_solve  # slow to import, and loading a run needs none

    rounding = _ROUNDING * np.abs(right).max(initial=0) * np.sqrt(len(right))
    fewest, patience = len(right) + 1, 3
    while True:
        weights = np.zeros(len(right))
        own = np.flatnonzero(free)
        if len(own):
            system = gram[np.ix_(own, own)]
            system[np.diag_indices(len(own))] += penalty
            weights[own] = cho_solve(cho_factor(system, overwrite_a=True), right[own])
        slope = gram[:, own] @ weights[own] - right
        wrong = np.flatnonzero(np.where(free, weights < 0, slope < -rounding))
        if not len(wrong):
            return weights, free
        if len(wrong) < fewest:
            fewest, patience = len(wrong), 3
        elif patience:
            patience -= 1
        else:
            wrong = wrong[-1:]
        free = free.copy()
        free[wrong] = ~free[wrong]
