"""RDMs of features against rsatoolbox: 1 000 stimuli × 50 000 float32 features, the same distances.

``python tests/benchmarks/bench_rdms.py [--repeats N] [--quick]``. Ours are run three ways: `rdm` on the matrix
that rsatoolbox gets, and `feature_rdms` from a cache on disk (uncompressed, warm page cache), with a buffer
of a tenth of rsatoolbox's memory and with its own. Times are medians over interleaved rounds, ratios theirs
over ours: above 1 we are faster. The error is the largest of a pair, against float64 throughout.

Memory is what a run adds to the peak of a fresh process. The matrix is loaded before and not counted, for
both; nothing is loaded before `feature_rdms`, so that for it all reading counts too. The result, 8 MB in
float64 (rsatoolbox holds one triangle, 4 MB), counts for all. Above 10 a ratio of memories says that we need
less than a tenth.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from featpipe.features import CachedFeatures
from featpipe.rsa import feature_rdms, rdm
from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache

SHAPE = (1000, 50_000)
SMALL_BUFFER = 8 << 20
METRICS = {"correlation": "correlation", "sqeuclidean": "euclidean"}  # ours: rsatoolbox's name
MATRIX = "features.npy"
WAYS = ("rdm of the matrix", "feature_rdms, 8 MiB buffer", "feature_rdms", "rsatoolbox")


def work(way: str, metric: str, folder: Path) -> Callable[[], np.ndarray]:
    """Load what is not counted and return what is: a function that gives the upper triangle."""
    if way.startswith("feature_rdms"):
        buffer = SMALL_BUFFER if "buffer" in way else None
        ids = np.array([f"image_{row:04d}" for row in range(SHAPE[0])])
        features = CachedFeatures(folder / "cache", output="blocks").fit(ids)
        blocks = features.transform(ids)
        feature_rdms(blocks[:2], metric)  # lazy imports and the index of ids
        return lambda: feature_rdms(blocks, metric, per_feature=metric == "sqeuclidean", buffer=buffer)
    X = np.load(folder / MATRIX)
    if way == "rsatoolbox":
        from rsatoolbox.data import Dataset
        from rsatoolbox.rdm import calc_rdm

        return partial(calc_rdm, Dataset(X), method=METRICS[metric])
    return lambda: rdm(X, metric, per_feature=metric == "sqeuclidean")


def triangle(found) -> np.ndarray:
    return found.dissimilarities[0] if hasattr(found, "dissimilarities") else found.upper()[0]


def exact(metric: str, folder: Path) -> np.ndarray:
    """Return the upper triangle in float64 throughout."""
    X = np.load(folder / MATRIX).astype(np.float64)
    if metric == "correlation":
        X -= X.mean(axis=1, keepdims=True)
        X /= np.linalg.norm(X, axis=1, keepdims=True)
    inner = X @ X.T
    own = np.diag(inner)
    scale = 0.5 if metric == "correlation" else 1 / X.shape[1]
    return (scale * (own[:, None] + own - 2 * inner))[np.triu_indices(len(X), 1)]


def write_features(folder: Path, shape: tuple[int, int]) -> None:
    """Write rectified features, of which stimuli share some, as a matrix and as a cache."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal(shape, dtype=np.float32) + rng.standard_normal(shape[1], dtype=np.float32)
    np.maximum(rows, 0, out=rows)
    np.save(folder / MATRIX, rows)
    ids = tuple(f"image_{row:04d}" for row in range(len(rows)))
    cache = FeatureCache(folder / "cache")
    manifest = StimulusManifest(ids, tuple(hashlib.sha256(name.encode()).hexdigest() for name in ids))
    cache.add_stimuli(manifest)
    spec = FeatureSpec("imported:bench", "0" * 64, "layer", None)
    writer = cache.writer(spec, manifest.digest, row_shape=rows.shape[1:], dims=("channel",), codec="none")
    for shard in writer.array.missing:
        part = writer.array.layout.rows_of(shard)
        writer.publish(shard, rows[part.start : part.stop], {})


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_memory(way: str, metric: str, folder: Path) -> float:
    """Return what a run adds to the peak memory of a fresh process, in MiB."""
    command = [sys.executable, __file__, "--child", way, metric, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def child(way: str, metric: str, folder: Path) -> None:
    """Run once and print by how much the peak passes what was held before, in MiB (Linux)."""
    run = work(way, metric, folder)
    rdm(np.eye(4, dtype=np.float32), metric)  # thread pools and lazy imports
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before = _peak()
    run()
    print(_peak() - before)


def _peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def report(metric: str, folder: Path, repeats: int) -> None:
    """Print the table of one metric."""
    runs = {way: work(way, metric, folder) for way in WAYS}
    reference = exact(metric, folder)
    error = {way: np.abs(triangle(run()) / reference - 1).max() for way, run in runs.items()}
    times = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, run in runs.items():
            times[way].append(seconds(run))
    memory = {way: peak_memory(way, metric, folder) for way in WAYS}
    print(f"\n{metric}, rsatoolbox's {METRICS[metric]!r}")
    print(f"{'':28}{'seconds':>9}{'ratio':>8}{'MiB':>8}{'ratio':>8}{'relative error':>16}")
    for way in WAYS:
        ratio = median(b / a for a, b in zip(times[way], times["rsatoolbox"], strict=True))
        less = memory["rsatoolbox"] / max(memory[way], 0.1)
        print(
            f"{way:28}{median(times[way]):9.2f}{ratio:8.2f}{memory[way]:8.0f}{less:8.1f}{error[way]:16.1e}",
            flush=True,
        )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the features")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "METRIC", "FOLDER"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # rsatoolbox's own
    if arguments.child:
        way, metric, folder = arguments.child
        child(way, metric, Path(folder))
        return
    with tempfile.TemporaryDirectory() as name:
        shape = (SHAPE[0], SHAPE[1] // (10 if arguments.quick else 1))
        write_features(Path(name), shape)
        print(
            f"{shape[0]} stimuli × {shape[1]} features, {4 * shape[0] * shape[1] / 2**20:.0f} MiB in float32"
        )
        for metric in METRICS:
            report(metric, Path(name), arguments.repeats)


if __name__ == "__main__":
    main()
