"""Writing, the memory of an extraction, and a run with nothing to do.

``python tests/benchmarks/bench_cache.py [write] [memory] [nothing]``. Writing is compared with what the codec does in
memory on two threads, and with plain files hashed and forced to disk in the same way; ratios are medians
over interleaved pairs, our rate over theirs. Memory is the peak of a whole process; a run with nothing to do is timed
as a whole process, imports included.
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
from PIL import Image

from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache
from featpipe.store._shard import encode_shard

PAIRS = 7
WRITERS = 2  # as extraction writes layers
N_STIMULI, SHAPE, DIMS = 4096, (96, 14, 14), ("channel", "height", "width")
SIZES = (1_000, 10_000, 50_000)
MODEL = [
    "--model",
    "timm:test_resnet",
    "--weights",
    "random:0",
    "--image-size",
    "32",
    "--layers",
    "layer1:mean",
]
MEASURED = (
    "import resource, sys; from featpipe.cli import main\n"
    "try: main(sys.argv[1:])\n"
    "except SystemExit as end: assert not end.code, end.code\n"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def written(root: Path, rows: np.ndarray, codec: str) -> float:
    """Return the seconds that publishing all shards of a new array takes."""
    ids = tuple(f"image_{row}" for row in range(len(rows)))
    manifest = StimulusManifest(ids, tuple(hashlib.sha256(name.encode()).hexdigest() for name in ids))
    cache = FeatureCache(root)
    cache.add_stimuli(manifest)
    spec = FeatureSpec("imported:bench", "0" * 64, codec, None)
    writer = cache.writer(spec, manifest.digest, row_shape=SHAPE, dims=DIMS, codec=codec)

    def publish(shard: int) -> None:
        part = writer.array.layout.rows_of(shard)
        writer.publish(shard, rows[part.start : part.stop], {})

    with ThreadPoolExecutor(WRITERS) as pool:
        return seconds(lambda: list(pool.map(publish, writer.array.missing)))


def encoded(rows: np.ndarray, codec: str, folder: Path | None = None) -> float:
    """Return the seconds that encoding all shards takes; with a folder, also hashing and writing plain files."""
    spec = FeatureSpec("imported:bench", "0" * 64, codec, None)
    with tempfile.TemporaryDirectory() as made:
        ids = tuple(map(str, range(len(rows))))
        manifest = StimulusManifest(ids, tuple(hashlib.sha256(name.encode()).hexdigest() for name in ids))
        cache = FeatureCache(made)
        cache.add_stimuli(manifest)
        layout = cache.writer(spec, manifest.digest, row_shape=SHAPE, dims=DIMS, codec=codec).array.layout

    def encode() -> None:
        for shard in range(layout.n_shards):
            part = layout.rows_of(shard)
            buffers = list(encode_shard(rows[part.start : part.stop], layout))
            if folder is not None:
                plain(folder / f"{shard}.bin", buffers)

    return seconds(encode)


def plain(path: Path, buffers: list[bytes | memoryview]) -> None:
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for buffer in buffers:
            file.write(buffer)
            digest.update(buffer)
        file.flush()
        os.fsync(file.fileno())


def bench_write() -> None:
    rng = np.random.default_rng(0)
    rows = np.maximum(rng.standard_normal((N_STIMULI, *SHAPE), dtype=np.float32) - 0.25, 0)
    for codec in ("none", "zstd-fast", "blosc-lz4"):
        ours, memory, files = [], [], []
        for _ in range(PAIRS):
            with tempfile.TemporaryDirectory() as folder:
                ours.append(written(Path(folder) / "cache", rows, codec))
                memory.append(encoded(rows, codec))
                files.append(encoded(rows, codec, Path(folder)))
        to_memory = statistics.median(m / o for m, o in zip(memory, ours, strict=True))
        to_files = statistics.median(f / o for f, o in zip(files, ours, strict=True))
        rate = rows.nbytes / statistics.median(ours) / 1e6
        print(
            f"write {codec:<10} {rate:7.0f} MB/s   {to_memory:.2f} of encoding in memory, {to_files:.2f} of "
            "encoding, hashing and writing plain files"
        )


def extract(images: Path, cache: Path) -> int:
    """Run an extraction; return the peak of its memory in bytes."""
    words = ["extract", *MODEL, "--images", str(images), "--cache", str(cache), "--batch-size", "32"]
    found = subprocess.run(
        [sys.executable, "-c", MEASURED, *words], check=True, capture_output=True, text=True
    )
    return int(found.stdout.split()[-1]) * 1024


def images_of(folder: Path, n_stimuli: int) -> Path:
    path = folder / f"{n_stimuli}.npy"
    values = np.lib.format.open_memmap(path, "w+", np.uint8, (n_stimuli, 32, 32, 3))
    rng = np.random.default_rng(0)
    for start in range(0, n_stimuli, 1000):
        values[start : start + 1000] = rng.integers(
            0, 256, (min(1000, n_stimuli - start), 32, 32, 3), np.uint8
        )
    values.flush()
    return path


def bench_memory(folder: Path) -> None:
    peaks = [extract(images_of(folder, n), folder / "cache") / 2**20 for n in SIZES]
    text = ", ".join(f"{peak:.0f} MiB for {n:,} images" for n, peak in zip(SIZES, peaks, strict=True))
    print(f"extract, peak memory   {text}: {peaks[-1] / peaks[0]:.2f} of the first")


def folder_of(folder: Path, n_stimuli: int) -> Path:
    """Write as many files, each an image of its own."""
    made = folder / "images"
    made.mkdir()
    rng = np.random.default_rng(1)
    for row in range(n_stimuli):
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(made / f"{row:05}.bmp")
    return made


def bench_nothing(folder: Path) -> None:
    bare = [
        seconds(lambda: subprocess.run([sys.executable, "-c", "import featpipe.cli"])) for _ in range(PAIRS)
    ]
    for what, images in {
        "in one .npy": images_of(folder, SIZES[-1]),
        "in a folder": folder_of(folder, SIZES[-1]),
    }.items():
        extract(images, folder / "cache")
        extract(images, folder / "cache")  # digests are remembered from the second run on
        times = [seconds(lambda images=images: extract(images, folder / "cache")) for _ in range(PAIRS)]
        print(
            f"nothing to do, {SIZES[-1]:,} images {what}   {statistics.median(times):.2f} s (limit 3 s), of which "
            f"importing the commands {statistics.median(bare):.2f} s"
        )


def main() -> None:
    wanted = sys.argv[1:] or ["write", "memory", "nothing"]
    if "write" in wanted:
        bench_write()
    with tempfile.TemporaryDirectory() as folder:
        if "memory" in wanted:
            bench_memory(Path(folder))
        if "nothing" in wanted:
            bench_nothing(Path(folder))


if __name__ == "__main__":
    main()
