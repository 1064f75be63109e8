"""Whatever the disk refuses, and whenever, a cache shows no wrong row, says what to do, and the next run finishes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil

import numpy as np
import pytest

from featpipe.errors import CacheReadError, CacheWriteError, FeatpipeError
from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache

IDS = tuple(f"image_{row}" for row in range(13))  # a whole shard and a short one
MANIFEST = StimulusManifest(IDS, tuple(hashlib.sha256(name.encode()).hexdigest() for name in IDS), "tiny", "")
SPEC = FeatureSpec("imported:tiny", "0" * 64, "layer1", None)
ROWS = np.random.default_rng(3).standard_normal((13, 3)).astype(np.float32)
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES")]
CLEARING = ("lstat", "open", "fstat", "scandir", "unlink", "rmdir")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """Do not wait for the disk: no test here looks after a power cut."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def fill(root):
    """Write what the cache lacks."""
    cache = FeatureCache(root)
    cache.add_stimuli(MANIFEST, shard_rows=8)
    writer = cache.writer(SPEC, MANIFEST.digest, row_shape=(3,), dims=("channel",), codec="zstd-fast")
    for shard in writer.array.missing:
        part = writer.array.layout.rows_of(shard)
        writer.publish(shard, ROWS[part.start : part.stop], {"batch_size": 8})


def read(root):
    """Read all that a cache has to say."""
    for array in FeatureCache(root).arrays():
        np.testing.assert_array_equal(array.read(), ROWS)
        assert (array.ids, array.manifest, array.complete) == (IDS, MANIFEST, True)
        assert array.nbytes == sum(commit["size"] for commit in array.commits())
        assert array.provenance == {"batch_size": 8}


def system_error(name):
    return lambda: OSError(getattr(errno, name), os.strerror(getattr(errno, name)))


def new(root):
    """No cache at all."""


def orphan(root):
    """A shard that a killed writer left without its record."""
    fill(root)
    next(root.glob("arrays/*/sealed.json")).unlink()
    next(root.glob("arrays/*/commits/0.json")).unlink()


def torn(root):
    """The same, and the disk lost the end of it."""
    orphan(root)
    shard = next(root.glob("arrays/*/data.zarr/features/c/0/0"))
    shard.write_bytes(shard.read_bytes()[:-10])


def tried(work, root, disk):
    """Work on a failing disk; return the error, if there was one."""
    with disk.attached():
        try:
            work(root)
        except (FeatpipeError, MemoryError) as error:
            return error
    return None


def check_cache(root):
    """What counts is right, in an interrupted cache too."""
    cache = FeatureCache(root)
    assert cache.verify() == []
    for array in cache.arrays():
        rows = np.flatnonzero(np.isin(np.arange(13) // 8, sorted(array.committed)))
        np.testing.assert_array_equal(array.read(rows), ROWS[rows])


def check_leftovers(root, hit):
    """Nothing is left in ``tmp`` but where clearing away was what failed."""
    kind, _, path = hit.partition(" of ")
    if (root / "tmp").is_dir() and not (kind in CLEARING and path.startswith("/tmp/")):
        assert list((root / "tmp").iterdir()) == [], hit


def points(tmp_path, failing_disk, start, work, **how):
    """Yield a fresh cache and a disk that fails at the next operation, until one run meets no failure."""
    start(tmp_path / "start")
    at, hit = 0, "the first"
    while hit:
        root = tmp_path / str(at)
        if (tmp_path / "start").is_dir():
            shutil.copytree(tmp_path / "start", root)
        disk = failing_disk(root, at=at, **how)
        yield root, disk
        at, hit = at + 1, disk.hit
        shutil.rmtree(root)
    assert at > 20  # it did count something


@pytest.mark.parametrize("name", ["EIO", *SLOW])
def test_a_failure_at_any_operation_of_a_writer(tmp_path, failing_disk, name):
    for root, disk in points(tmp_path, failing_disk, new, fill, error=system_error(name)):
        error = tried(fill, root, disk)
        if error is None:  # only where the work was done all the same
            assert FeatureCache(root).array(SPEC.key(MANIFEST.digest)).complete, disk.hit
        else:
            assert isinstance(error, CacheReadError | CacheWriteError), disk.hit
            assert os.strerror(getattr(errno, name)) in str(error)
        check_cache(root)
        check_leftovers(root, disk.hit or "")
        fill(root)
        read(root)
        assert FeatureCache(root).verify() == []


@pytest.mark.parametrize("start", [orphan, torn])
def test_a_failure_while_a_killed_writers_shard_is_taken_over(tmp_path, failing_disk, start):
    for root, disk in points(tmp_path, failing_disk, start, fill, error=system_error("EIO")):
        error = tried(fill, root, disk)
        assert error is None or isinstance(error, CacheReadError | CacheWriteError), disk.hit
        check_cache(root)
        fill(root)
        read(root)
        assert FeatureCache(root).verify() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "for_good"),
    [
        ("ENOSPC", ("create", "write", "mkdir", "fsync", "link", "rename")),
        ("EROFS", ("create", "write", "mkdir", "fsync", "link", "rename", "unlink", "rmdir")),
    ],
)
def test_a_disk_that_stays_full_or_read_only(tmp_path, failing_disk, name, for_good):
    how = {"error": system_error(name), "for_good": for_good}
    for root, disk in points(tmp_path, failing_disk, new, fill, **how):
        error = tried(fill, root, disk)
        assert error is None or isinstance(error, CacheReadError | CacheWriteError), disk.hit
        check_cache(root)
        if name == "ENOSPC":
            check_leftovers(root, disk.hit or "")
        fill(root)
        read(root)


@pytest.mark.slow
def test_memory_that_runs_out_at_any_operation(tmp_path, failing_disk):
    for root, disk in points(tmp_path, failing_disk, new, fill, error=MemoryError):
        error = tried(fill, root, disk)
        assert error is not None or FeatureCache(root).array(SPEC.key(MANIFEST.digest)).complete, disk.hit
        check_cache(root)
        check_leftovers(root, disk.hit or "")
        fill(root)
        read(root)


@pytest.mark.parametrize("name", ["EIO", "EACCES"])
def test_a_failure_at_any_operation_of_a_reader(tmp_path, failing_disk, name):
    for root, disk in points(tmp_path, failing_disk, fill, read, error=system_error(name)):
        error = tried(read, root, disk)
        assert error is None or isinstance(error, CacheReadError), disk.hit
        if error is not None:
            assert "could not be read" in str(error)


def test_a_failure_at_any_operation_of_verify_is_no_clean_bill(tmp_path, failing_disk):
    found = []

    def verify(root):
        found[:] = FeatureCache(root).verify()

    for root, disk in points(tmp_path, failing_disk, fill, verify, error=system_error("EIO")):
        error = tried(verify, root, disk)
        assert isinstance(error, CacheReadError) or bool(found) == bool(disk.hit), disk.hit
        assert FeatureCache(root).verify() == []


def test_a_failure_at_any_operation_of_a_removal(tmp_path, failing_disk):
    def remove(root):
        FeatureCache(root).remove(FeatureCache(root).keys())

    for root, disk in points(tmp_path, failing_disk, fill, remove, error=system_error("EIO")):
        error = tried(remove, root, disk)
        assert error is None or isinstance(error, CacheReadError | CacheWriteError), disk.hit
        check_cache(root)
        fill(root)
        read(root)
