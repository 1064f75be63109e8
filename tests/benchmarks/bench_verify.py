"""Verification against hashing the same files on as many threads, and its memory from 1 000 to 50 000 rows.

``python tests/benchmarks/bench_verify.py``. The ratio is the median over interleaved pairs, our rate over that of
``sha256`` over all files from a warm page cache: above 1 we are faster. Memory is the peak of a fresh process that
verifies a cache of tiny rows, without what importing takes.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache
from featpipe.store._reading import default_threads

PAIRS = 5
N_STIMULI, N_FEATURES, N_ARRAYS = 4096, 12_544, 4  # 0.8 GB
ROWS = (1_000, 10_000, 50_000)


def write(folder: Path, n_stimuli: int, n_features: int, n_arrays: int, shard_rows: int = 256) -> int:
    """Write made-up arrays shard by shard; return their bytes."""
    rng = np.random.default_rng(0)
    ids = tuple(f"set/image_{row:06d}" for row in range(n_stimuli))
    manifest = StimulusManifest(ids, tuple(hashlib.sha256(name.encode()).hexdigest() for name in ids))
    cache = FeatureCache(folder)
    cache.add_stimuli(manifest, shard_rows=shard_rows)
    for number in range(n_arrays):
        spec = FeatureSpec("imported:bench", "0" * 64, str(number), None)
        writer = cache.writer(spec, manifest.digest, row_shape=(n_features,), dims=("channel",), codec="none")
        for shard in writer.array.missing:
            rows = rng.standard_normal(
                (len(writer.array.layout.rows_of(shard)), n_features), dtype=np.float32
            )
            writer.publish(shard, rows, {})
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def digest_of(path: Path) -> str:
    """Hash a file as anybody would."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bench_throughput(folder: Path) -> None:
    """Print the rate of verification beside that of plain hashing."""
    n_bytes = write(folder, N_STIMULI, N_FEATURES, N_ARRAYS)
    cache, files = FeatureCache(folder), [path for path in folder.rglob("*") if path.is_file()]

    def plain() -> None:
        with ThreadPoolExecutor(default_threads()) as pool:
            list(pool.map(digest_of, files))

    assert cache.verify() == []
    plain()
    pairs = [(seconds(cache.verify), seconds(plain)) for _ in range(PAIRS)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(their / our for our, their in pairs)
    print(
        f"{n_bytes / 1e9:.2f} GB in {len(files)} files, {default_threads()} threads: verify {n_bytes / 1e9 / ours:.2f} "
        f"GB/s, sha256 alone {n_bytes / 1e9 / theirs:.2f} GB/s, ratio {ratio:.2f}",
        flush=True,
    )


def bench_memory(folder: Path, n_stimuli: int) -> None:
    """Print how far verification raises the peak of a fresh process."""
    write(folder, n_stimuli, 16, 2)
    code = (
        "import re, sys, time; from pathlib import Path; from featpipe.store import FeatureCache\n"
        "def peak(): return int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024\n"
        "before, began = peak(), time.perf_counter()\n"
        "assert FeatureCache(sys.argv[1]).verify() == []\n"
        "took = time.perf_counter() - began\n"
        "print(f'{sys.argv[2]:>6} rows: peak {peak():.1f} MiB, {peak() - before:.1f} above imports, {took:.2f} s')"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(n_stimuli)], check=True)


def main() -> None:
    os.fsync = lambda _: None  # writing is not what is measured
    with tempfile.TemporaryDirectory() as name:
        for n_stimuli in ROWS:
            bench_memory(Path(name) / str(n_stimuli), n_stimuli)
        bench_throughput(Path(name) / "large")


if __name__ == "__main__":
    main()
