"""Stored rows are what the network gives again, and where they are not, it shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featpipe.errors import RequestError, SpecError, StimulusError
from featpipe.extraction import Means, Order, extract, plan_again, recompute
from featpipe.models import ModelRequest
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusManifest, StimulusSet
from featpipe.store import FeatureCache

pytestmark = pytest.mark.usefixtures("impatient_disk")

RESNET = "timm:test_resnet"


@pytest.fixture
def images(tiny_stimuli):
    return StimulusSet.from_source(tiny_stimuli)


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "rows")


def extracted(cache, images, *layers, means=None, weights="random:0", **order):
    requests = tuple(map(LayerRequest.parse, layers))
    request = ModelRequest(RESNET, weights)
    means = means or Means(batch_size=8, shard_rows=16)
    return [
        cache.array(k) for k in extract(Order(request, requests, **order), images, cache, means=means).keys
    ]


@pytest.mark.parametrize("order", [{}, {"store_dtype": "float16"}, {"precision": "bf16"}, {"n_views": 1}])
def test_rows_are_bit_equal_on_the_same_machine(cache, images, order):
    arrays = extracted(cache, images, "layer1:mean", "layer2", **order)
    found = recompute(plan_again(arrays, images), 6, seed=2)
    assert [one.key for one in found] == [array.key for array in arrays]
    assert {one.n_rows for one in found} == {6}
    assert all(one.ok and one.bit_equal for one in found)
    assert all(one.largest == 0 for one in found) or "store_dtype" in order


def test_images_are_found_by_their_bytes_whatever_their_names_and_order(cache, images):
    arrays = extracted(cache, images, "layer1:mean")
    others = images.select(reversed(images.ids)).rename(lambda name: f"other/{name}")
    (one,) = recompute(plan_again(arrays, others), 30)
    assert one.bit_equal
    assert one.n_rows == len(images)


@pytest.mark.parametrize(("factor", "ok"), [(1 + 1e-7, True), (1 + 1e-4, False)])
def test_a_difference_beyond_the_tolerance_names_shard_and_rows(cache, images, committed_again, factor, ok):
    (array,) = extracted(cache, images, "layer1:mean")
    committed_again(array, 1, lambda rows: rows * np.float32(factor))
    assert cache.verify() == []  # the checksums are right
    (one,) = recompute(plan_again([array], images), len(images))
    assert (one.ok, one.bit_equal) == (ok, False)
    assert one.largest > 0
    if not ok:
        assert one.relative == pytest.approx(1e-4, rel=0.2)  # of the largest value of all rows
        (problem,) = one.problems
        assert (problem.shard, problem.rows) == (1, (16, 20))
        assert "computed again" in problem.what


def test_a_nan_is_a_difference(cache, images, committed_again):
    (array,) = extracted(cache, images, "layer1:mean")
    committed_again(array, 0, lambda rows: np.full_like(rows, np.nan))
    (one,) = recompute(plan_again([array], images), len(images))
    assert not one.ok


def test_rows_that_were_copied_count_too(cache, images):
    some = images.select(images.ids[:12])
    extracted(cache, some, "layer1:mean")
    (array,) = extracted(cache, images, "layer1:mean")
    assert array.commit(0)["reused"]
    (one,) = recompute(plan_again([array], images), len(images))
    assert one.ok


def test_shards_left_out_are_not_read(cache, images):
    (array,) = extracted(cache, images, "layer1:mean")
    array.shard_path(0).write_bytes(b"")
    (one,) = recompute(plan_again([array], images), 20, without={array.key: {0}})
    assert one.n_rows == 4


def test_other_weights_are_refused(cache, images):
    arrays = extracted(cache, images, "layer1:mean")
    with pytest.raises(
        SpecError, match=r"random:1 is not what array .* weights .* would be right.*--weights"
    ):
        plan_again(arrays, images, weights="random:1")
    assert plan_again(arrays, images, model=f"{RESNET}", weights="random:0")


def test_other_images_are_refused(cache, images, tmp_path):
    arrays = extracted(cache, images, "layer1:mean")
    fewer = images.select(images.ids[1:])
    with pytest.raises(StimulusError, match=r"1 of the 20 images are not among the 19 .* first 'image_0'"):
        plan_again(arrays, fewer)


def test_preprocessing_comes_from_the_spec(cache, images):
    request = ModelRequest(RESNET, "random:0", mean=(0.1, 0.2, 0.3), image_size=64, preprocess="whole")
    order = Order(request, (LayerRequest.parse("layer1:mean"),))
    (key,) = extract(order, images, cache).keys
    (one,) = recompute(plan_again([cache.array(key)], images), 4)
    assert one.bit_equal


def test_code_needs_trust(tiny_cache, images):
    arrays = FeatureCache(tiny_cache).arrays()
    with pytest.raises(RequestError, match="--trust"):
        plan_again(arrays, images)
    assert all(one.bit_equal for one in recompute(plan_again(arrays, images, trust=True), 3))


def test_imported_arrays_are_refused(tmp_path, images):
    from featpipe.imported import import_array

    np.save(tmp_path / "x.npy", np.zeros((20, 3)))
    (tmp_path / "ids.csv").write_text("id\n" + "\n".join(images.ids))
    array = import_array(
        tmp_path / "x.npy", FeatureCache(tmp_path / "c"), name="x", ids=tmp_path / "ids.csv", images=images
    )
    with pytest.raises(RequestError, match=r"imported:x, which no network made.*cache import"):
        plan_again([array], images)


def test_a_set_is_arranged_by_digest(images):
    twice = StimulusManifest(("a", "b", "c"), (images.sha256[3], images.sha256[1], images.sha256[3]))
    arranged = images.arranged(twice)
    assert arranged.manifest == replace(twice)
    assert arranged.open(2).tobytes() == images.open(3).tobytes()
