"""How alike vectors of dissimilarities are, every row of one array against every row of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from featpipe.errors import RequestError

MIN_PAIRS = 3  # two pairs always correlate perfectly
_ROUNDING = 8  # times the spacing of the dtype at the largest value: what a constant may vary by


def similarity(a: np.ndarray, b: np.ndarray, method: str = "spearman") -> np.ndarray:
    """Compare rows of dissimilarities, each two on the pairs that both have.

    Parameters
    ----------
    a : ndarray of shape (n_a, n_pairs)
        NaN where a pair is missing.
    b : ndarray of shape (n_b, n_pairs)
    method : {"spearman", "pearson", "cosine", "rho_a", "kendall"}

    Returns
    -------
    values : ndarray of shape (n_a, n_b), float64
        NaN where fewer than three pairs are left; 0 where either side is constant there.

    Raises
    ------
    RequestError
        An unknown method.
    """
    compare = similarity_function(method)
    values = np.full((len(a), len(b)), np.nan)
    patterns_a = list(known_pairs(a))
    for rows_b, known_b in known_pairs(b):
        for rows_a, known_a in patterns_a:
            both = known_a & known_b
            if both.sum() >= MIN_PAIRS:
                values[np.ix_(rows_a, rows_b)] = compare(_part(a, rows_a, both), _part(b, rows_b, both))
    return values


def similarity_function(method: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return a method's function of complete vectors, (n_a, n_pairs) and (n_b, n_pairs) to (n_a, n_b)."""
    if method not in METHODS:
        raise RequestError(f"There is no way {method!r} to compare RDMs; choose from {', '.join(METHODS)}.")
    return METHODS[method]


def known_pairs(vectors: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield groups of rows that have the same pairs, as (rows, known pairs of shape (n_pairs,))."""
    known = ~np.isnan(vectors)
    if known.all():
        yield np.arange(len(vectors)), np.ones(vectors.shape[1], dtype=bool)
        return
    groups: dict[bytes, list[int]] = {}
    for row, packed in enumerate(np.packbits(known, axis=1)):
        groups.setdefault(packed.tobytes(), []).append(row)
    for rows in groups.values():
        yield np.array(rows), known[rows[0]]


def ranks(vectors: np.ndarray) -> np.ndarray:
    """Rank the values of each row from 1 on, ties averaged: ndarray of shape (n_rows, n_pairs), float64.

    Values of a row that differ by rounding alone are all tied. There must be no NaN.
    """
    order = np.argsort(vectors, axis=1)
    ordered = np.take_along_axis(vectors, order, axis=1)
    ranked = np.empty(vectors.shape)
    np.put_along_axis(ranked, order, np.arange(1.0, vectors.shape[1] + 1)[None], axis=1)
    for row in np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1) | _is_flat(vectors)):
        ranked[row] = _tied_ranks(vectors[row])
    return ranked


def unit_ranks(vectors: np.ndarray) -> np.ndarray:
    """Return centred ranks of length one, so that a dot product is Spearman's rho; 0 where constant."""
    return unit_rows(ranks(vectors) - (vectors.shape[1] + 1) / 2)


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's r of ranks with averaged ties."""
    return np.clip(unit_ranks(a) @ unit_ranks(b).T, -1, 1)


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.clip(unit_rows(_centred(a)) @ unit_rows(_centred(b)).T, -1, 1)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.clip(unit_rows(a.astype(np.float64)) @ unit_rows(b.astype(np.float64)).T, -1, 1)


def _rho_a(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the expectation of Spearman's rho when ties are broken at random.

    ``12 Σ r_a r_b / (m³ - m)`` with centred ranks r, ties averaged (Schütt et al. 2023, eq. 15).
    """
    m = a.shape[1]
    return (ranks(a) - (m + 1) / 2) @ (ranks(b) - (m + 1) / 2).T * (12 / (m**3 - m))


def _kendall(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Kendall's tau-a, (concordant - discordant) / all pairs of pairs, by merge sort."""
    return np.array([[_tau_a(x, y) for y in b] for x in a]).reshape(len(a), len(b))


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "spearman": _spearman,
    "pearson": _pearson,
    "cosine": _cosine,
    "rho_a": _rho_a,
    "kendall": _kendall,
}


def _tau_a(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-a of two vectors, by merge sort: ``(concordant - discordant) / all``."""
    from scipy.stats import kendalltau  # slow to import

    total = len(x) * (len(x) - 1) / 2
    untied_x, untied_y = (total - _tied_pairs(values) for values in (x, y))
    if not untied_x or not untied_y:
        return 0.0
    # scipy divides the same difference by what is untied in x and in y (tau-b)
    return float(kendalltau(x, y).statistic) * np.sqrt(untied_x / total) * np.sqrt(untied_y / total)


def _tied_pairs(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float((counts * (counts - 1) // 2).sum())


def _part(vectors: np.ndarray, rows: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    if len(rows) == len(vectors) and pairs.all():
        return vectors
    return vectors[np.ix_(rows, pairs)]


def _tied_ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata  # slow to import, and most data have no ties

    return rankdata(np.zeros(len(values)) if _is_flat(values[None])[0] else values)


def _is_flat(vectors: np.ndarray) -> np.ndarray:
    """Say which rows vary by no more than rounding: ndarray of bool, shape (n_rows,)."""
    low, high = vectors.min(axis=1), vectors.max(axis=1)
    return high - low <= _ROUNDING * np.finfo(vectors.dtype).eps * np.maximum(np.abs(low), np.abs(high))


def _centred(vectors: np.ndarray) -> np.ndarray:
    centred = vectors - vectors.mean(axis=1, keepdims=True, dtype=np.float64)
    centred[_is_flat(vectors)] = 0
    return centred


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Divide each row by its length; a row of zeros stays."""
    length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
