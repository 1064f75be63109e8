"""Arrays are found by what they hold, and named by the first digits of their key."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from featpipe.errors import AmbiguousFeatures, FeatpipeError, FeaturesNotCached, RequestError, SpecError
from featpipe.spec import Reduction
from featpipe.stimuli import StimulusManifest
from featpipe.store import ArrayFilter, FeatureCache, last_written

pytestmark = pytest.mark.usefixtures("impatient_disk")
NOW = datetime.now(UTC)


def _add(root, manifest, spec, rows, shards=None, **provenance):
    cache = FeatureCache(root)
    cache.add_stimuli(manifest, shard_rows=8)
    writer = cache.writer(spec, manifest.digest, row_shape=rows.shape[1:], dims=("channel",), codec="none")
    for shard in range(writer.array.layout.n_shards) if shards is None else shards:
        part = writer.array.layout.rows_of(shard)
        writer.publish(shard, rows[part.start : part.stop], provenance)
    return writer.array


@pytest.fixture(scope="module")
def arrays(tmp_path_factory, make_manifest, make_spec):
    """Four arrays in one cache, by name: three models, two stimulus sets, one of them incomplete and old."""
    root = tmp_path_factory.mktemp("find") / "cache"
    few, some = make_manifest(8), make_manifest(20)
    some = StimulusManifest(some.ids, some.sha256, "nsd[1]", "")
    week = (NOW - timedelta(days=8)).isoformat()
    wide = np.zeros((20, 500), np.float32)
    timm = {"model": "timm:resnet50", "weights": "ab" * 32}
    return {
        "first": _add(
            root,
            few,
            make_spec(**timm, layer="layer3.0"),
            wide[:8, :3],
            weights_label="a1_in1k",
            layer_order=1,
        ),
        "early": _add(
            root, few, make_spec(**timm, layer="conv1"), wide[:8, :3], weights_label="a1_in1k", layer_order=0
        ),
        "large": _add(root, some, make_spec(layer="layer4", reduction=Reduction("mean")), wide, written=week),
        "part": _add(
            root, some, make_spec(model="open_clip:ViT-B-32"), wide[:, :3], [1], weights_label="openai"
        ),
    }


@pytest.fixture(scope="module")
def cache(arrays):
    return FeatureCache(arrays["first"].root)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({}, "large part early first"),  # by model, then in the order of the network
        ({"model": "timm:resnet50"}, "early first"),
        ({"model": "timm:*"}, "early first"),
        ({"model": "timm:resnet50.a1_in1k"}, "early first"),
        ({"model": "timm:resnet50.a2_in1k"}, ""),
        ({"model": "resnet50"}, ""),
        ({"layer": "layer*"}, "large part"),  # a star stays within one dotted part
        ({"layer": "layer**"}, "large part first"),
        ({"layer": ["conv1", "layer*"]}, "large part early"),
        ({"stimuli": "tiny"}, "early first"),
        ({"stimuli": "nsd[1]"}, "large part"),  # a name, though it would be another glob
        ({"stimuli": "t*y"}, "early first"),
        ({"reduce": "mean"}, "large"),
        ({"weights": "openai"}, "part"),
        ({"weights": "abab"}, "early first"),
        ({"complete": True}, "large early first"),
        ({"complete": False}, "part"),
        ({"newer": timedelta(days=7)}, "part early first"),
        ({"older": timedelta(days=7)}, "large"),
        ({"larger": 30_000}, "large"),
        ({"smaller": 30_000}, "part early first"),
        ({"model": "timm:*", "layer": "conv1"}, "early"),
    ],
)
def test_finds_what_has_all_that_is_asked_for(cache, arrays, wanted, names):
    keys = {array.key: name for name, array in arrays.items()}
    found = [keys[array.key] for array in cache.find(**wanted)]
    assert sorted(found) == sorted(names.split())
    if len({arrays[name].spec.model for name in found}) == 1:
        assert found == names.split()


def test_stimuli_by_the_first_digits_of_their_digest(cache, arrays):
    assert len(cache.find(stimuli=arrays["large"].stimuli_digest[:6])) == 2
    assert cache.find(stimuli=arrays["large"].stimuli_digest[:3]) == []


def test_age_is_what_the_last_shard_recorded_or_else_the_time_of_its_file(tmp_path, make_manifest, make_spec):
    rows = np.zeros((16, 2), np.float32)
    said = _add(tmp_path, make_manifest(16), make_spec(), rows, written="2020-05-01T12:00:00+00:00")
    assert last_written(said) == datetime(2020, 5, 1, 12, tzinfo=UTC)
    silent = _add(tmp_path, make_manifest(16), make_spec(layer="b"), rows, written="a while ago")
    for shard, age in ((0, 50), (1, 20)):
        then = time.time() - age * 86_400
        os.utime(silent.folder / f"commits/{shard}.json", (then, then))
    assert round((NOW - last_written(silent)).total_seconds() / 86_400) == 20


def _break_spec(array):
    (array.folder / "spec.json").write_text("{}")


def _break_commit(array):
    (array.folder / "commits/0.json").write_text("{}")


def _lose_stimuli(array):
    shutil.rmtree(array.root / "stimuli" / array.stimuli_digest)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_break_spec, "another key"), (_break_commit, "checksum"), (_lose_stimuli, "no stimulus set")],
)
def test_a_damaged_array_is_told_and_hides_no_other(tmp_path, make_manifest, make_spec, spoil, words):
    rows = np.zeros((8, 2), np.float32)
    good = _add(tmp_path, make_manifest(8), make_spec(), rows)
    bad = _add(tmp_path, StimulusManifest(("a",), ("0" * 64,), "tiny"), make_spec(layer="bad"), rows[:1])
    spoil(bad)
    told = {}
    with pytest.raises(FeatpipeError, match=words):
        FeatureCache(tmp_path).find(stimuli="tiny")
    found = FeatureCache(tmp_path).find(stimuli="tiny", unreadable=told.__setitem__)
    assert [array.key for array in found] == [good.key]
    assert list(told) == [bad.key]


def test_a_model_that_no_zoo_has_is_found_by_its_name(tmp_path, make_manifest, make_spec):
    array = _add(tmp_path, make_manifest(8), make_spec(model="no zoo"), np.zeros((8, 2), np.float32))
    assert [found.key for found in FeatureCache(tmp_path).find(model="no*")] == [array.key]
    assert FeatureCache(tmp_path).find(model="timm:*") == []


def test_a_key_may_be_cut_short_as_long_as_it_is_unique(cache, arrays):
    key = arrays["large"].key
    assert cache.named(key[:12]).key == key
    with pytest.raises(AmbiguousFeatures, match="4 keys begin with ''"):
        cache.named("")
    with pytest.raises(FeaturesNotCached, match=r"no array 'xyz'.*cache ls"):
        cache.named("xyz")


def test_a_reduction_that_is_none_is_refused(cache):
    with pytest.raises(SpecError, match="'average' is not known"):
        cache.find(reduce="average")
    with pytest.raises(TypeError, match="modle"):
        ArrayFilter(modle="timm:*")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"newer": "7d"}, "find(newer=…) takes timedelta, got '7d'"),
        ({"larger": "10MB"}, "find(larger=…) takes int, got '10MB'"),
        ({"model": 3}, "find(model=…) takes str, got 3"),
    ],
)
def test_what_is_of_another_kind_is_refused(cache, wanted, said):
    with pytest.raises(RequestError, match=re.escape(said)):
        cache.find(**wanted)


def test_arrays_travel_small_whatever_was_read_of_them(tmp_path, make_manifest, make_spec):
    array = _add(tmp_path, make_manifest(2000), make_spec(), np.zeros((2000, 2), np.float32))
    assert len(array.ids) == len(array.manifest) == 2000
    copy = pickle.loads(pickle.dumps(array))
    assert len(pickle.dumps(array)) < 2000
    assert (copy.key, copy.ids, copy.manifest) == (array.key, array.ids, array.manifest)


def test_listing_does_not_read_stimuli_that_nobody_asks_for(cache, monkeypatch):
    def refuse(digest):
        raise AssertionError(digest)

    monkeypatch.setattr(cache, "stimuli", refuse)
    assert len(cache.find(model="timm:*", layer="**", newer=timedelta(days=7), larger=1)) == 2


def test_at_a_remote_place_too(make_manifest, make_spec):
    pytest.importorskip("obstore")
    said = {"written": "2026-01-02T00:00:00+00:00"}
    rows = np.zeros((20, 2), np.float32)
    array = _add("memory://find/cache", make_manifest(20), make_spec(), rows, [0, 1], **said)
    (found,) = FeatureCache("memory://find/cache").find(
        complete=False, older=timedelta(days=1), stimuli="tiny"
    )
    assert found.key == array.key
    assert last_written(found) == datetime(2026, 1, 2, tzinfo=UTC)
