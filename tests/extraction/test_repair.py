"""Whatever is damaged is made good from what is at hand, and nothing else is touched."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading

import numpy as np
import pytest

from featpipe.errors import CacheBusy
from featpipe.extraction import Means, Order, extract, plan_again, repair
from featpipe.models import ModelRequest
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache, Problem, exclusive_claim, publish_index, recovered_array
from featpipe.store._documents import with_checksum

pytestmark = pytest.mark.usefixtures("impatient_disk")

STATIC = ["data.zarr/zarr.json", "data.zarr/features/zarr.json", "data.zarr/stimulus/zarr.json",
          "data.zarr/stimulus/c/0", "data.zarr/image_sha256/zarr.json", "data.zarr/image_sha256/c/0/0"]  # fmt: skip


@pytest.fixture
def images(tiny_stimuli):
    return StimulusSet.from_source(tiny_stimuli)


@pytest.fixture
def cache(tmp_path, images, tiny_backbone):
    """Two layers of 20 images in shards of 8, in batches of 16."""
    layers = (LayerRequest.parse("stem:mean"), LayerRequest.parse("head"))
    found = FeatureCache(tmp_path / "rows")
    order = Order(ModelRequest(tiny_backbone, trust=True), layers)
    extract(order, images, found, means=Means(batch_size=16, shard_rows=8))
    return found


def digests(cache):
    """SHA-256 of every file by path; ``tmp``, ``aside``, commit records (which say when) and seals are left out."""
    files = [
        path
        for folder in ("arrays", "stimuli")
        for path in (cache.root / folder).rglob("*")
        if path.is_file()
    ]
    return {
        str(path.relative_to(cache.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.parent.name != "commits" and path.name != "sealed.json"
    }


def flip(path, place=-5):
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


def mend(cache, images=None, problems=None):
    problems = cache.verify() if problems is None else problems
    keys = sorted({problem.key for problem in problems if problem.shard is not None})
    arrays = [recovered_array(cache.location, key) for key in keys]
    plans = [] if images is None else plan_again(arrays, images, trust=True)
    return repair(cache, problems, plans, known=[] if images is None else [images.manifest])


def test_only_the_damaged_shards_are_computed_again(cache, images):
    first, second = cache.arrays()
    before, inodes = (
        digests(cache),
        {a.key: [a.shard_path(s).stat().st_ino for s in range(3)] for a in (first, second)},
    )
    flip(first.shard_path(1))
    flip(second.shard_path(2))
    (second.folder / "commits/0.json").write_bytes(b"{}")
    done = mend(cache, images)
    assert done.sound
    assert sorted(done.recomputed) == sorted([(first.key, 1), (second.key, 0), (second.key, 2)])
    assert digests(cache) == before
    assert cache.verify() == []
    kept = {
        a.key: [a.shard_path(s).stat().st_ino == inodes[a.key][s] for s in range(3)] for a in (first, second)
    }
    assert kept == {first.key: [True, False, True], second.key: [False, True, False]}
    assert len(list((cache.root / "aside").iterdir())) == 6 + 2  # each with its commit, and the seals
    assert all((array.folder / "sealed.json").exists() for array in (first, second))


def test_the_batches_are_those_of_before(cache, images):
    """Also where the only commit that said so is moved aside."""
    array = cache.arrays()[0]
    for shard in range(3):
        flip(array.shard_path(shard))
    assert mend(cache, images).sound
    assert {array.commit(shard)["provenance"]["batch_size"] for shard in range(3)} == {16}


@pytest.mark.parametrize("name", STATIC)
def test_static_files_are_written_again_without_images(cache, name):
    before = digests(cache)
    array = cache.arrays()[0]
    for damage in (flip, lambda path: path.unlink(), lambda path: path.write_bytes(b"")):
        damage(array.folder / name)
        done = mend(cache)
        assert done.sound
        assert done.rewritten == [f"arrays/{array.key}/{name}"]
        assert digests(cache) == before


@pytest.mark.parametrize("place", [5, 200, -3, -60])
def test_a_stimulus_set_is_written_again_from_an_array_of_it(cache, place):
    before = digests(cache)
    path = cache.root / "stimuli" / cache.stimuli_digests()[0] / "stimuli.json"
    flip(path, place)
    done = mend(cache)
    assert done.sound
    assert cache.verify() == []
    assert digests(cache).keys() == before.keys()


def test_a_stimulus_set_is_written_again_from_images(cache, images):
    before = digests(cache)
    flip(cache.root / "stimuli" / cache.stimuli_digests()[0] / "stimuli.json", 150)
    for array in cache.arrays():
        (array.folder / "data.zarr/stimulus/c/0").unlink()
    assert not mend(cache).sound
    assert mend(cache, images).sound
    assert digests(cache) == before


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_damaged_seal_is_moved_aside_and_the_array_sealed_again(cache, damage):
    seal = cache.arrays()[0].folder / "sealed.json"
    content = seal.read_bytes()
    damage(seal)
    done = mend(cache)
    assert done.sound
    assert done.rewritten == ([str(seal.relative_to(cache.root))] if seal.exists() else [])
    if seal.exists():  # one that is gone is no damage
        assert seal.read_bytes() == content


def test_a_seal_of_other_commits_is_written_again_and_one_of_fewer_shards_moved_aside(cache, committed_again):
    first, second = cache.arrays()
    seal = first.folder / "sealed.json"
    old = seal.read_bytes()
    committed_again(first, 1, lambda rows: rows)
    record = first.folder / "commits/1.json"
    told = json.loads(record.read_bytes()) | {"provenance": {}}
    record.write_bytes(with_checksum({k: v for k, v in told.items() if k != "checksum"}))
    (second.folder / "commits/1.json").unlink()
    done = mend(cache)
    assert done.rewritten == [f"{first.base}/sealed.json"]
    assert f"{second.base}/sealed.json" in done.moved
    assert done.missing == [(second.key, 1)]  # the seal had it, so it was lost
    assert seal.read_bytes() != old
    assert cache.verify() == []


def test_rows_in_an_object_store_are_computed_again(tmp_path, images, tiny_backbone):
    pytest.importorskip("obstore")
    cache = FeatureCache(f"memory://{tmp_path.name}/cache")
    order = Order(ModelRequest(tiny_backbone, trust=True), (LayerRequest.parse("stem:mean"),))
    extract(order, images, cache, means=Means(batch_size=16, shard_rows=8))
    (array,) = cache.arrays()
    content = array.location.read(array.shard_name(1), 1 << 20)
    array.location.replace(array.shard_name(1), content[:-1])
    publish_index(cache.location)
    listed = array.location.read("index.jsonl", 1 << 20)
    done = mend(cache, images)
    assert done.sound, done
    assert done.recomputed == [(array.key, 1)]
    assert array.location.read(array.shard_name(1), 1 << 20) == content
    assert array.location.exists(f"{array.base}/sealed.json")
    assert array.location.read("index.jsonl", 1 << 20) == listed
    assert cache.verify() == []


def test_a_broken_spec_is_left_and_said(cache):
    array = cache.arrays()[0]
    flip(array.folder / "spec.json")
    done = mend(cache)
    assert not done.sound
    (line,) = done.left
    assert "spec.json" in line
    assert f"cache rm {array.key}" in line


def test_both_copies_of_the_metadata_are_left_and_said(cache):
    array = cache.arrays()[0]
    for name in STATIC[:2]:
        (array.folder / name).write_bytes(b"{}")
    done = mend(cache)
    assert len(done.left) == 2
    assert not done.sound


def test_what_is_foreign_is_moved_aside(cache):
    array = cache.arrays()[0]
    (array.folder / "data.zarr/notes.txt").write_text("mine")
    assert mend(cache).sound
    assert [path.read_text() for path in (cache.root / "aside").iterdir()] == ["mine"]


def test_without_images_damaged_shards_are_missing_until_the_next_extraction(cache, images, tiny_backbone):
    before, array = digests(cache), cache.arrays()[0]
    flip(array.shard_path(1))
    done = mend(cache)
    assert done.missing == [(array.key, 1)]
    assert not done.sound
    layers = (LayerRequest.parse("stem:mean"), LayerRequest.parse("head"))
    extract(Order(ModelRequest(tiny_backbone, trust=True), layers), images, cache)
    assert digests(cache) == before


def test_a_shard_that_is_missing_anyway_stays_missing(cache, images):
    first, second = cache.arrays()
    (second.folder / "sealed.json").unlink()  # else the seal says that the shard was there
    (second.folder / "commits/1.json").unlink()
    shutil.rmtree(second.folder / second.layout.shard_folder(1))
    flip(first.shard_path(1))
    assert mend(cache, images).sound
    assert second.missing == [1]


def test_an_array_that_somebody_works_on_is_left_alone(cache, images):
    first, second = cache.arrays()
    flip(first.shard_path(1))
    flip(second.shard_path(1))
    before = digests(cache)
    with exclusive_claim(cache.root, second.key), pytest.raises(CacheBusy):
        mend(cache, images)
    assert digests(cache) == before
    assert mend(cache, images).sound


def test_what_another_repair_has_done_is_not_done_again(cache, images):
    array = cache.arrays()[0]
    flip(array.shard_path(1))
    problems = cache.verify()
    assert mend(cache, images, problems).recomputed
    again = mend(cache, images, problems)
    assert again.sound
    assert not again.recomputed


def test_two_repairs_at_once_end_well(cache, images):
    before = digests(cache)
    for array in cache.arrays():
        flip(array.shard_path(1))
    problems, refused = cache.verify(), []

    def work():
        try:
            mend(cache, images, problems)
        except CacheBusy as error:
            refused.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) < 2
    assert digests(cache) == before
    assert cache.verify() == []


def test_rows_that_the_network_does_not_give_are_made_good(cache, images, committed_again):
    from featpipe.extraction import recompute

    before, array = digests(cache), cache.arrays()[0]
    committed_again(array, 2, lambda rows: np.zeros_like(rows))
    (one,) = recompute(plan_again([array], images, trust=True), 20)
    assert mend(cache, images, list(one.problems)).sound
    assert digests(cache) == before


def test_a_folder_or_link_in_place_of_a_file_is_moved_aside_and_made_good(cache, images, tmp_path):
    before, array = digests(cache), cache.arrays()[0]
    (array.folder / "commits/1.json").unlink()
    (array.folder / "commits/1.json").mkdir()
    array.shard_path(2).rename(tmp_path / "elsewhere")
    array.shard_path(2).symlink_to(tmp_path / "elsewhere")
    (array.folder / STATIC[3]).unlink()
    (array.folder / STATIC[3]).mkdir()
    done = mend(cache, images)
    assert done.sound, done
    assert sorted(done.recomputed) == [(array.key, 1), (array.key, 2)]
    assert digests(cache) == before


def test_a_folder_that_cannot_be_listed_is_left_where_it_is(cache):
    array = cache.arrays()[0]
    what = "it cannot be listed: Permission denied"
    done = repair(cache, [Problem(array.key, None, None, f"arrays/{array.key}/commits", what)])
    assert (array.folder / "commits").is_dir()
    assert not (cache.root / "aside").exists()
    assert done.sound  # it can be listed by now
