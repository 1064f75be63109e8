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


def non_negative_ridge(
    gram: np.ndarray, right: np.ndarray, penalties: np.ndarray, *, max_iter: int = 1000
) -> np.ndarray:
    """Minimise ``w' G w / 2 - w' b + penalty w' w / 2`` over weights that are not negative.

    Solved from the largest penalty to the smallest, each from the solution before it, by L-BFGS-B.

    Parameters
    ----------
    gram : ndarray of shape (n_predictors, n_predictors), float64
        ``G = Z' Z``.
    right : ndarray of shape (n_predictors,)
        ``b = Z' y``.
    penalties : ndarray of shape (n_penalties,)
    max_iter : int

    Returns
    -------
    weights : ndarray of shape (n_predictors, n_penalties)

    Warns
    -----
    ConvergenceWarning
    """
    from scipy.optimize import minimize

    weights = np.zeros((len(right), len(penalties)))
    start = np.zeros(len(right))
    scale = np.abs(right).max() or 1.0
    unsolved = []
    for place in np.argsort(penalties)[::-1]:
        penalty = penalties[place]

        def objective(w: np.ndarray, penalty: float = penalty) -> tuple[float, np.ndarray]:
            pulled = gram @ w + penalty * w
            return float(w @ pulled / 2 - w @ right) / scale, (pulled - right) / scale

        found = minimize(
            objective,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None)] * len(right),
            options={"maxiter": max_iter, "maxfun": 10 * max_iter, "ftol": 1e-14, "gtol": 1e-8, "maxcor": 30},
        )
        unsolved += [penalty] if found.status == 1 else []
        weights[:, place] = start = found.x
    if unsolved:
        warnings.warn(
            f"Non-negative weights did not settle in {max_iter} iterations for penalties {min(unsolved):.3g} to "
            f"{max(unsolved):.3g}; leave out the smallest penalties.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return weights
