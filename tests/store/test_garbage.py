"""Garbage is what nobody will need: it is listed first, removed when asked, and nothing else is."""

from __future__ import annotations

import os
import time

import pytest

from featpipe.errors import CacheCorrupt, CacheWriteError, FeaturesNotCached, RequestError
from featpipe.stimuli import StimulusManifest
from featpipe.store import CLAIM_EXPIRY, ClaimFiles, Claims, FeatureCache, GarbageFilter

pytestmark = pytest.mark.usefixtures("impatient_disk")
HOUR, DAY = 3600, 86_400


def _age(path, seconds):
    """Make a file, or a folder with all that is in it, look as if it had been written so long ago."""
    then = time.time() - seconds
    for part in (*(path.rglob("*") if path.is_dir() and not path.is_symlink() else ()), path):
        os.utime(part, (then, then), follow_symlinks=False)


def _put(path, content=b"1234", *, age=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    _age(path, age)
    return path


def _leftover(root, name, age):
    _put(root / "tmp" / name / "0" / "file", age=age)
    _age(root / "tmp" / name, age)


def _found(cache, **wanted):
    return {str(some.path.relative_to(cache.root)) for some in cache.garbage(**wanted)}


@pytest.fixture
def cache(tiny_cache):
    return FeatureCache(tiny_cache[0].root)


def test_leftovers_of_killed_writers_and_abandoned_claims_go(cache, tiny_cache):
    _leftover(cache.root, "old", 2 * HOUR)
    _leftover(cache.root, "young", 0)
    _put(cache.root / "tmp" / "file", age=2 * HOUR)
    _put(cache.root / "claims/work/0.json", age=CLAIM_EXPIRY + 10)
    _put(cache.root / "claims/work/1.json", age=CLAIM_EXPIRY - 10)
    garbage = cache.garbage()
    assert {some.path.name: (some.kind, some.nbytes) for some in garbage} == {
        "old": ("leftover", 4),
        "file": ("leftover", 4),
        "0.json": ("claim", 4),
    }
    assert all(
        (cache.root / "tmp" / name).exists() for name in ("old", "young", "file")
    )  # so far only listed
    assert cache.discard(garbage) == []
    assert cache.garbage() == []
    assert sorted(os.listdir(cache.root / "tmp")) == ["young"]
    assert os.listdir(cache.root / "claims/work") == ["1.json"]
    assert cache.verify() == []
    assert tiny_cache[0].complete


def test_a_folder_is_as_old_as_the_newest_file_in_it(cache):
    _leftover(cache.root, "busy", 2 * HOUR)
    _put(cache.root / "tmp/busy/0/file")
    assert _found(cache) == set()
    assert _found(cache, older=0) == {"tmp/busy"}


def test_ages_are_by_the_clock_of_the_file_system(cache, monkeypatch):
    _leftover(cache.root, "old", 2 * HOUR)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert _found(cache) == {"tmp/old"}


def test_what_was_moved_aside_goes_only_when_asked(cache, tiny_cache, monkeypatch):
    tiny_cache[0].shard_path(1).write_bytes(b"torn")
    cache.set_aside(cache.verify())
    assert _found(cache) == _found(cache, aside=True) == set()  # a moment ago: its writer may put it back
    monkeypatch.setattr("featpipe.store.finding._garbage._GRACE", 0.0)
    garbage = cache.garbage(aside=True)
    assert len(garbage) > 1
    assert {some.kind for some in garbage} == {"aside"}
    cache.discard(garbage)
    assert os.listdir(cache.root / "aside") == []


def _unused_set(cache, age=2 * HOUR):
    digest = cache.add_stimuli(StimulusManifest(("a",), ("0" * 64,))).manifest.digest
    _age(cache.root / "stimuli" / digest, age)
    return digest


def test_stimulus_sets_of_no_array_go_only_when_asked_and_old(cache):
    digest = _unused_set(cache)
    used = set(cache.stimuli_digests()) - {digest}
    _age(cache.root / "stimuli" / next(iter(used)), 2 * HOUR)
    assert _found(cache) == set()
    garbage = cache.garbage(stimuli=True)
    assert [some.path.name for some in garbage] == [digest]
    cache.discard(garbage)
    assert set(cache.stimuli_digests()) == used
    _unused_set(cache, age=HOUR / 2)
    assert _found(cache, stimuli=True) == set()


def test_a_set_that_an_array_came_to_use_goes_back(cache, make_spec):
    digest = _unused_set(cache)
    garbage = cache.garbage(stimuli=True)
    cache.writer(make_spec(layer="late"), digest, row_shape=(2,), dims=("channel",), codec="none")
    ((kept, why),) = cache.discard(garbage)
    assert (kept.path.name, why) == (digest, "an array came to use it in between")
    assert len(FeatureCache(cache.root).stimuli(digest).manifest) == 1


def test_while_an_array_cannot_be_read_no_set_counts_as_unused(cache, tiny_cache):
    _unused_set(cache)
    (tiny_cache[0].folder / "spec.json").write_bytes(b"{}")
    with pytest.raises(CacheCorrupt, match="does not say which stimulus set"):
        cache.garbage(stimuli=True)


def test_a_claim_that_was_renewed_in_between_stays(cache):
    claim = _put(cache.root / "claims/work/0.json", b"mine", age=CLAIM_EXPIRY + 10)
    garbage = cache.garbage()
    os.utime(claim)
    ((_, why),) = cache.discard(garbage)
    assert why == "it was renewed in between"
    assert claim.read_bytes() == b"mine"


def test_claims_that_are_held_stay_and_those_of_the_dead_go(cache):
    with Claims(ClaimFiles(cache.root, "ab" * 32)) as claims:
        assert claims.take("0")
        assert claims.take("1")
        _age(cache.root / "claims" / ("ab" * 32) / "1.json", CLAIM_EXPIRY + 10)
        garbage = cache.garbage()
        assert [some.path.name for some in garbage] == ["1.json"]
        assert cache.discard(garbage) == []
        assert claims.holder("0") is not None
        assert claims.take("1")


def test_what_is_gone_already_is_no_error(cache):
    claim = _put(cache.root / "claims/work/0.json", age=CLAIM_EXPIRY + 10)
    garbage = cache.garbage()
    claim.unlink()
    assert cache.discard(garbage) == []


def test_empty_folders_of_claims_go(cache):
    _put(cache.root / "claims/busy/0.json")
    (cache.root / "claims/idle").mkdir()
    cache.discard([])
    assert os.listdir(cache.root / "claims") == ["busy"]


def test_arrays_without_rows_are_told_and_never_removed(cache, make_writer):
    writer, _ = make_writer(cache.root, layer="empty")
    assert _found(cache, empty=True) == set()  # younger than a day
    _age(writer.array.folder, 2 * DAY)
    assert _found(cache) == set()
    garbage = cache.garbage(empty=True)
    assert [(some.kind, some.path.name) for some in garbage] == [("empty", writer.array.key)]
    assert cache.discard(garbage) == []
    assert writer.array.key in cache.keys()


@pytest.mark.parametrize("place", ["tmp/link", "claims/work", "claims", "tmp", "aside"])
def test_links_are_not_followed(tmp_path, cache, monkeypatch, place):
    monkeypatch.setattr("featpipe.store.finding._garbage._GRACE", 0.0)
    outside = tmp_path / "outside"
    for name in ("0.json", "work/0.json", "tmp/0.json"):
        _put(outside / name, age=2 * DAY)
    _age(outside, 2 * DAY)
    if (cache.root / place).is_dir():
        (cache.root / place).rmdir()
    (cache.root / place).parent.mkdir(exist_ok=True)
    (cache.root / place).symlink_to(outside)
    _age(cache.root / place, 2 * DAY)
    if place == "tmp":  # without a folder to write to nothing can be dated
        with pytest.raises(CacheWriteError, match="behind a link that leads out of the cache"):
            cache.garbage(aside=True)
        assert len(list(outside.rglob("*.json"))) == 3
        return
    garbage = cache.garbage(aside=True)
    assert cache.discard(garbage) == []
    assert len(list(outside.rglob("*.json"))) == 3
    assert [some.nbytes for some in garbage] == [0] * (place == "tmp/link")  # the link itself may go


def test_what_cannot_be_removed_is_told_and_the_rest_goes(cache, monkeypatch):
    _put(cache.root / "tmp/a", age=2 * HOUR)
    _put(cache.root / "tmp/b", age=2 * HOUR)
    rename = os.rename

    def refuse(source, place):
        if os.fspath(source).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        rename(source, place)

    monkeypatch.setattr(os, "rename", refuse)
    ((kept, why),) = cache.discard(cache.garbage())
    assert (kept.path.name, "permission" in why) == ("a", True)
    assert os.listdir(cache.root / "tmp") == ["a"]


def test_no_cache_is_no_garbage(tmp_path):
    with pytest.raises(FeaturesNotCached, match=r"no folder .*nothing to collect"):
        FeatureCache(tmp_path / "none").garbage()
    assert not (tmp_path / "none").exists()


def test_only_a_folder_has_garbage():
    pytest.importorskip("obstore")
    with pytest.raises(RequestError, match=r"memory://garbage/cache is no folder"):
        FeatureCache("memory://garbage/cache").garbage()


def test_only_leftovers_and_claims_are_looked_for_by_default():
    assert GarbageFilter() == GarbageFilter(older=3600, aside=False, stimuli=False, empty=False)
