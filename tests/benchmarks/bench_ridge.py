"""Ridge against scikit-learn and himalaya: the same penalties, folds and targets, all in one run.

Run ``python tests/benchmarks/bench_ridge.py [--repeats N] [--quick]``. Times are medians of interleaved
runs, ratios are medians of the ratios within a round; memory is the peak of a child process less what it
held before the fit. Every solver of himalaya runs once, its fastest in all rounds; the line that compares
featpipe with itself is the noise of this machine. scikit-learn, which fits each penalty anew, runs once on
fewer features than stimuli and a tenth of the targets, against ours on the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold

from featpipe.encoding import RidgeEncoder

ALPHAS = np.logspace(-1, 8, 13)
SHAPES = [(2000, 768, 5000), (2000, 4096, 5000)]
FOLDS = KFold(5, shuffle=True, random_state=0)


def problem(n_stimuli: int, n_features: int, n_targets: int):
    """Features with a spectrum that decays as a network's does, responses with noise of their own."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_stimuli, n_features), dtype=np.float32)
    X *= np.geomspace(10, 0.1, n_features, dtype=np.float32)
    Y = X @ rng.standard_normal((n_features, n_targets), dtype=np.float32)
    Y /= Y.std(axis=0)
    Y += 2 * rng.standard_normal(Y.shape, dtype=np.float32)
    return X, Y


def fit_featpipe(X, Y):
    """Return penalties, inner scores and coefficients (n_targets, n_features)."""
    model = RidgeEncoder(alphas=ALPHAS, cv=FOLDS).fit(X, Y)
    return model.alpha_, model.best_score_, model.coef_


def fit_sklearn(X, Y):
    """K-fold search per target with `Ridge`, as `GridSearchCV` would, but once for all targets.

    `RidgeCV(alpha_per_target=True)` chooses by leave-one-out, another search.
    """
    scores = np.mean([[_score(X, Y, alpha, *fold) for alpha in ALPHAS] for fold in FOLDS.split(X)], axis=0)
    alpha = ALPHAS[scores.argmax(axis=0)]
    return alpha, scores.max(axis=0), Ridge(alpha=alpha, solver="svd").fit(X, Y).coef_


def _score(X, Y, alpha, train, test):
    model = Ridge(alpha=alpha).fit(X[train], Y[train])
    return r2_score(Y[test], model.predict(X[test]), multioutput="raw_values")


def _himalaya(estimator, **solver):
    from himalaya.scoring import r2_score as himalaya_r2

    return estimator(alphas=ALPHAS, cv=FOLDS, solver_params={"score_func": himalaya_r2, **solver})


def fit_himalaya_ridge(X, Y):
    """himalaya's primal solver."""
    from himalaya.ridge import RidgeCV

    model = _himalaya(RidgeCV, n_targets_batch=1024).set_params(fit_intercept=True).fit(X, Y)
    return model.best_alphas_, np.ravel(model.cv_scores_), model.coef_.T


def fit_himalaya_kernel(X, Y):
    """himalaya's dual solver, on centred data because it has no intercept for a linear kernel's fold."""
    from himalaya.kernel_ridge import KernelRidgeCV

    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    model = _himalaya(KernelRidgeCV, n_targets_batch=1024).fit(X, Y)
    return model.best_alphas_, np.ravel(model.cv_scores_), model.get_primal_coef(X).T


SKLEARN = "scikit-learn (a tenth)"
FITS = {
    "featpipe": fit_featpipe,
    "himalaya RidgeCV": fit_himalaya_ridge,
    "himalaya KernelRidgeCV": fit_himalaya_kernel,
    SKLEARN: fit_sklearn,
}


def timed(name: str, X, Y) -> tuple[float, tuple]:
    """Return the seconds of a fit and what it found."""
    start = time.perf_counter()
    found = FITS[name](X, Y)
    return time.perf_counter() - start, found


def interleaved(X, Y, repeats: int) -> dict[str, list[tuple[float, float, tuple, tuple]]]:
    """Return rounds of (seconds, our seconds, found, found by ours) of every fit."""
    few = Y[:, : Y.shape[1] // 10]
    own = timed("featpipe", X, Y)
    rounds = {name: [_pair(timed(name, X, Y), own)] for name in FITS if name != SKLEARN}
    if X.shape[1] < X.shape[0]:
        rounds[SKLEARN] = [_pair(timed(SKLEARN, X, few), timed("featpipe", X, few))]
    fastest = fastest_himalaya(rounds)
    for _ in range(repeats - 1):
        rounds[fastest].append(_pair(timed(fastest, X, Y), timed("featpipe", X, Y)))
    return rounds


def fastest_himalaya(rounds) -> str:
    """Return the solver of himalaya that took least in the first round."""
    return min((name for name in rounds if "himalaya" in name), key=lambda name: rounds[name][0][0])


def _pair(theirs, ours):
    return theirs[0], ours[0], theirs[1], ours[1]


def peak_memory(name: str, shape: tuple[int, int, int]) -> float:
    """Return what a fit adds to the peak memory of a fresh process, in MiB."""
    command = [sys.executable, __file__, "--child", name, "--shape", *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(name: str, shape: tuple[int, int, int]) -> None:
    """Fit once and print by how much the peak passes what was held before, in MiB (Linux)."""
    X, Y = problem(*shape)
    FITS[name](X[:50, :5], Y[:50, :2])  # imports and thread pools
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the data
    before = _peak()
    FITS[name](X, Y)
    print(json.dumps(_peak() - before))


def _peak() -> float:
    # not getrusage: its peak cannot be reset, and starts at the parent's
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def report(shape: tuple[int, int, int], repeats: int) -> None:
    """Print the table of one shape."""
    X, Y = problem(*shape)
    measured = interleaved(X, Y, repeats)
    memory = {name: peak_memory(name, shape) for name in ("featpipe", fastest_himalaya(measured))}
    data = (X.nbytes + Y.nbytes) / 2**20
    print(f"\n{shape[0]} stimuli × {shape[1]} features → {shape[2]} targets; X and Y are {data:.0f} MiB")
    print(f"{'':24}{'seconds':>9}{'ours':>9}{'ratio':>8}{'MiB':>8}{'Δcoef':>10}{'Δscore':>10}{'same α':>8}")
    for name, rounds in measured.items():
        seconds, ours, found, own = zip(*rounds, strict=True)
        ratio = median(a / b for a, b in zip(seconds, ours, strict=True))
        print(
            f"{name:24}{median(seconds):9.2f}{median(ours):9.2f}{ratio:8.2f}"
            f"{memory.get(name, np.nan):8.0f}{difference(found[-1], own[-1])}",
            flush=True,
        )


def difference(found, own) -> str:
    """Return the worst relative difference of coefficients at equal penalties, of scores, and their share."""
    (alpha, score, coef), (own_alpha, own_score, own_coef) = found, own
    same = np.isclose(alpha, own_alpha)
    error = np.linalg.norm(coef - own_coef, axis=1) / np.linalg.norm(own_coef, axis=1)
    return f"{error[same].max():10.1e}{np.abs(score - own_score).max():10.1e}{same.mean():8.4f}"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the targets")
    parser.add_argument("--child", choices=FITS)
    parser.add_argument("--shape", type=int, nargs=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # himalaya's and scikit-learn's, on small eigenvalues
    if arguments.child:
        child(arguments.child, tuple(arguments.shape))
        return
    for n_stimuli, n_features, n_targets in SHAPES:
        report((n_stimuli, n_features, n_targets // (10 if arguments.quick else 1)), arguments.repeats)


if __name__ == "__main__":
    main()
