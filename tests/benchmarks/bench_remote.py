"""Rows through ``s3://`` and ``http://`` against plain GETs of the same bytes, from the same server on loopback.

``python tests/benchmarks/bench_remote.py [MB]``. Medians of interleaved pairs: what reading a whole layer takes,
relative to fetching the same shard files whole, with as many requests at a time, and keeping their bytes. 1 means
that nothing but the server is waited for. Also the requests that opening and reading take.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import urllib3

from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store import CachedArray, FeatureCache
from featpipe.store._index import INDEX, CacheIndex, index_line
from featpipe.testing import file_server, s3_server

PAIRS = 7
SHAPE, SHARD_ROWS = (96, 14, 14), 256  # 19 MB a shard


def main(megabytes: int) -> None:
    """Print both figures."""
    n_stimuli = max(SHARD_ROWS, int(megabytes * 1e6 / (np.prod(SHAPE) * 4)) // SHARD_ROWS * SHARD_ROWS)
    with tempfile.TemporaryDirectory() as folder:
        _over_http(Path(folder), n_stimuli)
        _over_s3(n_stimuli)


def _over_http(root: Path, n_stimuli: int) -> None:
    key = _fill(root, n_stimuli)
    with file_server(root) as server:
        array = FeatureCache(server.url).array(key)
        pool = urllib3.PoolManager(maxsize=array.location.threads)
        _compare("http", array, lambda name: pool.request("GET", f"{server.url}/{name}").data)
        server.forget()
        fresh = FeatureCache(server.url).array(key)
        opened = fresh.complete and len(server.requests())
        fresh.read()
        print(
            f"    {opened} requests to open, {len(server.requests()) - opened} to read {fresh.layout.n_shards} shards"
        )


def _over_s3(n_stimuli: int) -> None:
    with s3_server() as server:
        os.environ |= server.environment
        url = f"{server.make_bucket('bench')}/cache"
        array = FeatureCache(url).array(_fill(url, n_stimuli))
        store = array.location._store
        _compare("s3", array, lambda name: obstore.get(store, f"cache/{name}").bytes())


def _fill(root: Path | str, n_stimuli: int) -> str:
    ids = tuple(str(number) for number in range(n_stimuli))
    manifest = StimulusManifest(ids, tuple(f"{number:064x}" for number in range(n_stimuli)), "bench", "")
    cache = FeatureCache(root)
    cache.add_stimuli(manifest, shard_rows=SHARD_ROWS)
    spec = FeatureSpec(model="imported:bench", weights="0" * 64, layer="rows", preprocessing=None)
    dims = ("channel", "height", "width")
    writer = cache.writer(spec, manifest.digest, row_shape=SHAPE, dims=dims, codec="none")
    rng = np.random.default_rng(0)
    for shard in range(writer.array.layout.n_shards):
        writer.publish(shard, rng.standard_normal((SHARD_ROWS, *SHAPE), dtype=np.float32), {})
    array = cache.array(spec.key(manifest.digest))
    if isinstance(root, Path):
        line = index_line(array.key, spec.document(manifest.digest), array.committed, sealed=True)
        (root / INDEX).write_bytes(CacheIndex({array.key: line}).encode())
    return array.key


def _compare(name: str, array: CachedArray, get: Callable[[str], Any]) -> None:
    out = np.empty((array.n_stimuli, *array.row_shape), array.dtype)
    out[:] = 0  # pages are there
    shards = [array.shard_name(shard) for shard in range(array.layout.n_shards)]
    ours, raw = [], []
    for _ in range(PAIRS):
        with ThreadPoolExecutor(array.location.threads) as pool:
            raw.append(_timed(lambda: list(pool.map(get, shards))))
        ours.append(_timed(lambda: array.read(out=out)))
    ratio = statistics.median(theirs / mine for theirs, mine in zip(raw, ours, strict=True))
    size = array.nbytes / 1e6
    print(
        f"{name}: {size:.0f} MB in {len(shards)} shards, {size / statistics.median(ours):.0f} MB/s, plain GETs "
        f"{size / statistics.median(raw):.0f} MB/s: ratio {ratio:.2f}"
    )


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
