"""The Gram matrix of stimuli from features that do not fit in memory, against the machine's own GEMM rate.

``python tests/benchmarks/bench_stream.py [--quick] [--folder DIR] [--megabytes M]``. Made-up float16 features are
written to a real cache (4 GB in full; removed afterwards), and a fresh process accumulates the matrix from it. The
rate of a product of two 4096 × 4096 float32 matrices is measured in the same process before and after. A full
product of n stimuli in p features takes 2 n² p operations, what symmetry leaves takes n² p; both rates are given, by
the clock and by the processor time that was used, which other work on the machine disturbs less. The promise is 0.7 of
the GEMM rate, in less than 3 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from featpipe.encoding.streamed._products import stimulus_gram
from featpipe.features import CachedFeatures
from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache

FULL, QUICK = (9841, 200_000), (2000, 30_000)
SIDE = 4096


def write_features(folder: Path, n_stimuli: int, n_features: int) -> None:
    """Write made-up features, neighbours alike and all a little above zero, shard by shard."""
    rng = np.random.default_rng(0)
    ids = tuple(f"nsd-{row:05d}" for row in range(n_stimuli))
    manifest = StimulusManifest(ids, tuple(hashlib.sha256(name.encode()).hexdigest() for name in ids))
    cache = FeatureCache(folder)
    cache.add_stimuli(manifest)
    spec = FeatureSpec("imported:bench", "0" * 64, "wide", None, store_dtype="float16")
    writer = cache.writer(spec, manifest.digest, row_shape=(n_features,), dims=("channel",), codec="none")
    bank = rng.standard_normal((64, n_features), dtype=np.float32) + 0.25
    for shard in writer.array.missing:
        part = writer.array.layout.rows_of(shard)
        mixing = rng.standard_normal((len(part), 64), dtype=np.float32) / 8
        rows = mixing @ bank + rng.standard_normal((len(part), n_features), dtype=np.float32)
        writer.publish(shard, rows.astype(np.float16), {})


def gemm_rate(repeats: int = 3) -> tuple[float, float]:
    """Return operations per second, and per second of processor time, of float32 GEMM."""
    a = np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32)
    out = np.empty_like(a)
    np.matmul(a, a, out=out)
    times = [timed(lambda: np.matmul(a, a, out=out))[:2] for _ in range(repeats)]
    operations = 2 * SIDE**3
    return tuple(operations / median(column) for column in zip(*times, strict=True))


def timed(work):
    """Return seconds, seconds of processor time, and what came out."""
    began, used = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - began, time.process_time() - used, found


def peak() -> float:
    """Return the peak memory of this process in GB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM"))


def child(folder: Path, megabytes: int) -> None:
    """Accumulate the matrix and print what it took."""
    ids = FeatureCache(folder).arrays()[0].ids
    blocks = CachedFeatures(folder, output="blocks").fit(ids).transform(ids)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of imports
    seconds, used, (gram, origin) = timed(lambda: stimulus_gram(blocks, memory=megabytes << 20))
    found = {"seconds": seconds, "used": used, "peak": peak(), "error": error_of(gram, blocks, origin)}
    del gram
    print(json.dumps(found))


def error_of(gram: np.ndarray, blocks, origin: np.ndarray) -> float:
    """Return the largest error of some products, relative to the lengths of their rows."""
    some = np.linspace(0, len(blocks) - 1, 20).astype(int)
    rows = blocks.stream(0, some).astype(np.float64) - origin
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return float(np.abs((gram[np.ix_(some, some)] - rows @ rows.T) / np.outer(length, length)).max())


def report(folder: Path, shape: tuple[int, int], megabytes: int) -> None:
    """Write the features, run a child between two measures of the machine, and print."""
    n_stimuli, n_features = shape
    began = time.perf_counter()
    write_features(folder, *shape)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
    print(
        f"{n_stimuli} × {n_features} float16, {size:.2f} GB on disk, {time.perf_counter() - began:.0f} s to make"
    )
    before = gemm_rate()
    command = [sys.executable, __file__, "--child", "--folder", str(folder), "--megabytes", str(megabytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = gemm_rate()
    found = json.loads(done.stdout.splitlines()[-1])
    half = n_stimuli**2 * n_features
    print(
        f"{found['seconds']:.1f} s, peak {found['peak']:.2f} GB, largest error {found['error']:.1e} of the lengths"
    )
    for clock, seconds, rates in (
        ("by the clock", found["seconds"], [before[0], after[0]]),
        ("by processor time", found["used"], [before[1], after[1]]),
    ):
        rate, machine = half / seconds, median(rates)
        print(
            f"{clock:18} n²p {rate / 1e9:6.1f} GFLOP/s ({rate / machine:.2f} of GEMM), 2n²p {2 * rate / 1e9:6.1f} "
            f"({2 * rate / machine:.2f}); GEMM {rates[0] / 1e9:.1f} before, {rates[1] / 1e9:.1f} after",
            flush=True,
        )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK[0]} × {QUICK[1]}")
    parser.add_argument("--folder", type=Path, help="where to write the cache for as long as this runs")
    parser.add_argument("--megabytes", type=int, default=1536, help="features to hold")
    parser.add_argument("--child", action="store_true")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.folder, arguments.megabytes)
        return
    os.fsync = lambda _: None  # writing is not what is measured
    megabytes = arguments.megabytes // (16 if arguments.quick else 1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        report(Path(name), QUICK if arguments.quick else FULL, megabytes)


if __name__ == "__main__":
    main()
