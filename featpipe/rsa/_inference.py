"""How good a model of RDMs could be: noise ceilings; and p-values corrected for their number."""

from __future__ import annotations

import numpy as np

from featpipe.errors import RequestError
from featpipe.rsa._rdms import RDMs
from featpipe.rsa._scores import (
    check_is_rdms,
    known_mean,
    over_times,
    rdm_ceiling,
    rdm_ceiling_lower,
    target_columns,
)
from featpipe.rsa._similarity import find_method, similarity

CORRECTIONS = ("fdr", "holm", "bonferroni", "none")


def noise_ceilings(data: RDMs, method: str = "spearman") -> tuple[np.ndarray, np.ndarray]:
    """Return the ceilings of `compare`, lower and upper, per target: each ndarray of shape (n_targets,).

    The upper one compares each RDM with the pooled RDM of its target, the lower one leaves the RDM's subject
    out of the pool. RDMs are pooled so that the pool fares best: means of ranks (Spearman, Kendall, rho-a), of
    z-scores (Pearson) or of RDMs of length one (cosine), within stimulus sets and times. For Kendall's tau this
    is only nearly the best. These are rsatoolbox's ceilings of the signed comparison; those of the Algonauts
    challenge, of rho² and from raw means, are in `official_noise_ceilings`.

    References
    ----------
    Nili et al. (2014), "A toolbox for representational similarity analysis", section "Noise ceiling".
    """
    find_method(method)
    check_is_rdms(data)
    found = []
    for leave_out in (True, False):
        values = np.array([_pooled(part, data, method, leave_out) for _, part in data.split_sets()])
        found.append(_target_means(known_mean(values, axis=0), data))
    return found[0], found[1]


def official_noise_ceilings(data: RDMs) -> tuple[np.ndarray, np.ndarray]:
    """Return the ceilings of rho² of the Algonauts challenge, lower and upper, per target.

    ``mean_s Spearman(d_s, mean of raw RDMs)²``, see `rdm_ceiling` and `rdm_ceiling_lower`: each ndarray of shape
    (n_targets,). The challenge's own constants are the upper ones.
    """
    check_is_rdms(data)
    mean = data.mean()
    columns = target_columns(data).values()
    lower, upper = (
        np.array([known_mean(ceiling(data, mean)[c], axis=0) for c in columns])
        for ceiling in (rdm_ceiling_lower, rdm_ceiling)
    )
    return lower, upper


def correct_p(p: np.ndarray, correction: str = "fdr") -> np.ndarray:
    """Correct p-values for their number; NaN stay NaN and are not counted.

    Parameters
    ----------
    p : ndarray of any shape
    correction : {"fdr", "holm", "bonferroni", "none"}
    """
    from scipy.stats import false_discovery_control  # slow to import

    check_choice("correction", correction, CORRECTIONS)
    known = ~np.isnan(p)
    values, corrected = p[known], np.full(p.shape, np.nan)
    if correction == "fdr" and len(values):
        corrected[known] = false_discovery_control(values)
    elif correction == "holm":
        order = np.argsort(values)
        steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
        corrected[known] = np.minimum(1, steps[np.argsort(order)])
    else:
        corrected[known] = np.minimum(1, values * (len(values) if correction == "bonferroni" else 1))
    return corrected


def check_choice(name: str, given: str, choices: tuple[str, ...]) -> None:
    """Refuse an option that is not offered."""
    if given not in choices:
        raise RequestError(f"{name} is {given!r}; choose from {', '.join(choices)}.")


def _pooled(part: RDMs, data: RDMs, method: str, leave_out: bool) -> np.ndarray:
    """Compare each RDM of one stimulus set with the pool of its target and time: shape (n_rdms,)."""
    vectors = part.upper().astype(np.float64)
    pool = _poolable(part, vectors, method)
    targets, subjects, times = (
        np.array(labels) for labels in (data.targets, data.subjects, data.times or [0] * data.n_rdms)
    )
    found = np.full(data.n_rdms, np.nan)
    for row in range(data.n_rdms):
        others = (targets == targets[row]) & (times == times[row])
        others &= (subjects != subjects[row]) if leave_out else True
        mean = known_mean(pool[others], axis=0)
        found[row] = similarity(mean[None], vectors[[row]], method)[0, 0]
    return over_times(found, data)


def _poolable(part: RDMs, vectors: np.ndarray, method: str) -> np.ndarray:
    if method == "pearson":
        return part.zscore().upper()
    if method == "cosine":
        known = np.where(np.isnan(vectors), 0, vectors)
        count = np.maximum(1, (~np.isnan(vectors)).sum(axis=1, keepdims=True))
        size = np.sqrt((known**2).sum(axis=1, keepdims=True) / count)
        return np.divide(vectors, size, out=vectors.copy(), where=size > 0)
    return part.rank().upper()


def _target_means(values: np.ndarray, data: RDMs) -> np.ndarray:
    return np.array([known_mean(values[columns], axis=0) for columns in target_columns(data).values()])
