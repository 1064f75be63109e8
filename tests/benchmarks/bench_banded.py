"""Banded ridge against himalaya: the score on held-out stimuli that a fit of so many seconds reaches.

    python tests/benchmarks/bench_banded.py --out banded.png

Fits with growing budgets, ours in rounds of refinement and himalaya's random search in mixtures, are interleaved
from the smallest to the largest; each takes its time from features to coefficients. Penalties, folds, precision
(float32 in the search) and what is maximised (R²) are the same. himalaya solves by kernels where there are more
features than stimuli, as it advises, else by features (`BandedRidgeCV`).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import KFold

from featpipe.encoding import BandedRidge
from featpipe.metrics import r2

ALPHAS = np.logspace(-1, 8, 13)
FOLDS = KFold(5, shuffle=True, random_state=0)
WIDTHS = (150, 400, 800, 1200, 600)
ROUNDS = [0, 1, 2, 3, 5, 8]
MIXTURES = [1, 3, 8, 20, 50, 100]


@dataclass(frozen=True)
class Problem:
    """Five bands and responses to fit and to score."""

    X: np.ndarray
    Y: np.ndarray
    X_test: np.ndarray
    Y_test: np.ndarray
    widths: tuple[int, ...]


def problem(n_stimuli: int, n_targets: int, widths: tuple[int, ...], seed: int = 0) -> Problem:
    """Bands with decaying spectra and a part in common; each target hangs on few of them, with noise of its own."""
    rng = np.random.default_rng(seed)
    n_all = n_stimuli + 500
    common = rng.standard_normal((n_all, 40))
    bands = []
    for width in widths:
        own = rng.standard_normal((n_all, width)) * np.arange(1, width + 1) ** -0.4
        X = own @ rng.standard_normal((width, width)) / np.sqrt(width)
        X += 0.4 * own.std() * common @ rng.standard_normal((40, width)) / np.sqrt(40)
        bands.append((X - X[:n_stimuli].mean(axis=0)) / X[:n_stimuli].std(axis=0))
    share = rng.dirichlet([0.3] * len(widths), n_targets).T
    signal = np.zeros((n_all, n_targets))
    for X, part in zip(bands, share, strict=True):
        one = X @ rng.standard_normal((X.shape[1], n_targets))
        signal += np.sqrt(part) * one / one.std(axis=0)
    signal *= np.sqrt(rng.uniform(0.02, 1.5, n_targets)) / signal.std(axis=0)
    X, Y = np.hstack(bands).astype(np.float32), signal + rng.standard_normal(signal.shape)
    Y = (Y - Y[:n_stimuli].mean(axis=0)).astype(np.float32)
    return Problem(X[:n_stimuli], Y[:n_stimuli], X[n_stimuli:], Y[n_stimuli:], widths)


def fit_featpipe(data: Problem, budget: int) -> Callable[[], np.ndarray]:
    """Fit with a number of rounds and return what predicts the test stimuli."""
    model = BandedRidge(data.widths, alphas=ALPHAS, refine=budget, cv=FOLDS, search_precision="reduced")
    model.fit(data.X, data.Y)
    return lambda: model.predict(data.X_test)


def himalaya_on(backend: str) -> Callable[[Problem, int], Callable[[], np.ndarray]]:
    """Return himalaya's fit with a number of mixtures on a backend."""

    def fit(data: Problem, budget: int) -> Callable[[], np.ndarray]:
        from himalaya.backend import set_backend

        array = set_backend(backend)
        dual = data.X.shape[1] > data.X.shape[0]
        model = _kernel_model(array, budget) if dual else _feature_model(array, budget, data.widths)
        X, X_test = (_kernels(data, rows) if dual else rows for rows in (data.X, data.X_test))
        model.fit(array.asarray(X), array.asarray(data.Y))
        return lambda: array.to_numpy(model.predict(array.asarray(X_test)))

    return fit


def _kernels(data: Problem, rows: np.ndarray) -> np.ndarray:
    stops = np.cumsum(data.widths)[:-1]
    bands = zip(np.split(rows, stops, axis=1), np.split(data.X, stops, axis=1), strict=True)
    return np.stack([left @ right.T for left, right in bands])


def _kernel_model(array, budget: int):
    from himalaya.kernel_ridge import MultipleKernelRidgeCV

    return MultipleKernelRidgeCV(
        kernels="precomputed", cv=FOLDS, random_state=0, solver_params=_solver(array, budget)
    )


def _feature_model(array, budget: int, widths):
    from himalaya.ridge import BandedRidgeCV

    groups = np.repeat(np.arange(len(widths)), widths)
    solver = {**_solver(array, budget), "warn": False}
    return BandedRidgeCV(groups=groups, cv=FOLDS, random_state=0, solver_params=solver)


def _solver(array, budget: int) -> dict:
    from himalaya.scoring import r2_score

    return {
        "n_iter": budget,
        "alphas": array.asarray(ALPHAS.astype(np.float32)),
        "score_func": r2_score,
        "n_targets_batch": 1024,
        "progress_bar": False,
    }


FITS = {
    "featpipe": (fit_featpipe, ROUNDS),
    "himalaya torch": (himalaya_on("torch"), MIXTURES),
    "himalaya numpy": (himalaya_on("numpy"), MIXTURES),
}


def curves(data: Problem, n_budgets: int, clock: Callable[[], float]) -> dict[str, list[tuple[float, float]]]:
    """Return (seconds, mean held-out R²) for every budget of every fit."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in FITS}
    for number in range(n_budgets):
        for name, (fit, budgets) in FITS.items():
            start = clock()
            predict = fit(data, budgets[number])
            seconds = clock() - start
            found[name].append((seconds, float(r2(data.Y_test, predict()).mean())))
            print(
                f"{name:16}{budgets[number]:5}{found[name][-1][0]:9.2f} s{found[name][-1][1]:9.4f}",
                flush=True,
            )
    return found


def reached(curve: list[tuple[float, float]], seconds: float) -> float:
    """Return the best score of the fits that are done by then; 0 before the first."""
    return max((score for taken, score in curve if taken <= seconds), default=0.0)


def needed(curve: list[tuple[float, float]], score: float) -> float:
    """Return the seconds of the first fit that scores so much."""
    return min((taken for taken, found in curve if found >= score), default=np.inf)


def report(found: dict[str, list[tuple[float, float]]]) -> None:
    """Print what ours reaches in himalaya's seconds, and takes for its scores."""
    ours = found["featpipe"]
    print(f"\n{'':16}{'seconds':>9}{'score':>9}{'ours then':>11}{'ours needs':>12}{'ratio':>8}")
    for name, curve in found.items():
        for seconds, score in curve if name != "featpipe" else []:
            own = needed(ours, score)
            print(
                f"{name:16}{seconds:9.2f}{score:9.4f}{reached(ours, seconds):11.4f}{own:10.2f} s{seconds / own:8.1f}"
            )


def draw(found: dict[str, list[tuple[float, float]]], path: Path, title: str) -> None:
    """Draw the curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(
        xscale="log", xlabel="seconds of a fit", ylabel="mean R² on held-out stimuli", title=title
    )
    for name, curve in found.items():
        axes.plot(*zip(*curve, strict=True), marker="o", label=name)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="PNG to draw the curves into")
    parser.add_argument("--shape", type=int, nargs=2, default=(1000, 1000), help="stimuli, targets")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--budgets", type=int, default=len(ROUNDS), help="how many of the budgets")
    parser.add_argument(
        "--cpu-time", action="store_true", help="seconds of the processor, for a machine that others use too"
    )
    parser.add_argument("--quick", action="store_true", help="a fraction of stimuli and targets, few budgets")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # himalaya's, on small eigenvalues
    shape, n_budgets = ((400, 100), 4) if arguments.quick else (arguments.shape, arguments.budgets)
    data = problem(*shape, tuple(arguments.widths))
    for fit, _ in FITS.values():
        fit(problem(100, 20, (60, 50), seed=1), 1)()  # imports and thread pools
    title = (
        f"{shape[0]} stimuli × {data.X.shape[1]} features in {len(data.widths)} bands → {shape[1]} targets"
    )
    print(title)
    found = curves(data, n_budgets, time.process_time if arguments.cpu_time else time.perf_counter)
    report(found)
    if arguments.out:
        draw(found, arguments.out, title)


if __name__ == "__main__":
    main()
