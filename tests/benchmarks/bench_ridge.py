"""Ridge against himalaya and scikit-learn: the same penalties, folds and targets, all in one run.

Run ``python tests/benchmarks/bench_ridge.py [--repeats N] [--quick] [--shape N P T] [--device cuda]``. Times are
medians of interleaved rounds, ratios medians of the ratios within a round. Every solver of himalaya on every backend
runs once (on a tenth of the targets where there are 10 000 or more), and the fastest in all rounds. featpipe's K-fold
search has himalaya's folds; GCV and leave-one-out, which himalaya lacks, are timed against its K-fold search too.

``Δcoef`` is the worst relative difference of coefficients where the penalty is the same, ``Δscore`` the worst
difference of the scores reached: of the exact search from himalaya's, of the reduced one from the exact one. Memory is
the peak of a child process less what it held before the fit, beside 1.5 × (X + Y + one Gram matrix); on a GPU, the peak
of its allocations. scikit-learn, which fits each penalty anew, runs once on a tenth of the targets, against ours on the
same.

Needs NumPy, SciPy, scikit-learn, array-api-compat, rfc8785, himalaya and, for its torch backends and a GPU, torch.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold

from featpipe.encoding import RidgeEncoder

ALPHAS = np.logspace(-1, 8, 13)
SHAPES = [(2000, 768, 5000), (2000, 4096, 5000), (9000, 1024, 20000)]
FOLDS = KFold(5, shuffle=True, random_state=0)
OURS = {
    "featpipe": {},
    "featpipe reduced": {"search_precision": "reduced"},
    "featpipe gcv": {"cv": "gcv"},
    "featpipe loo": {"cv": "loo"},
}


def problem(n_stimuli: int, n_features: int, n_targets: int):
    """Features with a spectrum that decays as a network's does, responses with noise of their own."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_stimuli, n_features), dtype=np.float32)
    X *= np.geomspace(10, 0.1, n_features, dtype=np.float32)
    Y = X @ rng.standard_normal((n_features, n_targets), dtype=np.float32)
    Y /= Y.std(axis=0)
    Y += 2 * rng.standard_normal(Y.shape, dtype=np.float32)
    return X, Y


def fit_featpipe(X, Y, device: str = "cpu", **params):
    """Return penalties, inner scores and coefficients (n_targets, n_features)."""
    model = RidgeEncoder(alphas=ALPHAS, device=device, **({"cv": FOLDS} | params)).fit(X, Y)
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


def fit_himalaya(X, Y, backend: str, kernel: bool):
    """himalaya's primal solver, or its dual one on centred data (it has no intercept for a fold of a linear kernel)."""
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import KernelRidgeCV
    from himalaya.ridge import RidgeCV
    from himalaya.scoring import r2_score as himalaya_r2

    arrays = set_backend(backend)
    solver = {"score_func": himalaya_r2, "n_targets_batch": 1024}
    common = {"alphas": ALPHAS, "cv": FOLDS, "solver_params": solver}
    if kernel:
        X, Y = (arrays.asarray(values - values.mean(axis=0)) for values in (X, Y))
        model = KernelRidgeCV(**common).fit(X, Y)
        coef = model.get_primal_coef(X)
    else:
        model = RidgeCV(**common, fit_intercept=True).fit(arrays.asarray(X), arrays.asarray(Y))
        coef = model.coef_
    found = (model.best_alphas_, model.cv_scores_, coef)
    alpha, score, coef = (np.asarray(arrays.to_cpu(values)) for values in found)
    return alpha, score.ravel(), coef.T


def himalayas(device: str) -> dict:
    """Return himalaya's solvers on the backends of a device, by name."""
    if device != "cpu":
        backends = ["torch_cuda"]
    else:
        backends = ["numpy", "torch"] if find_spec("torch") else ["numpy"]
    return {
        f"himalaya {'Kernel' * kernel}RidgeCV {backend}": partial(
            fit_himalaya, backend=backend, kernel=kernel
        )
        for backend in backends
        for kernel in (False, True)
    }


def fits(device: str) -> dict:
    """Return everything that is timed, by name."""
    ours = {name: partial(fit_featpipe, device=device, **params) for name, params in OURS.items()}
    return {**ours, **himalayas(device), "scikit-learn (a tenth)": fit_sklearn}


def timed(fit, X, Y, device: str) -> tuple[float, tuple]:
    """Return the seconds of a fit, its results on the processor, and what it found."""
    start = time.perf_counter()
    found = fit(X, Y)
    if device != "cpu":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def fastest_himalaya(X, Y, device: str) -> str:
    """Return the solver of himalaya that takes least."""
    few = Y if Y.shape[1] < 10_000 else Y[:, : Y.shape[1] // 10]
    seconds = {}
    for name, fit in himalayas(device).items():
        if device != "cpu":
            timed(fit, X[:100], few[:100, :10], device)  # libraries are loaded on first use
        seconds[name] = timed(fit, X, few, device)[0]
    print("  ".join(f"{name}: {value:.2f} s" for name, value in seconds.items()), flush=True)
    return min(seconds, key=seconds.__getitem__)


def rounds(
    names: list[str], X, Y, repeats: int, device: str
) -> tuple[dict[str, list[float]], dict[str, tuple]]:
    """Run everything in turn, several times; return seconds of every round, and what was found in the last."""
    every = fits(device)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    found = {}
    for name in names if device != "cpu" else ():
        timed(every[name], X[:100], Y[:100, :10], device)
    for _ in range(repeats):
        for name in names:
            took, found[name] = timed(every[name], X, Y, device)
            seconds[name].append(took)
    return seconds, found


def peak_memory(name: str, shape: tuple[int, int, int], device: str) -> float:
    """Return what a fit adds to the peak memory of a fresh process, in MiB."""
    command = [sys.executable, __file__, "--child", name, "--device", device, "--shape", *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(name: str, shape: tuple[int, int, int], device: str) -> None:
    """Fit once and print by how much the peak passes what was held before, in MiB (Linux)."""
    X, Y = problem(*shape)
    fit = fits(device)[name]
    fit(X[:1000], Y[:1000, :256])  # imports, thread pools and the buffers of BLAS
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        fit(X, Y)
        print(json.dumps(torch.cuda.max_memory_allocated() / 2**20))
        return
    ctypes.CDLL(None).malloc_trim(0)  # what the warm-up has freed is not held
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the data
    before = _peak()
    fit(X, Y)
    print(json.dumps(_peak() - before))


def _peak() -> float:
    # not getrusage: its peak cannot be reset, and starts at the parent's
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def report(shape: tuple[int, int, int], repeats: int, device: str) -> None:
    """Print the table of one shape."""
    X, Y = problem(*shape)
    gram = 8 * min(shape[:2]) ** 2
    limit = 1.5 * (X.nbytes + Y.nbytes + gram) / 2**20
    print(f"\n{shape[0]} stimuli × {shape[1]} features → {shape[2]} targets, on {device}")
    peer = fastest_himalaya(X, Y, device)
    names = [peer, *OURS]
    seconds, found = rounds(names, X, Y, repeats, device)
    print(
        f"{'':34}{'seconds':>9}{'ratio':>8}{'MiB':>8}{'of limit':>10}{'Δcoef':>10}{'Δscore':>10}{'same α':>8}"
    )
    for name in names:
        ratio = median(theirs / own for theirs, own in zip(seconds[peer], seconds[name], strict=True))
        memory = peak_memory(name, shape, device)
        print(
            f"{name:34}{median(seconds[name]):9.2f}{ratio:8.2f}{memory:8.0f}{memory / limit:10.2f}"
            f"{differences(name, found, peer)}",
            flush=True,
        )


def report_sklearn(shape: tuple[int, int, int]) -> None:
    """Print one line: scikit-learn on a tenth of the targets."""
    X, Y = problem(*shape)
    few = Y[:, : Y.shape[1] // 10]
    theirs, found = timed(fit_sklearn, X, few, "cpu")
    own, ours = timed(fit_featpipe, X, few, "cpu")
    print(f"scikit-learn, a tenth of the targets: {theirs:.2f} s, ours {own:.2f} s{_difference(ours, found)}")


def differences(name: str, found: dict[str, tuple], peer: str) -> str:
    """Return how what was found differs: from himalaya, or for a closed form in penalties from the exact search."""
    reference = {peer: "featpipe", "featpipe": peer}.get(name, "featpipe")
    if name in ("featpipe gcv", "featpipe loo"):
        return f"{'':20}{np.isclose(found[name][0], found[reference][0]).mean():8.4f}"
    return _difference(found[name], found[reference])


def _difference(one: tuple, other: tuple) -> str:
    (alpha, score, coef), (other_alpha, other_score, other_coef) = one, other
    same = np.isclose(alpha, other_alpha)
    error = np.linalg.norm(coef - other_coef, axis=1) / np.linalg.norm(other_coef, axis=1)
    return f"{error[same].max():10.1e}{np.abs(score - other_score).max():10.1e}{same.mean():8.4f}"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the targets")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--shape", type=int, nargs=3, help="stimuli, features and targets of one table")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # himalaya's and scikit-learn's, on small eigenvalues
    if arguments.child:
        child(arguments.child, tuple(arguments.shape), arguments.device)
        return
    shapes = [tuple(arguments.shape)] if arguments.shape else SHAPES
    for n_stimuli, n_features, n_targets in shapes:
        shape = (n_stimuli, n_features, n_targets // (10 if arguments.quick else 1))
        report(shape, arguments.repeats, arguments.device)
        if arguments.device == "cpu" and shape[1] < shape[0] <= 2000:
            report_sklearn(shape)


if __name__ == "__main__":
    main()
