"""Two ways to fit a mask: Adam on batches of pairs, and L-BFGS-B on all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from featpipe.rsa.mask._features import FeatureTerms
from featpipe.rsa.mask._measured import Measured
from featpipe.rsa.mask._objective import Lines, least_scales, objective, profile_lines
from featpipe.rsa.mask._terms import PairTerms

_DECAY = (0.9, 0.999)  # Adam's
_EPSILON = 1e-8
_DIMMEST = 1e-3  # share of squares, relative to the mean, under which channels are alike


@dataclass(frozen=True, eq=False)
class Problem:
    """What is minimised.

    Parameters
    ----------
    terms : PairTerms or FeatureTerms
    measured : Measured
        Of the same pairs.
    loss : {"l1", "squared", "correlation"}
    line : bool
        Whether an offset and a scale per target and stimulus set are fitted beside the mask.
    shrinkage : float
    non_negative : bool
    """

    terms: PairTerms | FeatureTerms
    measured: Measured
    loss: str = "l1"
    line: bool = False
    shrinkage: float = 0.0
    non_negative: bool = False

    def lines(self, beta: np.ndarray) -> Lines | None:
        """Return the best lines for a mask; None where none are wanted."""
        if not self.line:
            return None
        r, _ = self.terms.correlate(beta)
        return profile_lines(1 - r, self.measured.all(), loss=self.loss, least=self.least)

    @cached_property
    def least(self) -> np.ndarray:
        """Smallest scales of lines: (n_targets, n_sets), from the mask of ones."""
        r, _ = self.terms.correlate(np.ones(self.terms.n_channels))
        return least_scales(1 - r, self.measured.all())

    def full(self) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
        """Return mask -> (value, gradient) over all pairs, lines at their best for each mask."""
        batch = self.measured.all()
        last: Lines | None = None

        def profile(d: np.ndarray) -> Lines:
            nonlocal last  # L1 lines begin at those of the mask before, mostly close
            last = profile_lines(d, batch, loss=self.loss, least=self.least, start=last)
            return last

        def of(beta: np.ndarray) -> tuple[float, np.ndarray]:
            # where lines are at their best, the gradient is that of fixed lines
            lines = profile if self.line else None
            return objective(beta, self.terms, batch, loss=self.loss, lines=lines, shrinkage=self.shrinkage)

        return of


@dataclass(eq=False)
class Watch:
    """Keep the record of a fit, and the mask that did best on held-out pairs.

    Parameters
    ----------
    score : callable (mask) -> float, optional
        Held-out score, larger is better; without it the last mask is kept and nothing stops early.
    patience : int
        Iterations without a new best after which to stop.
    """

    score: Callable[[np.ndarray], float] | None = None
    patience: int = 5
    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    best: np.ndarray = field(default_factory=lambda: np.ones(0))
    best_iteration: int = 0

    def sees(self, beta: np.ndarray, loss: float) -> bool:
        """Note an iteration; return whether to stop. Iteration 0 is the mask of ones."""
        self.losses.append(loss)
        iteration = len(self.losses) - 1
        if self.score is None:
            self.best, self.best_iteration = beta.copy(), iteration
            return False
        self.scores.append(self.score(beta))
        previous = max(self.scores[:-1], default=-np.inf)
        if iteration == 0 or self.scores[-1] > previous:
            self.best, self.best_iteration = beta.copy(), iteration
        return iteration - self.best_iteration >= self.patience

    def table(self) -> dict[str, np.ndarray]:
        """Return columns ``iteration``, ``loss`` and ``rho``, the held-out score (NaN without)."""
        rho = self.scores or [np.nan] * len(self.losses)
        return {
            "iteration": np.arange(len(self.losses)),
            "loss": np.array(self.losses),
            "rho": np.array(rho),
        }


def adam(
    problem: Problem,
    watch: Watch,
    *,
    learning_rate: float = 0.01,
    batch_size: int = 40,
    epochs: int = 15,
    rng: np.random.Generator,
) -> None:
    """Fit a mask by Adam, from ones, on batches of pairs in random order; `watch` keeps what was found.

    Lines are brought to their best before each epoch. Times are drawn per pair and batch.

    References
    ----------
    Kingma & Ba (2015), algorithm 1. Gaziv (2019), section 2.3: rate .01, batches of 40.
    """
    beta = np.ones(problem.terms.n_channels)
    step = adam_steps(len(beta), learning_rate)
    if watch.sees(beta, problem.full()(beta)[0]):
        return
    for _ in range(epochs):
        lines, losses = problem.lines(beta), []
        for pairs in batches(problem.measured.n_pairs, batch_size, rng):
            batch = problem.measured.draw(pairs, rng)
            value, gradient = objective(
                beta,
                problem.terms.take(pairs),
                batch,
                loss=problem.loss,
                lines=lines,
                shrinkage=problem.shrinkage,
            )
            beta = beta - step(gradient)
            beta = np.maximum(beta, 0) if problem.non_negative else beta
            losses.append(value * len(pairs))
        if watch.sees(beta, sum(losses) / problem.measured.n_pairs):
            return


def adam_steps(n_channels: int, learning_rate: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return gradient -> what to take from the mask, with Adam's memory of earlier gradients."""
    first, second, count = np.zeros(n_channels), np.zeros(n_channels), 0

    def step(gradient: np.ndarray) -> np.ndarray:
        nonlocal count, first, second
        count += 1
        first = _DECAY[0] * first + (1 - _DECAY[0]) * gradient
        second = _DECAY[1] * second + (1 - _DECAY[1]) * gradient**2
        scale = np.sqrt(second / (1 - _DECAY[1] ** count)) + _EPSILON
        return learning_rate / (1 - _DECAY[0] ** count) * first / scale

    return step


def batches(n_pairs: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield all pairs once, in random order, so many at a time."""
    order = rng.permutation(n_pairs)
    return (order[start : start + batch_size] for start in range(0, n_pairs, batch_size))


def lbfgs(problem: Problem, watch: Watch, *, max_iter: int = 100, tol: float = 1e-6) -> bool:
    """Fit a mask by L-BFGS-B, from ones, on all pairs at once; `watch` keeps what was found.

    Steps are in units of `unit_lengths`: early layers have many positions a channel and so much of the
    gradient, and without units late layers would hardly move. Masks that are not negative are a bound. The
    L1 loss has a kink at every measured value, so many that their mean is smooth at the length of a step.

    Returns
    -------
    converged : bool
        Whether it ended because the loss no longer fell, by more than `tol` of itself.
    """
    from scipy.optimize import minimize  # slow to import

    value_and_gradient, unit = problem.full(), unit_lengths(problem.terms)

    def in_units(steps: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = value_and_gradient(1 + unit * steps)
        return value, unit * gradient

    def callback(intermediate_result) -> None:
        if watch.sees(1 + unit * intermediate_result.x, float(intermediate_result.fun)):
            raise StopIteration

    start = np.zeros(problem.terms.n_channels)
    if watch.sees(1 + start, in_units(start)[0]):
        return False
    found = minimize(
        in_units,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(-1 / length, None) for length in unit] if problem.non_negative else None,
        callback=callback,
        options={"maxiter": max_iter, "ftol": tol, "gtol": 1e-12, "maxfun": 10 * max_iter},
    )
    return bool(found.status == 0)


def unit_lengths(terms: PairTerms | FeatureTerms) -> np.ndarray:
    """Return the length of a step per channel: one over the root of its sum of squares, geometric mean 1."""
    if isinstance(terms, FeatureTerms):
        return np.ones(terms.n_channels)
    squares = terms.norms.sum(axis=0, dtype=np.float64)
    length = np.maximum(squares, _DIMMEST * squares.mean() + np.finfo(float).tiny) ** -0.5
    return np.asarray(length / np.exp(np.mean(np.log(length))))
