"""A cache behind a URL is checked as one in a folder is, by what its place can tell."""

from __future__ import annotations

import shutil

import pytest

from featpipe.errors import CacheUnreachable, FeaturesNotCached, RequestError
from featpipe.extraction import repair
from featpipe.store import FeatureCache
from featpipe.testing import file_server

pytest.importorskip("obstore")
pytestmark = pytest.mark.usefixtures("impatient_disk")

DAMAGED = {  # file below the array's folder -> shard that it is put down to
    "spec.json": None,
    "data.zarr/features/zarr.json": None,
    "data.zarr/image_sha256/c/0/0": None,
    "sealed.json": None,
    "commits/2.json": 2,
    "data.zarr/features/c/1/0/0/0": 1,
}


@pytest.fixture(params=["memory", "s3"])
def remote(request, tmp_path, make_writer, fill):
    """A complete array in an object store."""
    url = f"memory://{tmp_path.name}" if request.param == "memory" else request.getfixturevalue("s3_bucket")
    return fill(*make_writer(f"{url}/cache"))


@pytest.fixture
def served(tmp_path, make_writer, fill, indexed):
    """A complete array in a folder, and the URL of its cache behind a web server."""
    array = fill(*make_writer(tmp_path / "cache"))
    indexed(tmp_path / "cache")
    with file_server(tmp_path / "cache") as running:
        yield array, running.url


def _flipped(content):
    return bytes([content[0] ^ 1]) + content[1:]


def _flip(array, name):
    """Change one byte of a file, and give a way back."""
    location, file = array.location, f"{array.base}/{name}"
    content = location.read(file, 1 << 20)
    location.replace(file, _flipped(content))
    return lambda: location.replace(file, content)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_flipped_byte_in_an_object_store_is_found_and_put_down_to_its_rows(remote, name):
    cache = FeatureCache(remote.root)
    assert cache.verify() == []
    restore = _flip(remote, name)
    (problem,) = cache.verify()
    assert (problem.file, problem.shard) == (f"{remote.base}/{name}", DAMAGED[name])
    restore()
    assert cache.verify([remote.key]) == []


def test_what_the_format_does_not_name_is_found_in_an_object_store(remote):
    cache, location = FeatureCache(remote.root), remote.location
    sets = f"stimuli/{remote.stimuli_digest}"
    strangers = ["arrays/old/x", f"{remote.base}/commits/7.json", f"{remote.base}/data.zarr", f"{sets}/copy"]
    for name in strangers:
        location.replace(name, b"mine")
    found = [problem.file for problem in cache.verify()]
    assert sorted(found) == sorted(["arrays/old", *strangers[1:]])


def test_lost_files_are_found_and_an_array_that_appears_is_not_called_damaged(remote):
    cache, location = FeatureCache(remote.root), remote.location
    location.replace(f"arrays/{'0' * 64}/data.zarr/zarr.json", b"{}")  # as a creator begins
    assert cache.verify() == []
    location.remove(f"{remote.base}/spec.json")
    location.remove(remote.shard_name(2))
    assert {problem.file: problem.what for problem in cache.verify()} == {
        f"{remote.base}/spec.json": "it is not there",
        remote.shard_name(2): "it is not there",
    }


def test_files_that_follow_from_others_are_written_again_in_an_object_store(remote):
    cache = FeatureCache(remote.root)
    files = ["data.zarr/features/zarr.json", "sealed.json", "data.zarr/stimulus/c/0"]
    before = {name: remote.location.read(f"{remote.base}/{name}", 1 << 20) for name in files}
    for name in files:
        _flip(remote, name)
    done = repair(cache, cache.verify())
    assert done.sound, done
    assert sorted(done.rewritten) == sorted(f"{remote.base}/{name}" for name in files)
    assert {name: remote.location.read(f"{remote.base}/{name}", 1 << 20) for name in files} == before
    assert cache.verify() == []


def test_a_damaged_shard_in_an_object_store_is_moved_aside_and_its_seal_with_it(remote, make_writer, fill):
    cache = FeatureCache(remote.root)
    rows = remote.read()
    _flip(remote, "data.zarr/features/c/1/0/0/0")
    done = repair(cache, cache.verify())
    assert done.missing == [(remote.key, 1)]
    assert FeatureCache(remote.root).array(remote.key).missing == [1]
    assert not remote.location.exists(f"{remote.base}/sealed.json")
    fill(make_writer(remote.root)[0], rows)
    assert remote.location.exists(f"{remote.base}/sealed.json")
    assert cache.verify() == []


def test_a_cache_behind_a_web_server_is_checked(served):
    array, url = served
    assert FeatureCache(url).verify() == []
    for name, shard in DAMAGED.items():
        path = array.folder / name
        content = path.read_bytes()
        path.write_bytes(_flipped(content))
        (problem,) = FeatureCache(url).verify()
        assert (problem.file, problem.shard) == (f"{array.base}/{name}", shard)
        path.write_bytes(content)
    with pytest.raises(FeaturesNotCached, match="no array '0000"):
        FeatureCache(url).verify(["0" * 64])


def test_behind_a_web_server_nothing_is_repaired(served):
    array, url = served
    array.shard_path(1).write_bytes(b"")
    cache = FeatureCache(url)
    with pytest.raises(RequestError, match="can only be read"):
        repair(cache, cache.verify())


def test_a_mirror_does_not_hide_what_is_damaged(served, tmp_path):
    array, url = served
    cache = FeatureCache(url, mirror=tmp_path / "mirror")
    cache.array(array.key).read()
    shutil.rmtree(array.shard_path(1).parent)
    (array.folder / "commits/2.json").write_bytes(b"{}")
    assert [problem.shard for problem in cache.verify()] == [1, 2]


def test_a_cache_that_cannot_be_reached_is_not_called_damaged(served):
    array, url = served
    cache = FeatureCache(url)
    assert cache.keys() == [array.key]
    with file_server(array.root) as other:
        there = FeatureCache(other.url)
        assert there.keys() == [array.key]
    with pytest.raises(CacheUnreachable):
        there.verify()
