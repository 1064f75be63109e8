"""The search for a penalty per band and target: mixtures on a grid of penalties, then along the gradient.

A mixture is evaluated for all targets at once, because its factorisation is what costs. The refinement keeps
that: every target proposes to go along the gradient of its own held-out score, proposals are gathered into a few
centres, and targets try these and keep what improves them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.cluster import KMeans

from featpipe.encoding._banded_bands import Bands, NotPositiveDefinite
from featpipe.encoding._banded_folds import FoldSet, HeldOut

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

    def grid(self, gammas: np.ndarray, alphas: np.ndarray, *, whole: bool) -> None:
        """Try mixtures, from the largest penalty down so that of equal ones it is kept.

        Parameters
        ----------
        gammas : ndarray of shape (n_candidates, n_bands)
        alphas : ndarray of shape (n_alphas,)
        whole : bool
            Every penalty with every mixture. Else later mixtures see the penalties that matched the first.
        """
        for number, gamma in enumerate(gammas):
            wanted = alphas if whole or not number else self._within_reach(gamma, alphas)
            with np.errstate(divide="ignore"):
                for alpha in np.sort(wanted)[::-1]:
                    self.attempt(np.log(gamma / alpha), self.targets)

    def refine(self, rounds: int) -> None:
        """Follow the gradient for some rounds; a target keeps only what improves its score."""
        live = self.bands.traces > 0
        if not live.any():
            return
        step = np.full(len(self.targets), _FIRST_STEP)
        slope = np.zeros(self.delta.shape)
        stale = np.isfinite(self.score)
        for turn in range(rounds):
            self._update(slope, np.flatnonzero(stale), turn)
            steepest = np.abs(slope).max(axis=0)
            active = np.flatnonzero(steepest * step > _LEAST_GAIN)
            if not len(active):
                return
            # the square root lets bands that matter less to a target move at once
            direction = np.sign(slope) * np.sqrt(np.abs(slope) / np.where(steepest > 0, steepest, 1.0))
            proposed = self._floored() + direction * step
            stale = self._try_centres(proposed[:, active], active, live)
            step *= np.where(stale, 1.2, 0.5)

    def attempt(self, delta: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Score one point for some targets and keep it where it is the best: positions in `targets` improved."""
        try:
            found = self._scores(delta, targets)
        except NotPositiveDefinite:
            return np.empty(0, dtype=np.int64)
        improved = np.flatnonzero(found > self.score[targets] + 1e-12)
        self.score[targets[improved]] = found[improved]
        self.delta[:, targets[improved]] = delta[:, None]
        return improved

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

    def _update(self, slope: np.ndarray, targets: np.ndarray, turn: int) -> None:
        """Write the gradients of some targets at their best points."""
        if not len(targets):
            return
        points, member = np.unique(self._floored()[:, targets], axis=1, return_inverse=True)
        for number, delta in enumerate(points.T):
            chosen = targets[member.ravel() == number]
            slope[:, chosen] = self._slopes(delta, chosen, turn)

    def _floored(self) -> np.ndarray:
        """Return the best points with bands that were left out just inside: at -inf there is no slope."""
        largest = self.delta.max(axis=0)
        floored = np.maximum(self.delta, np.where(np.isfinite(largest), largest, 0.0) + _FLOOR)
        return np.where((self.bands.traces > 0)[:, None], floored, -np.inf)

    def _within_reach(self, gamma: np.ndarray, alphas: np.ndarray) -> np.ndarray:
        """Return the penalties that, relative to the variance of a mixture, predicted something so far."""
        useful = self.score > 0
        if not useful.any():
            return alphas
        variance = self.bands.traces
        lowest, highest = np.quantile(-np.log(variance @ np.exp(self.delta[:, useful])), [0.05, 0.95])
        relative = np.log(alphas / (variance @ gamma))
        spacing = np.ptp(relative) / max(1, len(alphas) - 1)
        near = (relative >= lowest - 0.6 * spacing) & (relative <= highest + 0.6 * spacing)
        return alphas[near] if near.any() else alphas[[np.argmin(np.abs(relative - lowest))]]

    def _scores(self, delta: np.ndarray, targets: np.ndarray) -> np.ndarray:
        total = np.zeros(len(targets))
        for held_out in self.held_out:
            total += held_out.scores(self._inverse(held_out, delta), targets, self.target_batch)
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
