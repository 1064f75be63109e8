"""Folds on dask's workers against folds in processes and one after another, and what passes the scheduler.

Run ``python tests/benchmarks/bench_dask.py [--repeats N] [--quick]``. Every task has one BLAS thread, so that the
three ways do equal work and find equal scores; times are medians of interleaved runs, with the start of dask's
workers apart, since a run pays it once. Bytes are those of all messages in and out of the process of client and
scheduler: of our way, and of joblib's own dask backend on the same folds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import distributed
import joblib
import numpy as np
from sklearn.model_selection import GridSearchCV, KFold

from featpipe.encoding import RidgeEncoder
from featpipe.model_selection import evaluate
from featpipe.runs._workers import Place, computing

WORKERS = 2
SHAPE, QUICK = (2000, 768, 5000), (400, 200, 500)


def problem(n_stimuli: int, n_features: int, n_targets: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_stimuli, n_features), dtype=np.float32)
    Y = X @ rng.standard_normal((n_features, n_targets), dtype=np.float32)
    return X, Y + 20 * rng.standard_normal(Y.shape, dtype=np.float32)


RIDGE = RidgeEncoder(alphas=np.logspace(0, 5, 6), cv=3)
MODELS = {
    "5 folds of ridge": RIDGE,
    "5 folds × 2 candidates × 3 inner folds": GridSearchCV(
        RIDGE, {"scoring": ["r2", "pearson_r"]}, cv=KFold(3), scoring="r2"
    ),
}


def run(model, X, place: Place):
    """Return the seconds of an evaluation and what it found."""
    start = time.perf_counter()
    found = evaluate(model, X, place.y, cv=KFold(5), n_jobs=place.n_jobs, threads=1)
    return time.perf_counter() - start, found


@contextmanager
def places(Y, folder: str) -> Iterator[dict[str, Place]]:
    """Hold the three places where folds run; entering the last one starts its workers."""
    where = {"out": str(Path(folder) / "run"), "cache": folder, "threads": 1, "tell": print}
    start = time.perf_counter()
    with computing(Y, dask=str(WORKERS), n_jobs=1, **where) as dask:
        print(f"start of {WORKERS} dask workers: {time.perf_counter() - start:.1f} s")
        yield {
            "serial": Place(Y, 1, 1),
            f"--jobs {WORKERS}": Place(Y, WORKERS, 1),
            f"--dask {WORKERS}": dask,
        }


@contextmanager
def messages() -> Iterator[list[int]]:
    """Collect the bytes of every message in and out of this process."""
    sizes: list[int] = []
    tcp = distributed.comm.tcp
    to_frames, from_frames = tcp.to_frames, tcp.from_frames

    async def sent(*args, **kwargs):
        frames = await to_frames(*args, **kwargs)
        sizes.append(sum(memoryview(frame).nbytes for frame in frames))
        return frames

    async def received(frames, **kwargs):
        sizes.append(sum(memoryview(frame).nbytes for frame in frames))
        return await from_frames(frames, **kwargs)

    tcp.to_frames, tcp.from_frames = sent, received
    try:
        yield sizes
    finally:
        tcp.to_frames, tcp.from_frames = to_frames, from_frames


def in_place(model, X, place: Place):
    """Run in one of the places; only dask's has joblib's backend of the surrounding context."""
    if place.n_jobs is None:
        return run(model, X, place)
    with joblib.parallel_config("loky"):
        return run(model, X, place)


def compare(name: str, model, X, there: dict[str, Place], repeats: int) -> None:
    rounds = [{way: in_place(model, X, place) for way, place in there.items()} for _ in range(repeats + 1)]
    scores = [found.scores["r2"] for _, found in rounds[0].values()]
    equal = all(np.array_equal(scores[0], other) for other in scores[1:])
    seconds = {way: median(one[way][0] for one in rounds[1:]) for way in there}  # the first one warms up
    serial = seconds["serial"]
    shown = ", ".join(f"{way} {value:.2f} s ({serial / value:.2f} ×)" for way, value in seconds.items())
    print(f"{name}: {shown}; scores equal bit for bit: {equal}")


def count(name: str, model, X, place: Place) -> None:
    with messages() as sizes:
        run(model, X, place)
    print(
        f"{name}, through the scheduler: {sum(sizes) / 1e6:.2f} MB in all, largest {max(sizes) / 1e6:.3f} MB"
    )


def count_stock(model, X, Y) -> None:
    with (
        distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config("dask", client=client),
    ):
        count("joblib's own dask backend", model, X, Place(Y, None, 1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    n_stimuli, n_features, n_targets = QUICK if given.quick else SHAPE
    X, Y = problem(n_stimuli, n_features, n_targets)
    print(f"{n_stimuli} stimuli × {n_features} features → {n_targets} targets, {Y.nbytes / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as folder, places(Y, folder) as there:
        for name, model in MODELS.items():
            compare(name, model, X, there, given.repeats)
            count(name, model, X, there[f"--dask {WORKERS}"])
    count_stock(RIDGE, X, Y)


if __name__ == "__main__":
    main()
