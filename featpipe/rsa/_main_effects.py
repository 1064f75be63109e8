"""Additive main effects of stimuli in RDMs: what a pair owes to each of its two stimuli alone."""

from __future__ import annotations

import numpy as np

from featpipe.errors import RequestError
from featpipe.rsa._rdms import RDMs
from featpipe.rsa._similarity import known_pairs

_ROUNDING = 64  # times the spacing of the dtype at the largest value: what is left of a pure main effect


def main_effects(vectors: np.ndarray, n_stimuli: int) -> np.ndarray:
    """Fit a value per stimulus whose sums predict the dissimilarities.

    Minimises ``Σ_{i<j} (d_ij - u_i - u_j)²`` over the pairs that are known. The mean dissimilarity is in u.
    Where the pairs do not determine u, as with two stimuli, the shortest u is returned.

    Parameters
    ----------
    vectors : ndarray of shape (n_rdms, n_pairs)
        Upper triangles row by row, NaN where a pair is missing.
    n_stimuli : int

    Returns
    -------
    effects : ndarray of shape (n_rdms, n_stimuli), float64
    """
    first, second = _pairs(vectors, n_stimuli)
    effects = np.zeros((len(vectors), n_stimuli))
    for rows, known in known_pairs(vectors):
        sums = _sums(vectors[np.ix_(rows, known)], first[known], second[known], n_stimuli)
        if known.all() and n_stimuli > 2:
            total = sums.sum(axis=1, keepdims=True) / (2 * n_stimuli - 2)
            effects[rows] = (sums - total) / (n_stimuli - 2)
        else:
            effects[rows] = sums @ _inverse(first[known], second[known], n_stimuli)
    return effects


def remove_main_effects(vectors: np.ndarray, n_stimuli: int) -> np.ndarray:
    """Return what `main_effects` leave of the dissimilarities: ndarray of shape (n_rdms, n_pairs), float64.

    Where nothing is left but rounding, exactly 0.
    """
    first, second = _pairs(vectors, n_stimuli)
    effects = main_effects(vectors, n_stimuli)
    left = vectors - effects[:, first] - effects[:, second]
    largest = np.abs(np.where(np.isnan(vectors), 0, vectors)).max(axis=1, initial=0)
    rounding = _ROUNDING * np.finfo(vectors.dtype).eps * largest
    nothing = ~(np.abs(left) > rounding[:, None]).any(axis=1)
    left[nothing] *= 0  # NaN stays
    return left


def without_main_effects(rdms: RDMs) -> RDMs:
    """Remove the additive main effects of stimuli from each RDM within each stimulus set.

    Pairs across sets stay as they are.
    """
    values = rdms.values.astype(np.float64)
    for name, part in rdms.split_sets():
        rows = np.flatnonzero(rdms.sets == name)
        residual = part.with_upper(remove_main_effects(part.upper(), len(part)))
        values[:, rows[:, None], rows] = residual.values
    return RDMs(values, rdms.ids, subjects=rdms.subjects, targets=rdms.targets, times=rdms.times)


def _pairs(vectors: np.ndarray, n_stimuli: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.triu_indices(n_stimuli, 1)
    if vectors.ndim != 2 or vectors.shape[1] != len(first):
        raise RequestError(
            f"Vectors of pairs have shape {vectors.shape}; {n_stimuli} stimuli need (n_rdms, {len(first)})."
        )
    return first, second


def _sums(values: np.ndarray, first: np.ndarray, second: np.ndarray, n_stimuli: int) -> np.ndarray:
    """Sum the dissimilarities of each stimulus: ndarray of shape (n_rdms, n_stimuli)."""
    count = [
        np.bincount(first, row, n_stimuli) + np.bincount(second, row, n_stimuli)
        for row in values.astype(np.float64)
    ]
    return np.array(count).reshape(len(values), n_stimuli)


def _inverse(first: np.ndarray, second: np.ndarray, n_stimuli: int) -> np.ndarray:
    """Invert the normal matrix: pairs of each stimulus on the diagonal, 1 for each pair that is known."""
    normal = np.zeros((n_stimuli, n_stimuli))
    np.add.at(normal, (first, second), 1)
    normal += normal.T
    np.fill_diagonal(normal, normal.sum(axis=0))
    return np.linalg.pinv(normal, hermitian=True)
