"""Ids become rows: which ones, in which order, from which stimulus set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featpipe import CachedFeatures
from featpipe.blocks import LayerBlocks
from featpipe.errors import AmbiguousFeatures, FeaturesNotCached, RequestError, StimulusNotCached
from featpipe.features import READS
from featpipe.features._settle import cached_arrays
from featpipe.store import CachedArray


def _flat(values):
    return values.reshape(len(values), -1)


@given(rows=st.lists(st.integers(0, 23), min_size=1, max_size=60))
def test_any_order_with_repeats(filled, rows):
    root, there = filled
    features = CachedFeatures(root, layers="layer1").fit([f"image_{row}" for row in range(24)])
    np.testing.assert_array_equal(
        features.transform([f"image_{row}" for row in rows]), _flat(there["layer1"][rows])
    )


@pytest.mark.parametrize(
    "layers", [["layer1", "layer2"], ["layer2", "layer1"], "layer*", ["layer2", "layer*"]]
)
def test_layers_stand_side_by_side_in_the_order_asked_for(filled, ids, layers):
    root, there = filled
    order = ["layer2", "layer1"] if layers[0] == "layer2" else ["layer1", "layer2"]
    matrix = CachedFeatures(root, layers=layers).fit_transform(ids)
    np.testing.assert_array_equal(matrix, np.hstack([_flat(there[layer]) for layer in order]))
    assert matrix.dtype == np.float32


def test_blocks_are_the_matrix_with_channels_in_place(filled, ids):
    root, there = filled
    features = CachedFeatures(root, layers=["layer1", "layer2"])
    blocks = clone_with(features, output="blocks").fit_transform(ids)
    np.testing.assert_array_equal(blocks.to_matrix(), features.fit_transform(ids))
    np.testing.assert_array_equal(blocks.block("layer1"), there["layer1"])
    assert blocks.dims == (("channel", "height", "width"), ("channel",))
    np.testing.assert_array_equal(blocks[[3, 1]].to_matrix(), blocks.to_matrix()[[3, 1]])


def test_blocks_know_the_images_behind_their_rows(filled, ids):
    root, _ = filled
    blocks = CachedFeatures(root, layers=["layer1", "layer2"], output="blocks").fit_transform(ids)
    (manifest,) = {array.manifest for array in cached_arrays(root) if array.spec.layer_label == "layer2"}
    expected = dict(zip(manifest.ids, manifest.sha256, strict=True))
    joined = LayerBlocks.join([("a", blocks), ("b", blocks)])
    assert joined.images(3, ids[[5, 2]]) == [expected[name] for name in ids[[5, 2]]]
    assert blocks[[3]].images(0, ids[:2]) == [expected[name] for name in ids[:2]]


def clone_with(features, **changes):
    return CachedFeatures(**(features.get_params() | changes))


def test_a_caller_may_write_into_what_it_got(filled, ids):
    features = CachedFeatures(filled[0], layers="layer2").fit(ids)
    features.transform(ids)[:] = 0
    np.testing.assert_array_equal(features.transform(ids), filled[1]["layer2"])


def test_columns_have_names(filled, ids):
    names = CachedFeatures(filled[0], layers=["layer1", "layer2"]).fit(ids).get_feature_names_out()
    assert names[0] == "layer1_0_0_0"
    assert names[11] == "layer1_2_1_1"
    assert list(names[12:]) == [f"layer2_{column}" for column in range(5)]


def test_float16_comes_back_as_float32(tmp_path, add_features, make_rows, ids):
    rows = make_rows(24, (4,))
    add_features(tmp_path, rows, store_dtype="float16")
    matrix = CachedFeatures(tmp_path).fit_transform(ids)
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, rows.astype(np.float16))


def test_a_fitted_transformer_reads_sets_that_came_later(
    tmp_path, add_features, make_manifest, make_rows, ids
):
    add_features(tmp_path, make_rows(24, (4,)))
    features = CachedFeatures(tmp_path).fit(ids)
    new = make_rows(3, (4,), seed=9)
    add_features(tmp_path, new, manifest=make_manifest(["a", "b", "c"], name="new"))
    np.testing.assert_array_equal(features.transform(["c", "a"]), new[[2, 0]])
    assert features.transform(["c", "image_0"]).shape == (2, 4)


def test_unknown_ids_are_counted_and_named(filled, ids):
    features = CachedFeatures(filled[0], layers="layer1").fit(ids)
    with pytest.raises(
        StimulusNotCached, match=r"2 of 3 stimuli have no row .*first 'ant'.*featpipe extract"
    ):
        features.transform(["image_0", "bee", "ant"])
    with pytest.raises(StimulusNotCached, match=r"None of 1 stimuli, first 'ant'"):
        CachedFeatures(filled[0]).fit(["ant"])


def test_rows_of_an_unfinished_extraction_are_missing(tmp_path, add_features, make_rows, ids):
    rows = make_rows(24, (4,))
    add_features(tmp_path, rows, shards=[0, 2])
    features = CachedFeatures(tmp_path).fit(ids)
    np.testing.assert_array_equal(features.transform(ids[[20, 3]]), rows[[20, 3]])
    with pytest.raises(StimulusNotCached, match=r"8 of 24 stimuli .*interrupted run goes on"):
        features.transform(ids)
    add_features(tmp_path, rows, shards=[1])
    np.testing.assert_array_equal(features.transform(ids), rows)


def test_one_id_for_two_images_names_both_sets(tmp_path, add_features, make_manifest, make_rows, ids):
    one, other = make_rows(24, (4,)), make_rows(24, (4,), seed=1)
    add_features(tmp_path, one)
    add_features(tmp_path, other, manifest=make_manifest(salt="other", name="copies"))
    with pytest.raises(
        AmbiguousFeatures, match=r"'image_0' is a different image .*tiny .*copies|copies .*tiny"
    ):
        CachedFeatures(tmp_path).fit(ids).transform(ids)
    for name, rows in (("tiny", one), ("copies", other)):
        np.testing.assert_array_equal(CachedFeatures(tmp_path, stimuli=name).fit_transform(ids), rows)
    digest = make_manifest(salt="other").digest
    np.testing.assert_array_equal(CachedFeatures(tmp_path, stimuli=digest[:12]).fit_transform(ids), other)


def test_one_id_for_one_image_in_two_sets_is_no_question(
    tmp_path, add_features, make_manifest, make_rows, ids
):
    rows = make_rows(24, (4,))
    add_features(tmp_path, rows)
    add_features(tmp_path, rows[:5], manifest=make_manifest(ids[:5].tolist(), name="part"))
    np.testing.assert_array_equal(CachedFeatures(tmp_path).fit_transform(ids), rows)


def test_a_set_that_is_not_there_is_said(filled, ids):
    with pytest.raises(FeaturesNotCached, match="for stimulus set nowhere"):
        CachedFeatures(filled[0], stimuli="nowhere").fit(ids)


@pytest.mark.parametrize("bad", [[], [["image_0"]], "image_0"])
def test_x_must_be_ids(filled, bad):
    with pytest.raises(RequestError, match="one dimension"):
        CachedFeatures(filled[0], layers="layer1").fit(bad)


def test_streaming_leaves_nothing_in_memory_and_uses_what_is_there(filled, ids, monkeypatch):
    root, there = filled
    blocks = CachedFeatures(root, layers="layer1", output="blocks").fit_transform(ids)
    np.testing.assert_array_equal(blocks.stream("layer1", slice(3, 6)), there["layer1"][3:6])
    assert READS.nbytes == 0
    blocks.block("layer1")
    monkeypatch.setattr(CachedArray, "read", None)  # a second read would fail
    np.testing.assert_array_equal(blocks.stream("layer1", [7]), there["layer1"][[7]])
