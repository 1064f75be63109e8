"""The search for a penalty per band and target: mixtures on a grid of penalties, then along the gradient.

A mixture is evaluated for all targets at once, because its factorisation is what costs. The refinement keeps
that: every target proposes to go along the gradient of its own held-out score, proposals are gathered into a few
centres, and targets try these and keep what improves them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.cluster import KMeans

from featpipe.encoding.banded._bands import Bands, NotPositiveDefinite
from featpipe.encoding.banded._folds import FoldSet, HeldOut

_SAFE_IN_SINGLE = 1e5  # ratio of the largest eigenvalue to the penalty: scores are right to 1e-5 up to here
_CENTRES = 30  # a round: about as dear as its gradients
_FIRST_STEP = 1.5  # of the log penalty ratio that matters most to a target
_LEAST_GAIN = 1e-5  # of a score that a step promises, to be worth a try
_FLOOR = -9.0  # of a band's log penalty ratio against the target's largest, from where it can come back


class PenaltySearch:
    """The best log penalty ratios found so far for every target, and what to try next.

    Parameters
    ----------
    bands : Bands
        Of all stimuli.
    Y : ndarray of shape (n_stimuli, n_targets)
    sets : sequence of FoldSet
        Folds, in rows of `bands` and `Y`.
    scoring : {"r2", "pearson_r"}
    target_batch : int
    reduced : bool
        Evaluate in float32 where penalties are large enough for it.
    device : str

    Attributes
    ----------
    score : ndarray of shape (n_targets,)
        Mean over folds; -inf before anything was tried.
    delta : ndarray of shape (n_bands, n_targets)
    shared_score, shared_delta : the same for the best mixture that all targets share, each with its own penalty
    shared_gamma : ndarray of shape (n_bands,)
    """

    def __init__(
        self,
        bands: Bands,
        Y: np.ndarray,
        sets: Sequence[FoldSet],
        *,
        scoring: str,
        target_batch: int,
        reduced: bool,
        device: str,
    ) -> None:
        self.bands = bands
        self.target_batch = target_batch
        self.reduced = reduced
        self.n_folds = sum(len(one.tests) for one in sets)
        dtype = np.float32 if reduced else np.float64
        self.held_out = [
            HeldOut(
                bands if len(one.rows) == len(Y) else bands.take(one.rows),
                Y[one.rows],
                one.tests,
                scoring=scoring,
                dtype=dtype,
                device=device,
            )
            for one in sets
        ]
        self.targets = np.arange(Y.shape[1])
        self.score = np.full(Y.shape[1], -np.inf)
        self.delta = np.full((len(bands.traces), Y.shape[1]), -np.inf)
        self.shared_score, self.shared_delta = self.score.copy(), self.delta.copy()
        self.shared_gamma = np.full(len(bands.traces), 1 / len(bands.traces))

    def grid(self, gammas: np.ndarray, alphas: np.ndarray, *, whole: bool) -> None:
        """Try mixtures for all targets, each with its best penalty.

        Parameters
        ----------
        gammas : ndarray of shape (n_candidates, n_bands)
        alphas : ndarray of shape (n_alphas,)
        whole : bool
            Every penalty with every mixture. Else later mixtures see the penalties that matched the first.
        """
        for number, gamma in enumerate(gammas):
            self._mixture(gamma, alphas if whole or not number else self._within_reach(gamma, alphas))

    def share(self, alphas: np.ndarray, rounds: int) -> None:
        """Take the best mixture for all targets along the gradient of their mean score, a mixture a round."""
        step = _FIRST_STEP
        slope = self._slopes_at(self.shared_delta, self.targets, 0).mean(axis=1)
        for turn in range(1, rounds + 1):
            if not np.any(slope):
                return
            gamma = self.shared_gamma * np.exp(_direction(slope) * step)
            gamma /= gamma.sum()
            if self._mixture(gamma, self._within_reach(gamma, alphas)):
                step *= 1.2
            else:
                step *= 0.5
            if turn < rounds:
                slope = self._slopes_at(self.shared_delta, self.targets, turn).mean(axis=1)

    def refine(self, rounds: int) -> None:
        """Follow the gradient for some rounds; a target keeps only what improves its score."""
        live = self.bands.traces > 0
        if not live.any():
            return
        step = np.full(len(self.targets), _FIRST_STEP)
        slope = np.zeros(self.delta.shape)
        stale = np.isfinite(self.score)
        for turn in range(rounds):
            if stale.any():
                slope[:, stale] = self._slopes_at(self._floored(), np.flatnonzero(stale), turn)
            steepest = np.abs(slope).max(axis=0)
            active = np.flatnonzero(steepest * step > _LEAST_GAIN)
            if not len(active):
                return
            proposed = self._floored() + _direction(slope) * step
            stale = self._try_centres(proposed[:, active], active, live)
            step *= np.where(stale, 1.2, 0.5)

    def attempt(self, delta: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Score one point for some targets and keep it where it is the best: positions in `targets` improved."""
        found = self._scores(delta, targets)
        improved = np.flatnonzero(found > self.score[targets] + 1e-12)
        self.score[targets[improved]] = found[improved]
        self.delta[:, targets[improved]] = delta[:, None]
        return improved

    def _mixture(self, gamma: np.ndarray, alphas: np.ndarray) -> bool:
        """Score a mixture with every target's best penalty, and say whether it is the best for all together."""
        score, delta = np.full(len(self.targets), -np.inf), np.empty_like(self.delta)
        with np.errstate(divide="ignore"):
            points = np.log(gamma / np.sort(alphas)[::-1, None])  # of equal ones the largest penalty is kept
        for point in points:
            found = self._scores(point, self.targets)
            better = found > score + 1e-12
            score[better], delta[:, better] = found[better], point[:, None]
        improved = score > self.score + 1e-12
        self.score[improved], self.delta[:, improved] = score[improved], delta[:, improved]
        if not score.mean() > self.shared_score.mean():
            return False
        self.shared_score, self.shared_delta, self.shared_gamma = score, delta, gamma
        return True

    def _try_centres(self, proposed: np.ndarray, active: np.ndarray, live: np.ndarray) -> np.ndarray:
        """Gather proposals, try the centres, and say which targets (of all) improved."""
        n_centres = min(_CENTRES, len(np.unique(proposed[live], axis=1).T))
        gathered = KMeans(n_centres, n_init=1, max_iter=20, random_state=0).fit(proposed[live].T)
        # as many tries as cost about what the factorisation does
        reach = max(1, round(n_centres * min(1.0, 2 * self.held_out[0].Y.shape[0] / len(active))))
        near = np.argsort(gathered.transform(proposed[live].T), axis=1)[:, :reach]
        improved = np.zeros(len(self.targets), dtype=bool)
        for number, centre in enumerate(gathered.cluster_centers_):
            delta = np.full(len(live), -np.inf)
            delta[live] = centre
            targets = active[(near == number).any(axis=1)]
            improved[targets[self.attempt(delta, targets)]] = True
        return improved

    def _slopes_at(self, points: np.ndarray, targets: np.ndarray, turn: int) -> np.ndarray:
        """Return the gradients of some targets at their points: ndarray of shape (n_bands, n_chosen)."""
        slopes = np.zeros((len(points), len(targets)))
        shared, member = np.unique(points[:, targets], axis=1, return_inverse=True)
        for number, delta in enumerate(shared.T):
            chosen = np.flatnonzero(member.ravel() == number)
            slopes[:, chosen] = self._slopes(delta, targets[chosen], turn)
        return slopes

    def _floored(self) -> np.ndarray:
        """Return the best points with bands that were left out just inside: at -inf there is no slope."""
        largest = self.delta.max(axis=0)
        floored = np.maximum(self.delta, np.where(np.isfinite(largest), largest, 0.0) + _FLOOR)
        return np.where((self.bands.traces > 0)[:, None], floored, -np.inf)

    def _within_reach(self, gamma: np.ndarray, alphas: np.ndarray) -> np.ndarray:
        """Return the penalties that, relative to the variance of a mixture, predicted something so far."""
        useful = self.shared_score > 0
        if not useful.any():
            return alphas
        variance = self.bands.traces
        lowest, highest = np.quantile(-np.log(variance @ np.exp(self.shared_delta[:, useful])), [0.05, 0.95])
        relative = np.log(alphas / (variance @ gamma))
        spacing = np.ptp(relative) / max(1, len(alphas) - 1)
        near = (relative >= lowest - 0.6 * spacing) & (relative <= highest + 0.6 * spacing)
        return alphas[near] if near.any() else alphas[[np.argmin(np.abs(relative - lowest))]]

    def _scores(self, delta: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the mean score over folds; -inf where the problem is singular."""
        total = np.zeros(len(targets))
        try:
            for held_out in self.held_out:
                total += held_out.scores(self._inverse(held_out, delta), targets, self.target_batch)
        except NotPositiveDefinite:
            return np.full(len(targets), -np.inf)
        return total / self.n_folds

    def _slopes(self, delta: np.ndarray, targets: np.ndarray, turn: int) -> np.ndarray:
        total = np.zeros((len(delta), len(targets)))
        for held_out in self.held_out:
            inverse = self._inverse(held_out, delta)
            total += held_out.gradients(inverse, delta, targets, self.target_batch, turn=turn)
        return total / self.n_folds

    def _inverse(self, held_out: HeldOut, delta: np.ndarray):
        if self.reduced and held_out.bands.size(delta) <= _SAFE_IN_SINGLE:
            return held_out.bands.inverse(delta, np.float32)
        return held_out.bands.inverse(delta)


def _direction(slope: np.ndarray) -> np.ndarray:
    """Return steps of at most 1 up a slope; the square root lets bands that matter less move at once."""
    steepest = np.abs(slope).max(axis=0)
    return np.sign(slope) * np.sqrt(np.abs(slope) / np.where(steepest > 0, steepest, 1.0))
