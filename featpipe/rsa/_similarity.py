"""How alike vectors of dissimilarities are, every row of one array against every row of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from featpipe.errors import RequestError
from featpipe.rsa._ranks import is_flat, ranks, unit_ranks, unit_rows

MIN_PAIRS = 3  # two pairs always correlate perfectly


class Method(NamedTuple):
    """A way to compare: what is done to vectors on their own, (n, n_pairs), and then to two such arrays."""

    prepare: Callable[[np.ndarray], np.ndarray]
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray]


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
    return comparison_with(b, method)(a)


def comparison_with(b: np.ndarray, method: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function ``a -> similarity(a, b, method)``, which prepares b once for all complete a."""
    prepare, compare = find_method(method)
    groups = [(rows, known, b[np.ix_(rows, known)]) for rows, known in known_pairs(b)]
    prepared = [prepare(part) if part.shape[1] >= MIN_PAIRS else part for _, _, part in groups]

    def against(a: np.ndarray) -> np.ndarray:
        values = np.full((len(a), len(b)), np.nan)
        for rows_a, known_a in known_pairs(a):
            for (rows_b, known_b, part), whole in zip(groups, prepared, strict=True):
                both = known_a & known_b
                if both.sum() < MIN_PAIRS:
                    continue
                of_b = whole if both.sum() == part.shape[1] else prepare(part[:, both[known_b]])
                values[np.ix_(rows_a, rows_b)] = compare(prepare(_part(a, rows_a, both)), of_b)
        return values

    return against


def find_method(name: str) -> Method:
    """Return a method of comparison by name."""
    if name not in METHODS:
        raise RequestError(f"There is no way {name!r} to compare RDMs; choose from {', '.join(METHODS)}.")
    return METHODS[name]


def known_pairs(vectors: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield groups of rows that have the same pairs, as (rows, known pairs of shape (n_pairs,))."""
    with np.errstate(over="ignore", invalid="ignore"):
        complete = not np.isnan(vectors.sum())  # one NaN makes the sum NaN
    if complete:
        yield np.arange(len(vectors)), np.ones(vectors.shape[1], dtype=bool)
        return
    known = ~np.isnan(vectors)
    groups: dict[bytes, list[int]] = {}
    for row, packed in enumerate(np.packbits(known, axis=1)):
        groups.setdefault(packed.tobytes(), []).append(row)
    for rows in groups.values():
        yield np.array(rows), known[rows[0]]


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.clip(a @ b.T, -1, 1)


def _standard(vectors: np.ndarray) -> np.ndarray:
    """Return centred rows of length one; 0 where constant."""
    centred = vectors - vectors.mean(axis=1, keepdims=True, dtype=np.float64)
    centred[is_flat(vectors)] = 0
    return unit_rows(centred)


def _direction(vectors: np.ndarray) -> np.ndarray:
    return unit_rows(vectors.astype(np.float64))


def _fractions(vectors: np.ndarray) -> np.ndarray:
    """Return centred ranks over the length that they have without ties.

    Dot products are then ``12 Σ r_a r_b / (m³ - m)``, the expectation of Spearman's rho when ties are broken at
    random (Schütt et al. 2023, "Statistical inference on representational geometries", rank correlations).
    """
    m = vectors.shape[1]
    return (ranks(vectors) - (m + 1) / 2) * np.sqrt(12 / (m**3 - m))


def _concordance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([[_tau_a(x, y) for y in b] for x in a]).reshape(len(a), len(b))


def _tau_a(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-a of two vectors, ``(concordant - discordant) / all``, by merge sort."""
    from scipy.stats import kendalltau  # slow to import

    total = len(x) * (len(x) - 1) / 2
    untied_x, untied_y = (total - _tied_pairs(values) for values in (x, y))
    if not untied_x or not untied_y:
        return 0.0
    # scipy divides the same difference by what is untied in x and in y (tau-b)
    tau_b = kendalltau(x, y, method="asymptotic").statistic
    return float(tau_b * np.sqrt(untied_x / total) * np.sqrt(untied_y / total))


def _tied_pairs(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float((counts * (counts - 1) // 2).sum())


METHODS = {
    "spearman": Method(unit_ranks, _dot),
    "pearson": Method(_standard, _dot),
    "cosine": Method(_direction, _dot),
    "rho_a": Method(_fractions, _dot),
    "kendall": Method(ranks, _concordance),
}


def _part(vectors: np.ndarray, rows: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    if len(rows) == len(vectors) and pairs.all():
        return vectors
    return vectors[np.ix_(rows, pairs)]
