"""A mirror holds verified copies only, in limited room, and makes nothing wrong when it or the cache fails."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from featpipe.errors import CacheCorrupt, CacheUnreachable, RequestError
from featpipe.features import CachedFeatures
from featpipe.store import FeatureCache
from featpipe.store.location import MirroredURL, locate, mirrored
from featpipe.store.location import _web as web
from featpipe.testing import file_server

pytestmark = pytest.mark.usefixtures("impatient_disk")


@pytest.fixture
def server(tmp_path):
    (tmp_path / "cache").mkdir()
    with file_server(tmp_path / "cache") as running:
        yield running


@pytest.fixture
def published(tmp_path, make_writer, fill, indexed, server):
    """A server of a cache with a complete array: the server, the array in its folder, its rows."""
    writer, rows = make_writer(tmp_path / "cache")
    array = fill(writer, rows)
    indexed(tmp_path / "cache")
    return server, array, rows


@pytest.fixture
def mirror(tmp_path):
    return tmp_path / "mirror"


def _afresh(url, mirror, size=None):
    """Open a cache as another process would: with nothing in memory."""
    root = mirrored(url, mirror, size)
    from featpipe.store.location._mirror import Mirrored

    cache = FeatureCache("memory://none")
    cache.location = Mirrored(web.Web(url), root)
    return cache


def _shards(mirror):
    return sorted(path for path in mirror.glob("shards/*/*"))


@pytest.mark.parametrize("codec", ["none", "zstd-fast"])
def test_what_was_read_once_is_not_asked_for_again(
    tmp_path, make_writer, fill, indexed, server, mirror, codec
):
    writer, rows = make_writer(tmp_path / "cache", codec=codec)
    key = fill(writer, rows).key
    indexed(tmp_path / "cache")
    there = _afresh(server.url, mirror).array(key)
    np.testing.assert_array_equal(there.read(), rows)
    assert there.ids
    assert len(_shards(mirror)) == 3
    server.forget()
    array = _afresh(server.url, mirror).array(key)
    np.testing.assert_array_equal(array.read(), rows)
    np.testing.assert_array_equal(array.read(np.array([20, 0, 0, 9])), rows[[20, 0, 0, 9]])
    assert array.manifest.ids[0] == array.ids[0]
    assert server.requests() == []
    assert {path.name for path in _shards(mirror)} == {commit["sha256"] for commit in array.commits()}


def test_a_few_rows_bring_their_shards_only(published, mirror):
    server, array, rows = published
    np.testing.assert_array_equal(_afresh(server.url, mirror).array(array.key).read(np.array([9])), rows[[9]])
    assert [path.name for path in _shards(mirror)] == [array.commit(1)["sha256"]]


def test_without_the_cache_sealed_arrays_are_still_read(published, mirror, monkeypatch):
    server, array, rows = published
    monkeypatch.setattr(web, "_FIRST_WAIT", 0.01)
    cache = _afresh(server.url, mirror)
    assert cache.keys() == [array.key]
    cache.array(array.key).read()
    assert cache.array(array.key).ids
    server.close()
    cache = _afresh(server.url, mirror)
    with pytest.warns(UserWarning, match="cannot be reached.*only what its mirror holds is read"):
        assert cache.keys() == [array.key]
    np.testing.assert_array_equal(cache.array(array.key).read(), rows)
    assert cache.keys() == [array.key]  # without asking, and warning, again
    with pytest.raises(CacheUnreachable):
        _afresh(server.url, mirror / "other").keys()


def test_a_shard_that_came_damaged_is_not_kept(published, mirror):
    server, array, rows = published
    place = array.shard_path(1)
    right = place.read_bytes()
    place.write_bytes(bytes([right[0] ^ 1]) + right[1:])
    with pytest.raises(CacheCorrupt, match=r"c/1/0.*not those that were committed"):
        _afresh(server.url, mirror).array(array.key).read()
    assert array.commit(1)["sha256"] not in {path.name for path in _shards(mirror)}
    assert not list((mirror / "tmp").iterdir())
    place.write_bytes(right)
    np.testing.assert_array_equal(_afresh(server.url, mirror).array(array.key).read(), rows)


@pytest.mark.parametrize("name", ["spec.json", "sealed.json", "data.zarr/features/zarr.json", "stimuli.json"])
def test_a_small_file_that_is_damaged_in_the_mirror_is_fetched_again(published, mirror, name):
    server, array, rows = published
    there = _afresh(server.url, mirror).array(array.key)
    assert there.read() is not None
    assert there.ids
    copy = next(path for path in mirror.glob("files/**/*.json") if str(path).endswith(f"/{name}"))
    right = copy.read_bytes()
    copy.write_bytes(right[:-9] + b"?" + right[-8:])
    again = _afresh(server.url, mirror).array(array.key)
    np.testing.assert_array_equal(again.read(), rows)
    assert again.ids == array.ids
    assert copy.read_bytes() == right


@pytest.mark.parametrize("damage", ["shorter", "index"])
def test_a_shard_that_is_damaged_in_the_mirror_is_fetched_again(published, mirror, damage):
    server, array, rows = published
    _afresh(server.url, mirror).array(array.key).read()
    copy = mirror / "shards" / (sha := array.commit(1)["sha256"])[:2] / sha
    right = copy.read_bytes()
    copy.write_bytes(right[:-1] if damage == "shorter" else right[:-1] + bytes([right[-1] ^ 1]))
    np.testing.assert_array_equal(_afresh(server.url, mirror).array(array.key).read(), rows)
    assert copy.read_bytes() == right


def test_all_shards_that_are_damaged_in_the_mirror_are_fetched_again_at_once(published, mirror):
    server, array, rows = published
    _afresh(server.url, mirror).array(array.key).read()
    copies = [path for path in mirror.glob("shards/*/*") if path.is_file()]
    assert len(copies) > 1
    for copy in copies:
        content = copy.read_bytes()
        copy.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    np.testing.assert_array_equal(_afresh(server.url, mirror).array(array.key).read(), rows)


def test_a_shard_that_was_made_again_takes_the_place_of_the_old(
    published, mirror, tmp_path, make_writer, fill, indexed
):
    server, array, rows = published
    _afresh(server.url, mirror).array(array.key).read(np.array([0]))
    cache = FeatureCache(tmp_path / "cache")
    for shard in (0, 1, 2):
        cache.set_aside([_problem(array.key, shard)])
    writer, _ = make_writer(tmp_path / "cache")
    fill(writer, rows + 1)
    indexed(tmp_path / "cache")
    np.testing.assert_array_equal(
        _afresh(server.url, mirror).array(array.key).read(np.array([9])), rows[[9]] + 1
    )


def _problem(key, shard):
    from featpipe.store import Problem

    return Problem(key, shard, None, "", "")


def test_a_digest_that_is_a_path_leads_nowhere(mirror):
    copies = locate(mirrored("memory://none", mirror))._copies
    for name in ("../../../etc/passwd", "A" * 64, ""):
        with pytest.raises(CacheCorrupt, match="no SHA-256"):
            copies.holds(1, name)


def test_the_least_recently_used_shards_make_room(tmp_path, make_writer, fill, indexed, server, mirror):
    arrays = []
    for number in range(3):
        writer, rows = make_writer(tmp_path / "cache", layer=f"layer{number}")
        arrays.append(fill(writer, rows + number))
    indexed(tmp_path / "cache")
    for array in (arrays[0], arrays[1], arrays[0], arrays[2]):
        _afresh(server.url, mirror, 2 * array.nbytes).array(array.key).read()
        for path in _shards(mirror):  # time passes
            status = path.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 10**9))
    held = {path.name for path in _shards(mirror)}
    assert held == {commit["sha256"] for array in (arrays[0], arrays[2]) for commit in array.commits()}


@pytest.mark.parametrize("size", [1, 1500])
def test_room_for_less_than_an_array_gives_right_rows(published, mirror, size):
    server, array, rows = published
    np.testing.assert_array_equal(_afresh(server.url, mirror, size).array(array.key).read(), rows)
    assert sum(path.stat().st_size for path in _shards(mirror)) <= size


def test_a_mirror_that_cannot_be_written_is_said_and_done_without(published, mirror):
    server, array, rows = published
    mirror.mkdir()
    (mirror / "tmp").write_text("in the way")
    with pytest.warns(UserWarning, match="The mirror .* cannot be written .*read without one"):
        np.testing.assert_array_equal(_afresh(server.url, mirror).array(array.key).read(), rows)


def test_threads_and_processes_share_a_mirror(published, mirror):
    server, array, rows = published
    script = (
        "import sys, numpy as np; from featpipe.store import FeatureCache\n"
        "cache = FeatureCache(sys.argv[1], sys.argv[2], 3000)\n"
        "rows = [cache.array(sys.argv[3]).read() for _ in range(20)]\n"
        "assert all((one == rows[0]).all() for one in rows)\n"
        "np.save(sys.argv[4], rows[0])"
    )
    outs = [mirror.parent / f"{number}.npy" for number in range(3)]
    started = [
        subprocess.Popen([sys.executable, "-c", script, server.url, str(mirror), array.key, str(out)])
        for out in outs
    ]
    cache = _afresh(server.url, mirror, 3000)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: cache.array(array.key).read(), range(20)):
            np.testing.assert_array_equal(found, rows)
    assert [process.wait(timeout=60) for process in started] == [0, 0, 0]
    for out in outs:
        np.testing.assert_array_equal(np.load(out), rows)
    assert not list((mirror / "tmp").iterdir())


def test_what_killed_processes_left_is_removed(published, mirror):
    server, array, _ = published
    (mirror / "tmp").mkdir(parents=True)
    old, new = mirror / "tmp" / "old", mirror / "tmp" / "new"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    _afresh(server.url, mirror).array(array.key).read()
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize(
    ("cache", "mirror", "size", "said"),
    [
        ("folder", "m", None, "A mirror is for a URL"),
        ("file:///folder", "m", None, "A mirror is for a URL"),
        ("memory://m", "s3://m", None, "must be a folder of this machine"),
        ("memory://m", "m", 0, "number of bytes from 1, got 0"),
        ("memory://m", None, 5, "no mirror"),
    ],
)
def test_a_mirror_that_makes_no_sense_is_refused(cache, mirror, size, said):
    with pytest.raises(RequestError, match=said):
        FeatureCache(cache, mirror, size)


def test_estimators_read_through_a_mirror_and_workers_get_its_name(published, mirror):
    server, array, rows = published
    features = CachedFeatures(server.url, mirror=str(mirror), mirror_size=10**6)
    assert features.get_params()["mirror_size"] == 10**6
    ids = np.array(array.ids)
    features.fit(ids)
    server.forget()
    blocks = features.set_params(output="blocks").transform(ids)
    np.testing.assert_array_equal(blocks.to_matrix(), rows.reshape(len(rows), -1))
    assert len(_shards(mirror)) == 3
    sent = pickle.dumps(blocks)
    assert len(sent) < 8000
    np.testing.assert_array_equal(pickle.loads(sent).to_matrix(), rows.reshape(len(rows), -1))
    root = pickle.loads(pickle.dumps(FeatureCache(server.url, mirror))).location
    assert root is locate(MirroredURL(server.url, str(mirror)))
