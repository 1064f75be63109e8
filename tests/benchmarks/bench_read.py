"""Reading a cached layer against ``numpy.load`` on the same bytes, from a warm page cache.

``python tests/benchmarks/bench_read.py``. Ratios are medians over interleaved pairs, our rate over theirs:
above 1 we are faster. The promise is at least 0.8.
"""

from __future__ import annotations

import hashlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import zarr

from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store import CachedArray, FeatureCache
from featpipe.store._codec import decode_chunk, encode_chunk

N_STIMULI = 2560
PAIRS = 7
SHAPES = {"a map": (96, 14, 14), "a vector": (1024,)}
DIMS = {3: ("channel", "height", "width"), 1: ("channel",)}


def rectified(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values about as compressible as rectified maps: six in ten are zero."""
    values = rng.standard_normal(shape, dtype=np.float32) - 0.25
    return np.maximum(values, 0, out=values)


def filled(cache: FeatureCache, rows: np.ndarray, codec: str) -> CachedArray:
    ids = tuple(f"image_{row}" for row in range(len(rows)))
    manifest = StimulusManifest(ids, tuple(hashlib.sha256(name.encode()).hexdigest() for name in ids))
    stored = cache.add_stimuli(manifest)
    spec = FeatureSpec("imported:bench", "0" * 64, f"{codec}-{rows.shape}", None)
    row_shape = rows.shape[1:]
    writer = cache.writer(spec, manifest.digest, row_shape=row_shape, dims=DIMS[len(row_shape)], codec=codec)
    for shard in writer.array.missing:
        part = writer.array.layout.rows_of(shard)
        writer.publish(shard, rows[part.start : part.stop], {})
    assert stored.shard_rows == writer.array.shard_rows
    return cache.array(writer.array.key)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], pairs: int = PAIRS
) -> tuple[float, float, float]:
    """Return the median ratio theirs/ours in seconds, and the median of each."""
    ours(), theirs()
    times = [(seconds(ours), seconds(theirs)) for _ in range(pairs)]
    ratio = statistics.median(b / a for a, b in times)
    return ratio, statistics.median(a for a, _ in times), statistics.median(b for _, b in times)


def report(what: str, n_bytes: int, ratio: float, ours: float, theirs: float, against: str) -> None:
    rate, other = n_bytes / 1e9 / ours, n_bytes / 1e9 / theirs
    print(f"{what:58}{rate:7.2f} GB/s  {against} {other:6.2f} GB/s  ratio {ratio:5.2f}", flush=True)


def codec_rate(rows: np.ndarray, codec: str, chunk_rows: int) -> Callable[[], object]:
    """Decode all chunks from memory into a fresh array on one thread: what the codec alone costs."""
    starts = range(0, len(rows), chunk_rows)
    encoded = [bytes(encode_chunk(rows[at : at + chunk_rows], codec)) for at in starts]

    def decode() -> None:
        out = np.empty_like(rows)
        for at, stored in zip(starts, encoded, strict=True):
            decode_chunk(stored, out[at : at + chunk_rows], codec)

    return decode


def bench(folder: Path, name: str, rows: np.ndarray, rng: np.random.Generator) -> None:
    cache, plain = FeatureCache(folder / "cache"), folder / "rows.npy"
    np.save(plain, rows)
    some = rng.permutation(len(rows))[: len(rows) // 5]
    for codec in ("none", "zstd-fast"):
        array = filled(cache, rows, codec)
        assert np.array_equal(array.read(), rows)
        label = f"{name} {rows.shape} {codec}"
        for threads in (None, 1):
            how = "" if threads is None else ", one thread"
            found = compare(lambda a=array, t=threads: a.read(threads=t), lambda: np.load(plain))
            report(f"{label}: whole layer{how}", rows.nbytes, *found, "numpy.load")
        if codec == "none":
            ours, behind = (
                array.read(),
                np.empty_like(rows),
            )  # 16 bytes behind a page, as numpy's large arrays are
            found = compare(partial(array.read, out=ours), partial(array.read, out=behind))
            report(f"{label}: whole layer, over old rows", rows.nbytes, *found, "numpy.empty")
        else:
            decode = codec_rate(rows, codec, array.layout.chunk_rows)
            found = compare(lambda a=array: a.read(threads=1), decode)
            report(f"{label}: whole layer, one thread", rows.nbytes, *found, "decode alone")
        for count in (len(some), len(rows) * 9 // 10, len(rows)):
            chosen = rng.permutation(len(rows))[:count]
            found = compare(lambda a=array, c=chosen: a.read(c), lambda a=array, c=chosen: a.read()[c])
            report(f"{label}: {count} scattered rows", rows[:count].nbytes, *found, "whole, indexed")
        stock = zarr.open_group(array.folder / "data.zarr", mode="r")["features"]
        found = compare(array.read, lambda s=stock: s[:], pairs=3)
        report(f"{label}: whole layer", rows.nbytes, *found, "stock zarr")
    plain.unlink()


def peak_memory(folder: Path, key: str) -> None:
    """Print how far reading raises the peak of a fresh process above the bytes of the result."""
    code = (
        "import re, sys; from pathlib import Path; from featpipe.store import FeatureCache\n"
        "def peak(): return int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "array = FeatureCache(sys.argv[1]).array(sys.argv[2])\n"
        "before = peak(); values = array.read(); after = peak()\n"
        "print(f'peak memory: {(after - before) * 1024 / values.nbytes:.2f} of the result')"
    )
    subprocess.run([sys.executable, "-c", code, str(folder / "cache"), key], check=True)


def bench_opening(folder: Path) -> None:
    """Open one of 1 000 arrays: key, metadata, commit state, no ids."""
    cache = FeatureCache(folder / "many")
    manifest = StimulusManifest(("a",), ("0" * 64,))
    cache.add_stimuli(manifest)
    for number in range(1000):
        spec = FeatureSpec("imported:bench", "0" * 64, str(number), None)
        cache.writer(spec, manifest.digest, row_shape=(4,), dims=("channel",))
    key = cache.keys()[500]
    one = seconds(lambda: FeatureCache(cache.root).array(key).complete)
    print(f"opening one of 1 000 arrays: {one * 1e3:.2f} ms; all: {seconds(cache.arrays) * 1e3:.0f} ms")


def bench_lookup(folder: Path) -> None:
    """Find the first id among 100 000."""
    cache = FeatureCache(folder / "large")
    ids = tuple(f"nsd-{row:05d}" for row in range(100_000))
    manifest = StimulusManifest(ids, tuple(f"{row:064x}" for row in range(100_000)))
    cache.add_stimuli(manifest)
    spec = FeatureSpec("imported:bench", "0" * 64, "layer", None)
    key = cache.writer(spec, manifest.digest, row_shape=(4,), dims=("channel",)).array.key
    by_ids = seconds(lambda: FeatureCache(cache.root).array(key).ids.index(ids[7]))
    by_manifest = seconds(lambda: FeatureCache(cache.root).array(key).manifest.rows[ids[7]])
    print(f"first id among 100 000: {by_ids * 1e3:.0f} ms by ids, {by_manifest * 1e3:.0f} ms by manifest")


def main() -> None:
    rng = np.random.default_rng(0)
    os.fsync = lambda _: None  # writing is not what is measured
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, shape in SHAPES.items():
            bench(folder, what, rectified(rng, (N_STIMULI * (1 if len(shape) > 1 else 8), *shape)), rng)
        for array in FeatureCache(folder / "cache").arrays():
            if len(array.row_shape) > 1:
                print(f"{array.codec}: ", end="", flush=True)
                peak_memory(folder, array.key)
        bench_opening(folder)
        bench_lookup(folder)
    print(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
