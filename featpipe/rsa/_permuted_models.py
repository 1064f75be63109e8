"""Whether each of many models is better than chance: one permutation test of stimuli for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from featpipe.rsa._compare import with_stimuli_of
from featpipe.rsa._nulls import check_draws
from featpipe.rsa._rdms import RDMs, squares
from featpipe.rsa._scores import known_mean, over_times, target_columns
from featpipe.rsa._similarity import MIN_PAIRS, comparison_with, find_method

_BATCH_VALUES = 1 << 20  # permuted dissimilarities held at a time: 8 MiB
_ROUNDING = (
    1e-12  # scores that differ by less are equal: among few stimuli permutations repeat the observed one
)


def permuted_p(
    models: RDMs, data: RDMs, *, method: str = "spearman", n: int = 1000, seed: int = 0
) -> np.ndarray:
    """Return one-sided p of each model in each target, from permutations of the stimuli within sets.

    ``(1 + #{permuted score >= score}) / (1 + n)`` with the score of `second_order`: the mean over subjects of
    `compare`. All models, targets, subjects and times see the same permutations.

    Parameters
    ----------
    models : RDMs
        One RDM per model; must hold the stimuli of `data`, in any order.
    data : RDMs
        One RDM per target, subject and time.
    method : as in `compare`
        For ``"kendall"``, which would take hours, the test is that of ``"rho_a"``: as fair to ties, and a
        permutation test holds for whichever statistic.
    n : int
        Permutations.
    seed : int

    Returns
    -------
    p : ndarray of shape (n_models, n_targets)
        NaN where a model has no score.

    Raises
    ------
    RequestError
        As in `compare`; `n` below 1.

    References
    ----------
    Kriegeskorte, Mur & Bandettini (2008), Front. Syst. Neurosci. 2:4, section "Statistical inference".
    """
    check_draws(n)
    find_method(method)
    method = "rho_a" if method == "kendall" else method
    models = with_stimuli_of(data, models)
    complete = _complete(models) and _complete(data)
    scores = _pooled_scores if complete else _scores
    drawn = scores(models, data, method, n, np.random.default_rng(seed))  # the first one as it is
    observed, chance = drawn[0], drawn[1:]
    reached = (chance >= observed - _ROUNDING).sum(axis=0)
    return np.where(np.isnan(observed), np.nan, (1 + reached) / (1 + n))


def _complete(rdms: RDMs) -> bool:
    return not any(np.isnan(part.upper()).any() for _, part in rdms.split_sets())


def _orders(n_stimuli: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return the order as it is, then n permutations: ndarray of shape (1 + n, n_stimuli)."""
    same = np.arange(n_stimuli)
    return np.vstack([same, rng.permuted(np.tile(same, (n, 1)), axis=1)])


def _pooled_scores(models: RDMs, data: RDMs, method: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Score all permutations where no pair is missing: ndarray of shape (1 + n, n_models, n_targets).

    The similarity is then a dot product with each measured RDM, so its mean over subjects is one with their
    mean; and permuting that one is permuting every model the other way round.
    """
    prepare, _ = find_method(method)
    found = []
    for (_, part), (_, of_models) in zip(data.split_sets(), models.split_sets(), strict=True):
        orders = _orders(len(part), n, rng)
        if part.n_pairs < MIN_PAIRS:
            found.append(np.full((1 + n, models.n_rdms, len(data.target_names)), np.nan))
            continue
        pooled = _pooled(prepare(part.upper().astype(np.float64)), data)
        found.append(_dots(prepare(of_models.upper().astype(np.float64)), pooled, orders))
    return known_mean(np.array(found), axis=0)


def _pooled(vectors: np.ndarray, data: RDMs) -> np.ndarray:
    """Average (n_rdms, n_pairs) over times, then over the subjects of each target."""
    subjects = over_times(vectors.T, data)  # (n_pairs, n_measured)
    return np.stack([subjects[:, c].mean(axis=1) for c in target_columns(data).values()])


def _dots(models: np.ndarray, pooled: np.ndarray, orders: np.ndarray) -> np.ndarray:
    n_stimuli = orders.shape[1]
    flat = squares(pooled, n_stimuli).reshape(len(pooled), -1)
    batches = _places(orders, len(pooled) * models.shape[1])
    parts = [flat[:, places] @ models.T for places in batches]  # (n_targets, n_draws, n_models)
    return np.concatenate(parts, axis=1).transpose(1, 2, 0)


def _places(orders: np.ndarray, values: int) -> Iterator[np.ndarray]:
    """Yield where the pairs of some permutations lie in a flat matrix: ndarrays of shape (n_draws, n_pairs)."""
    n_stimuli = orders.shape[1]
    first, second = np.triu_indices(n_stimuli, 1)
    step = max(1, _BATCH_VALUES // max(1, values))
    for start in range(0, len(orders), step):
        some = orders[start : start + step]
        yield some[:, first] * n_stimuli + some[:, second]


def _scores(models: RDMs, data: RDMs, method: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Score all permutations, ranking models anew for the pairs that each RDM has; shape as `_pooled_scores`."""
    found = []
    for (_, part), (_, of_models) in zip(data.split_sets(), models.split_sets(), strict=True):
        against = comparison_with(part.upper(), method)
        found.append(_one_by_one(of_models, against, _orders(len(part), n, rng)))
    values = over_times(known_mean(np.array(found), axis=0), data)
    means = [known_mean(values[..., columns], axis=-1) for columns in target_columns(data).values()]
    return np.stack(means, axis=-1)


def _one_by_one(models: RDMs, against: Callable[[np.ndarray], np.ndarray], orders: np.ndarray) -> np.ndarray:
    flat = models.values.reshape(models.n_rdms, -1)
    return np.array([against(flat[:, places[0]]) for places in _places(orders, 1 << 62)])
