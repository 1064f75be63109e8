"""A small cache and what it takes to make one."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache
from featpipe.store._index import INDEX, CacheIndex, index_line

N_STIMULI, SHARD_ROWS = 21, 8  # two whole shards and a short one


def _manifest(n_stimuli):
    ids = tuple(f"bïld_{row}" for row in range(n_stimuli))
    return StimulusManifest(ids, tuple(hashlib.sha256(name.encode()).hexdigest() for name in ids), "tiny", "")


def _spec(**changes):
    given = {"model": "imported:tiny", "weights": "0" * 64, "layer": "layer1", "preprocessing": None}
    return FeatureSpec(**(given | changes))


def _rows(n_stimuli, shape, dtype):
    return np.random.default_rng(3).standard_normal((n_stimuli, *shape)).astype(dtype)


@pytest.fixture(scope="session")
def make_manifest():
    return _manifest


@pytest.fixture(scope="session")
def make_spec():
    return _spec


@pytest.fixture(scope="session")
def make_writer():
    """Return a writer on a new array of a cache, and the rows to fill it with."""

    def make(root, *, shape=(3, 2, 2), dtype="float32", codec="none", n_stimuli=N_STIMULI, **changes):
        cache = FeatureCache(root)
        manifest = _manifest(n_stimuli)
        cache.add_stimuli(manifest, shard_rows=SHARD_ROWS)
        dims = ("channel", "height", "width")[: len(shape)]
        spec = _spec(store_dtype=dtype, **changes)
        writer = cache.writer(spec, manifest.digest, row_shape=shape, dims=dims, codec=codec)
        return writer, _rows(n_stimuli, shape, dtype)

    return make


@pytest.fixture(scope="session")
def fill():
    """Publish shards of a writer; all by default."""

    def publish(writer, rows, shards=None):
        for shard in range(writer.array.layout.n_shards) if shards is None else shards:
            part = writer.array.layout.rows_of(shard)
            writer.publish(shard, rows[part.start : part.stop], {"batch_size": 8})
        return FeatureCache(writer.array.root).array(writer.array.key)

    return publish


@pytest.fixture
def impatient_disk(monkeypatch):
    """Skip forcing bytes to disk, where a test makes many caches and looks at none after a crash."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def tiny_cache(tmp_path, make_writer, fill):
    """A complete array in a cache, and its rows."""
    writer, rows = make_writer(tmp_path / "cache")
    return fill(writer, rows), rows


@pytest.fixture(scope="session")
def indexed():
    """Write the index of a cache in a folder, as whoever publishes it does."""

    def write(root):
        arrays = {}
        for array in FeatureCache(root).arrays():
            sealed = (array.folder / "sealed.json").exists()
            spec = array.spec.document(array.stimuli_digest)
            arrays[array.key] = index_line(array.key, spec, array.committed, sealed=sealed)
        (Path(root) / INDEX).write_bytes(CacheIndex(arrays).encode())

    return write


def _memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


@pytest.fixture(scope="session")
def bounded():
    """Return a context in which little time and memory may be used."""
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
    except OSError:
        pytest.skip("this system does not measure memory at its peak")

    @contextmanager
    def little(seconds=5, memory=160 << 20):
        reset.write_text("5")
        before, start = _memory("VmRSS"), time.process_time()
        yield
        used = _memory("VmHWM") - before
        assert used < memory, f"{used >> 20} MiB at the peak"
        assert time.process_time() - start < seconds

    return little
