"""Chance levels of correlations: stimuli permuted within folds, for all targets at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, lgamma, log
from typing import Any

import numpy as np

from featpipe.errors import RequestError
from featpipe.model_selection._held_out import (
    FoldValues,
    GroupMeans,
    HeldOut,
    groups_in,
    number_of_scores,
)

METHODS = ("auto", "shuffle", "shift")
_SHUFFLED = 5e8  # products of shuffling that are still a matter of seconds
_FEW = 100  # stimuli in a fold, below which its shifts are few
_GATHERED = 1 << 20  # values of shuffled predictions in memory at a time
_TIE = 2e-6  # correlations in float32 that differ by less are equal


@dataclass(frozen=True)
class PermutationP:
    """One-sided p-values of Pearson's r.

    Parameters
    ----------
    overall : float
        Of the mean over all targets.
    groups : dict of str to float
        Of the mean over each group of targets.
    targets : ndarray of shape (n_targets,)
        Uncorrected, see `false_discovery`; NaN where no fold scores a target.
    n_permutations : int
    method : str
        ``shuffle`` or ``shift``.
    """

    overall: float
    groups: dict[str, float]
    targets: np.ndarray
    n_permutations: int
    method: str


def permutation_p(
    y_true: Any,
    y_pred: Any,
    folds: Any = None,
    *,
    masks: Mapping[str, np.ndarray] | None = None,
    groups: Sequence | np.ndarray | None = None,
    n_permutations: int = 1000,
    method: str = "auto",
    seed: int = 0,
    target_batch: int = 256,
) -> PermutationP:
    """Return how often permuted stimuli correlate as well: ``p = (1 + #{r_perm >= r}) / (1 + n_permutations)``.

    Predictions are permuted over the stimuli of each fold, all targets together, so that p of a mean over targets
    knows how the targets covary. r is the mean over folds. The null hypothesis is that responses in a fold are
    exchangeable given the predictions.

    Parameters
    ----------
    y_true : array of shape (n_stimuli, n_targets) or (n_stimuli,), or `Responses`
        NaN where a trial is missing. The predictions of a fold are then scaled over all its stimuli, whichever of
        them were measured.
    y_pred : array of the same shape
        Held-out predictions.
    folds : sequence of (train, test), optional
        All rows are one fold by default.
    masks : mapping of str to array of bool, shape (n_targets,), optional
        Groups of targets whose mean r gets a p-value too.
    groups : array of shape (n_stimuli,), optional
        Stimuli that are not exchangeable one by one, such as those of a concept: whole groups change places with
        groups of the same size in the same fold. Where sizes leave too few permutations for that, as of sessions that
        all differ, the groups are put one after the other in another order, which is only nearly exact. Few groups
        leave few permutations, and p cannot be small. In a fold of one group its stimuli change places.
    n_permutations : int
        The smallest p is 1/(n_permutations + 1): enough of them for the number of targets that are corrected for.
    method : {"auto", "shuffle", "shift"}
        "shuffle" draws from all permutations, at a cost of n_permutations · n_stimuli · n_targets. "shift" draws from
        a group of permutations, cyclic shifts (and affine maps) of the stimuli of each fold in one random order, and
        finds all shifts at once by fast Fourier transform: some 30 times as fast for a whole brain. Both are exact,
        because the identity is one element of what is drawn from. "auto" shuffles where that takes seconds.
    seed : int
    target_batch : int
        Targets at a time; bounds memory.

    Returns
    -------
    PermutationP

    Raises
    ------
    RequestError
        Shapes, folds, masks, groups or method do not fit.

    References
    ----------
    Hemerik & Goeman (2018), "Exact testing with random permutations", TEST 27, theorems 1 and 2. Phipson & Smyth
    (2010), "Permutation p-values should never be zero". Winkler et al. (2015), "Multi-level block permutation".
    """
    held_out = HeldOut.of(y_true, y_pred, folds)
    method = _chosen(method, held_out, n_permutations, groups)
    rng = np.random.default_rng(seed)
    if method == "shift":
        plans: list[Any] = _shifts(held_out.tests, n_permutations + 1, rng)
    else:
        labels = None if groups is None else np.asarray(groups)
        plans = [
            _shuffles(len(test), groups_in(test, labels), n_permutations, rng) for test in held_out.tests
        ]
    null = _shifted if method == "shift" else _shuffled
    means = GroupMeans(masks, held_out.n_targets, n_permutations + 1)
    targets = np.full(held_out.n_targets, np.nan)
    for part, values in held_out.batches(target_batch):
        count = number_of_scores(values)
        r = sum(null(fold, plan) * _lost(fold) for fold, plan in zip(values, plans, strict=True))
        r /= np.maximum(count, 1).astype(np.float32)
        means.add(part, r, count > 0)
        targets[part] = np.where(count > 0, (r >= r[0] - _TIE).mean(axis=0), np.nan)
    overall, of_groups = means.means()
    return PermutationP(
        _share(overall),
        {name: _share(draws) for name, draws in of_groups.items()},
        targets,
        n_permutations,
        method,
    )


def _chosen(method: str, held_out: HeldOut, n_permutations: int, groups: Any) -> str:
    if method not in METHODS or n_permutations < 1:
        raise RequestError(
            f"method is {method!r} and n_permutations {n_permutations}; choose from {', '.join(METHODS)}, and at "
            "least 1."
        )
    if groups is not None and method == "shift":
        raise RequestError("Shifts would tear groups apart. Leave method at 'auto', or leave groups out.")
    if method != "auto" or groups is not None:
        return "shift" if method == "shift" else "shuffle"
    products = n_permutations * sum(map(len, held_out.tests)) * held_out.n_targets
    few = min(map(len, held_out.tests)) < _FEW
    return "shuffle" if products <= _SHUFFLED or few else "shift"


def _shuffles(
    n_test: int, groups: np.ndarray | None, n_permutations: int, rng: np.random.Generator
) -> np.ndarray:
    """Return permutations of a fold, the identity first: (n_permutations + 1, n_test)."""
    orders = np.tile(np.arange(n_test), (n_permutations + 1, 1))
    if groups is None:
        orders[1:] = rng.permuted(orders[1:], axis=1)
        return orders
    sizes = list(_groups_by_size(groups))
    if sum(lgamma(len(rows) + 1) for rows in sizes) >= log(n_permutations):
        for rows in sizes:
            places = rng.permuted(np.tile(np.arange(len(rows)), (n_permutations, 1)), axis=1)
            orders[1:, rows.ravel()] = rows[places].reshape(n_permutations, -1)
        return orders
    names, group = np.unique(groups, return_inverse=True)
    places = rng.permuted(np.tile(np.arange(len(names)), (n_permutations, 1)), axis=1)
    # the groups one after the other, and the same in another order
    orders[1:, np.argsort(group, kind="stable")] = np.argsort(places[:, group], axis=1, kind="stable")
    return orders


def _groups_by_size(groups: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of the groups of one size: (n_groups, size)."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    for size in np.unique(sizes):
        yield order[sizes[group[order]] == size].reshape(-1, size)


def _shuffled(fold: FoldValues, orders: np.ndarray) -> np.ndarray:
    """Return r of every permutation: (n_permutations + 1, n_batch)."""
    step = max(1, _GATHERED // fold.p.size)
    parts = [
        np.einsum("nt,cnt->ct", fold.y, fold.p[orders[start : start + step]], optimize=False)
        for start in range(0, len(orders), step)
    ]
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Shifts:
    """Affine maps ``i -> a (i + s)`` of the places of a fold's stimuli in a random order.

    ``order`` (n_test,) is the order, ``factors`` the a, and draw b takes the shift ``shifts[b]`` of the factor
    ``b % len(factors)``. Draw 0 is the identity, and every factor has as many draws as the first.
    """

    order: np.ndarray
    factors: np.ndarray
    shifts: np.ndarray


def _shifts(tests: Sequence[np.ndarray], n_draws: int, rng: np.random.Generator) -> list[_Shifts]:
    together = np.prod([float(len(test)) for test in tests])
    n_factors = max(1, int(np.ceil(2 * n_draws / together)))  # shifts of one fold may be fewer than the draws
    return [_fold_shifts(len(test), n_draws, n_factors, rng) for test in tests]


def _fold_shifts(n: int, n_draws: int, n_factors: int, rng: np.random.Generator) -> _Shifts:
    units = np.array([a for a in range(2, n) if gcd(a, n) == 1], dtype=int)
    others = rng.permutation(units)[: n_factors - 1]
    shifts = rng.integers(0, n, n_draws)
    shifts[0] = 0
    return _Shifts(rng.permutation(n), np.concatenate([[1], others]), shifts)


def _shifted(fold: FoldValues, plan: _Shifts) -> np.ndarray:
    """Return r of every drawn shift, of which each transform finds all of one factor: (n_draws, n_batch)."""
    from scipy import fft  # slow to import

    n = len(plan.order)
    y = np.ascontiguousarray(fold.y[plan.order].T)
    p = fold.p[plan.order].T
    spectrum = np.conj(fft.rfft(y))
    r = np.empty((len(plan.shifts), len(y)), dtype=np.float32)
    for number, factor in enumerate(plan.factors):
        moved = np.ascontiguousarray(p[:, np.arange(n) * factor % n])
        every = fft.irfft(spectrum * fft.rfft(moved), n)  # (n_batch, n_test), by shift
        draws = slice(number, None, len(plan.factors))
        r[draws] = every[:, plan.shifts[draws]].T
    return r


def _lost(fold: FoldValues) -> np.ndarray | np.float32:
    """Return what makes a sum of products comparable with r where responses are missing: (n_batch,)."""
    if fold.seen is None:
        return np.float32(1)
    return np.sqrt(len(fold.y) / np.maximum(fold.seen.sum(axis=0), 1)).astype(np.float32)


def _share(draws: np.ndarray) -> float:
    """Return the share of draws, the identity among them, that are as large as it."""
    return float((draws >= draws[0] - _TIE).mean())
