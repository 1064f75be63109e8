"""Pushing to an S3 server on loopback and pulling back, against plain loops of PUT and GET of the same files.

``python tests/benchmarks/bench_transfer.py``. Rates are medians over interleaved pairs, ours with checksums,
commit records and (pull) files forced to disk. Memory is the peak of the commands as processes of their own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import obstore
from obstore.store import S3Store

from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache, plan_transfer, publish_index, transfer
from featpipe.testing import s3_server

N_STIMULI = 1280
MAP = (96, 14, 14)
WIDTH = 1024
PAIRS = 3
THREADS = 16


def filled(root: Path, n_stimuli: int, shape: tuple[int, ...]) -> FeatureCache:
    cache = FeatureCache(root)
    ids = tuple(f"image_{row}" for row in range(n_stimuli))
    manifest = StimulusManifest(ids, tuple(hashlib.sha256(name.encode()).hexdigest() for name in ids))
    cache.add_stimuli(manifest)
    spec = FeatureSpec("imported:bench", "0" * 64, "layer", None)
    dims = ("channel", "height", "width")[: len(shape)]
    writer = cache.writer(spec, manifest.digest, row_shape=shape, dims=dims, codec="none")
    rng = np.random.default_rng(0)
    for shard in writer.array.missing:
        n_rows = len(writer.array.layout.rows_of(shard))
        writer.publish(shard, rng.standard_normal((n_rows, *shape), dtype=np.float32), {})
    return cache


def copied(source: str | Path, target: str | Path) -> None:
    here, there = FeatureCache(source), FeatureCache(target)
    moves, problems = plan_transfer(here, there, here.keys())
    done = transfer(here, there, moves)
    publish_index(there.location)
    assert not problems
    assert all(one.moved and not one.problems for one in done.values())


def rates(url: str, folder: Path) -> None:
    """Print MB/s of push and pull, and of plain loops with the same client and as many threads."""
    cache = filled(folder / "cache", N_STIMULI, MAP)
    (array,) = cache.arrays()
    files = [array.shard_path(shard) for shard in sorted(array.committed)]
    megabytes = array.nbytes / 1e6
    store = S3Store(url.removeprefix("s3://"), client_options={"allow_http": True})

    def each(work: Callable[[Path], object]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(work, files))

    def put(number: int) -> None:
        each(lambda path: obstore.put(store, name_of(number, path), path.read_bytes(), use_multipart=False))

    def get(number: int) -> None:
        each(lambda path: obstore.get(store, name_of(number, path)).bytes())

    def get_to_disk(number: int) -> None:
        each(
            lambda path: write(
                folder / f"raw{path.parts[-4]}", obstore.get(store, name_of(number, path)).bytes()
            )
        )

    def push(number: int) -> None:
        copied(folder / "cache", f"{url}/push{number}")

    def pull(number: int) -> None:
        copied(f"{url}/push{number}", folder / f"back{number}")
        shutil.rmtree(folder / f"back{number}")

    for name, ours, raw in (
        ("push, to plain PUT", push, put),
        ("pull, to plain GET", pull, get),
        ("pull, to plain GET and files forced to disk", pull, get_to_disk),
    ):
        pairs = [(seconds(ours, number), seconds(raw, number)) for number in range(PAIRS)]
        mine, plain = (megabytes / statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(raw / own for own, raw in pairs)
        print(f"{name:45}{mine:6.0f} MB/s, plain {plain:6.0f} MB/s, ratio {ratio:5.2f}", flush=True)


def name_of(number: int, path: Path) -> str:
    return f"raw/{number}/{path.parts[-4]}"


def write(path: Path, content: bytes | obstore.Bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())


def seconds(work: Callable[[int], None], number: int) -> float:
    start = time.perf_counter()
    work(number)
    return time.perf_counter() - start


def peak_megabytes(*words: str) -> float:
    """Run a command in a process of its own and return the most memory that it had."""
    code = (
        "import re, sys; from pathlib import Path; from featpipe.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, *words], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return int(out.split()[-1]) / 1024


def memory(url: str, folder: Path) -> None:
    """Print the peak of push and pull for few rows and for many."""
    for n_stimuli in (1000, 5000, 50_000):
        cache, to = folder / f"rows{n_stimuli}", f"{url}/rows{n_stimuli}"
        filled(cache, n_stimuli, (WIDTH,))
        show = peak_megabytes("cache", "ls", "--cache", str(cache))
        push = peak_megabytes("cache", "push", to, "--cache", str(cache))
        pull = peak_megabytes("cache", "pull", to, "--cache", str(folder / f"second{n_stimuli}"))
        size = n_stimuli * WIDTH * 4 / 1e6
        print(
            f"{n_stimuli} rows, {size:.0f} MB: push {push:.0f} MB, pull {pull:.0f} MB at their peak, ls {show:.0f} MB",
            flush=True,
        )


def main() -> None:
    with s3_server() as server, tempfile.TemporaryDirectory() as folder:
        os.environ |= server.environment
        rates(server.make_bucket("rates"), Path(folder))
        memory(server.make_bucket("memory"), Path(folder))


if __name__ == "__main__":
    main()
