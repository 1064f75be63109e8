"""Killed, raced or refused by the disk, a cache never shows a wrong row."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from featpipe.errors import CacheCorrupt, CacheWriteError, FeaturesNotCached, RequestError
from featpipe.spec import digest_of
from featpipe.store import FeatureCache
from featpipe.store._shard import encode_shard

WRITER = """
import os, signal, sys
import numpy as np
from featpipe.store import FeatureCache
root, key, at = sys.argv[1], sys.argv[2], sys.argv[3]
array = FeatureCache(root).array(key)
writer = FeatureCache(root).writer(
    array.spec, array.stimuli_digest, row_shape=array.row_shape, dims=array.dims
)
rows = np.load(sys.argv[4])

def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def killed_after(function):
    return lambda *given: (function(*given), killed())

if at == "before the shard": os.rename = killed
if at == "after the shard": os.rename = killed_after(os.rename)
if at == "before the commit": os.link = killed
if at == "after the commit": os.link = killed_after(os.link)
if at == "while writing": os.fsync = killed
for shard in range(array.layout.n_shards):
    part = array.layout.rows_of(shard)
    print(int(writer.publish(shard, rows[part.start : part.stop], {"by": at})))
"""


def _start(writer, rows, at, folder):
    saved = folder / "rows.npy"
    if not saved.exists():
        np.save(saved, rows)
    given = [writer.array.root, writer.array.key, at, saved]
    command = [sys.executable, "-c", WRITER, *map(str, given)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("at", "committed"),
    [
        ("while writing", set()),
        ("before the shard", set()),
        ("after the shard", set()),
        ("before the commit", set()),
        ("after the commit", {0}),
    ],
)
def test_a_killed_writer_leaves_no_wrong_row(tmp_path, make_writer, fill, at, committed):
    writer, rows = make_writer(tmp_path / "cache", codec="zstd-fast")
    with _start(writer, rows, at, tmp_path) as process:
        assert process.wait() == -signal.SIGKILL
    assert writer.array.committed == committed
    adopted = writer.array.shard_path(0).exists() and not committed
    array = fill(writer, rows)
    assert array.read().tobytes() == rows.tobytes()
    assert FeatureCache(array.root).verify() == []
    undisturbed = {f"commits/{s}.json" for s in range(3)} | {array.layout.shard_path(s) for s in range(3)}
    assert set(_files(array.folder)) == undisturbed | set(writer.static) | {"sealed.json"}
    if adopted:  # by a writer with the same rows, so it can vouch for them
        assert array.commit(0)["provenance"] == {"batch_size": 8}


def test_two_processes_share_the_shards(tmp_path, make_writer):
    writer, rows = make_writer(tmp_path / "cache", n_stimuli=120)
    processes = [_start(writer, rows, "end", tmp_path) for _ in range(2)]
    wins = [np.array(process.communicate()[0].split(), int) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    np.testing.assert_array_equal(wins[0] + wins[1], 1)
    np.testing.assert_array_equal(writer.array.read(), rows)
    assert FeatureCache(writer.array.root).verify() == []


def test_threads_race_and_one_wins(tmp_path, make_writer):
    writer, rows = make_writer(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        for shard in range(3):
            part = writer.array.layout.rows_of(shard)
            some = [pool.submit(writer.publish, shard, rows[part.start : part.stop], {}) for _ in range(8)]
            assert sum(done.result() for done in some) == 1
    np.testing.assert_array_equal(writer.array.read(), rows)
    assert FeatureCache(tmp_path).verify() == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_threads_race_to_create_the_same_array(tmp_path, make_writer):
    with ThreadPoolExecutor(8) as pool:
        racing = [pool.submit(make_writer, tmp_path) for _ in range(8)]
        writers = [made.result()[0] for made in racing]
    assert len({writer.array.key for writer in writers}) == 1
    assert FeatureCache(tmp_path).verify() == []


def test_a_torn_shard_is_moved_aside_and_written_again(tmp_path, make_writer, fill):
    writer, rows = make_writer(tmp_path)
    array = fill(writer, rows)
    (array.folder / "commits/1.json").unlink()
    torn = array.shard_path(1).read_bytes()[:-40]
    array.shard_path(1).write_bytes(torn)
    assert fill(writer, rows).complete
    np.testing.assert_array_equal(array.read(), rows)
    assert [path.read_bytes() for path in (tmp_path / "aside").glob(f"{array.key}-1-*/0/0/0")] == [torn]


def test_a_whole_shard_of_other_rows_is_adopted_as_such(tmp_path, make_writer, fill):
    """Left by a killed writer on another machine: its rows stay, and nobody claims to have made them."""
    writer, rows = make_writer(tmp_path)
    place = writer.array.shard_path(0)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"".join(encode_shard(rows[:8] + np.float32(1e-6), writer.array.layout)))
    assert writer.publish(0, rows[:8], {"by": "us"}, reused=[{"key": "other"}])
    record = writer.array.commit(0)
    assert (record["provenance"], record["reused"]) == ({"adopted": True}, [])
    np.testing.assert_array_equal(writer.array.read(np.arange(8)), rows[:8] + np.float32(1e-6))


def test_a_committed_shard_is_never_overwritten(tiny_cache, make_writer):
    array, rows = tiny_cache
    before = _files(array.folder)
    writer, _ = make_writer(array.root)
    assert not writer.publish(1, rows[8:16] + 1, {"by": "another"})
    assert _files(array.folder) == before


def test_racing_creators_write_the_same_bytes(tmp_path, make_writer):
    one, other = (make_writer(tmp_path / name)[0].array.folder for name in ("a", "b"))
    assert _files(one) == _files(other)


def test_the_commit_says_what_was_written(tiny_cache):
    array, _ = tiny_cache
    record = array.commits()[2]
    stored = array.shard_path(2)
    assert (record["key"], record["shard"], record["rows"]) == (array.key, 2, [16, 21])
    assert record["size"] == stored.stat().st_size
    assert record["checksum"] == digest_of({k: v for k, v in record.items() if k != "checksum"})
    assert array.provenance == record["provenance"] == {"batch_size": 8}
    assert array.nbytes == sum(commit["size"] for commit in array.commits())


@pytest.mark.parametrize("number", [errno.EPERM, errno.EXDEV, errno.ENOTSUP])
def test_without_hard_links_the_first_still_wins(tmp_path, make_writer, fill, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    writer, rows = make_writer(tmp_path)
    array = fill(writer, rows)
    assert not writer.publish(0, rows[:8] + 1, {})
    np.testing.assert_array_equal(array.read(), rows)


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "Free some space"), (errno.EROFS, "read-only"), (errno.EACCES, "no permission")],
)
@pytest.mark.parametrize("call", ["fsync", "link"])
def test_what_the_disk_refuses_comes_with_advice(tmp_path, make_writer, monkeypatch, number, advice, call):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    writer, rows = make_writer(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(CacheWriteError, match=advice):
            writer.publish(0, rows[:8], {})
    assert writer.array.committed == frozenset()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert writer.publish(0, rows[:8], {})


def test_a_cache_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(RequestError, match="is a file; name a folder"):
        FeatureCache(tmp_path / "cache")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: (0, rows[:7]), r"takes float32 of shape \(8, 3, 2, 2\), got float32 of shape \(7, 3"),
        (lambda rows: (0, rows[:8].astype(float)), "got float64"),
        (lambda rows: (2, rows[:8]), r"takes float32 of shape \(5, 3, 2, 2\)"),
        (lambda rows: (3, rows[:8]), "has shards 0 to 2, not 3"),
        (lambda rows: (-1, rows[:8]), "has shards 0 to 2, not -1"),
    ],
)
def test_rows_that_do_not_fit_a_shard_are_refused(tmp_path, make_writer, change, message):
    writer, rows = make_writer(tmp_path)
    with pytest.raises(RequestError, match=message):
        writer.publish(*change(rows), {})


def test_provenance_that_is_no_json_is_refused(tmp_path, make_writer):
    writer, rows = make_writer(tmp_path)
    with pytest.raises(RequestError, match="plain JSON"):
        writer.publish(0, rows[:8], {"device": object()})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row_shape": (4, 2, 2)}, "came for the same key"),
        ({"dims": ("height", "width", "channel")}, "came for the same key"),
        ({"row_shape": (), "dims": ()}, "1 to 7 axes"),
        ({"dims": ("channel", "stimulus", "x")}, "differ from each other"),
        ({"codec": "gzip"}, "Codec 'gzip' is not known; choose from auto, none"),
    ],
)
def test_an_array_of_another_shape_is_refused(tiny_cache, options, message):
    array, _ = tiny_cache
    given = {"row_shape": array.row_shape, "dims": array.dims} | options
    with pytest.raises(RequestError, match=message):
        FeatureCache(array.root).writer(array.spec, array.stimuli_digest, **given)


def test_stimuli_are_added_once(tmp_path, make_manifest):
    cache, manifest = FeatureCache(tmp_path), make_manifest(9)
    assert cache.add_stimuli(manifest, shard_rows=16).shard_rows == 16
    assert FeatureCache(tmp_path).add_stimuli(manifest, shard_rows=64).shard_rows == 16
    assert FeatureCache(tmp_path).stimuli(manifest.digest).manifest == manifest


@pytest.mark.parametrize("shard_rows", [0, 12, -8, 1 << 20])
def test_rows_per_shard_are_whole_batches(tmp_path, make_manifest, shard_rows):
    with pytest.raises(RequestError, match="multiple of 8"):
        FeatureCache(tmp_path).add_stimuli(make_manifest(9), shard_rows=shard_rows)


def test_a_writer_needs_its_stimuli(tmp_path, make_spec):
    with pytest.raises(FeaturesNotCached, match="no stimulus set"):
        FeatureCache(tmp_path).writer(make_spec(), "0" * 64, row_shape=(1,), dims=("channel",))


def test_a_writer_sees_damage_beside_its_shards(tiny_cache, make_writer):
    array, _ = tiny_cache
    path = array.folder / "data.zarr/stimulus/c/0"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CacheCorrupt, match="stimulus/c/0 is not what array"):
        make_writer(array.root)


def test_auto_compresses_what_compresses(tmp_path, make_writer, rng):
    writer, _ = make_writer(tmp_path)
    for layer, threshold, codec in [("relu", 1.5, "zstd-fast"), ("tokens", -9, "none")]:
        sample = np.maximum(rng.standard_normal((8, 64), dtype=np.float32), threshold)
        spec = type(writer.array.spec)("imported:x", "0" * 64, layer, None)
        made = FeatureCache(tmp_path).writer(
            spec, writer.array.stimuli_digest, row_shape=(64,), dims=("channel",), sample=sample
        )
        assert made.array.codec == codec


def test_removed_arrays_are_gone(tmp_path, make_writer):
    keys = [make_writer(tmp_path, layer=layer)[0].array.key for layer in "ab"]
    cache = FeatureCache(tmp_path)
    with pytest.raises(FeaturesNotCached, match="no array"):
        cache.remove([keys[0], "0" * 64])
    cache.remove(keys[:1])
    assert cache.keys() == keys[1:]
    assert not list(Path(tmp_path).rglob(keys[0]))
