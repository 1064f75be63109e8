"""Fields left open are taken from the cache when it leaves no choice."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe import CachedFeatures
from featpipe.errors import AmbiguousFeatures, FeaturesNotCached, RequestError, SpecError
from featpipe.spec import Reduction

# A field of the second array that differs, what an error calls it, and the parameters that choose each
CHOICES = {
    "model": ({"model": "timm:other"}, "model", ["timm:tiny", "timm:other"]),
    "weights": ({"weights": "b" * 64}, "weights", ["a" * 64, "b" * 12]),
    "reduce": ({"reduction": Reduction("max")}, "reduction", ["mean", "max"]),
    "precision": ({"precision": "bf16"}, "precision", ["fp32", "bf16"]),
    "store_dtype": ({"store_dtype": "float16"}, "store_dtype", ["float32", "float16"]),
    "model_args": ({"model_args": (("pad_type", "same"),)}, "model_args", [{}, {"pad_type": "same"}]),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_cached_twice_must_be_chosen(tmp_path, add_features, make_rows, ids, name):
    changes, shown, values = CHOICES[name]
    rows = make_rows(24, (4,)), make_rows(24, (4,), seed=1).astype(np.float16)
    add_features(tmp_path, rows[0])
    add_features(tmp_path, rows[1], **changes)
    with pytest.raises(AmbiguousFeatures, match=rf"differ in {shown}: .*features__{name}"):
        CachedFeatures(tmp_path).fit(ids)
    for value, wanted in zip(values, rows, strict=True):
        np.testing.assert_array_equal(CachedFeatures(tmp_path, **{name: value}).fit_transform(ids), wanted)


def test_preprocessing_is_chosen_by_mode_or_by_field(tmp_path, add_features, make_rows, cropped, ids):
    whole, crop = make_rows(24, (4,)), make_rows(24, (4,), seed=1)
    add_features(tmp_path, whole)
    add_features(tmp_path, crop, preprocessing=cropped)
    with pytest.raises(AmbiguousFeatures, match=r"preprocessing: model .*; *|whole .*features__preprocess"):
        CachedFeatures(tmp_path).fit(ids)
    for wanted, rows in (("whole", whole), ("model", crop), ({"resize": 36}, crop), ({"crop": None}, whole)):
        np.testing.assert_array_equal(CachedFeatures(tmp_path, preprocess=wanted).fit_transform(ids), rows)


def test_layers_left_open_are_listed_in_network_order(tmp_path, add_features, make_rows, ids):
    for order, layer in enumerate(("stem", "layer10", "layer9")):
        add_features(tmp_path, make_rows(24, (4,)), layer=layer, provenance={"layer_order": order})
    with pytest.raises(
        AmbiguousFeatures, match=r"3 layers are cached: stem, layer10, layer9. Choose.*='\[\"stem\"\]'"
    ):
        CachedFeatures(tmp_path).fit(ids)
    chosen = CachedFeatures(tmp_path, layers="layer*").fit(ids)
    assert [spec.layer for spec in chosen.specs_] == ["layer10", "layer9"]


def test_weights_go_by_the_name_they_were_asked_for_with(tmp_path, add_features, make_rows, ids):
    names = {"weights_label": "a1_in1k", "weights_asked": "weights/tiny.safetensors"}
    add_features(tmp_path, make_rows(24, (4,)), provenance=names)
    for weights in ("a1_in1k", "weights/tiny.safetensors", "a" * 8):
        assert CachedFeatures(tmp_path, weights=weights).fit(ids).specs_[0].weights == "a" * 64
    assert CachedFeatures(tmp_path, model="timm:tiny.a1_in1k").fit(ids)
    with pytest.raises(FeaturesNotCached, match="weights='aaaa'"):  # too short to be meant as a digest
        CachedFeatures(tmp_path, weights="aaaa").fit(ids)
    with pytest.raises(FeaturesNotCached, match=r"timm:tiny.other"):
        CachedFeatures(tmp_path, model="timm:tiny.other").fit(ids)


def test_a_code_file_is_found_by_its_path(tmp_path, add_features, make_rows, ids):
    add_features(tmp_path, make_rows(24, (4,)), model="python:net.py:build", code="c" * 64)
    assert CachedFeatures(tmp_path, model="python:/some/where/net.py:build").fit(ids)
    with pytest.raises(FeaturesNotCached, match=r"python:net.py:other"):
        CachedFeatures(tmp_path, model="python:net.py:other").fit(ids)


def test_an_empty_cache_says_how_to_fill_it(tmp_path, ids):
    with pytest.raises(FeaturesNotCached, match=r"any features in the cache at .*It holds: nothing.*extract"):
        CachedFeatures(tmp_path / "none").fit(ids)
    assert not (tmp_path / "none").exists()


def test_features_that_are_not_there_are_listed_beside_those_that_are(filled, ids):
    with pytest.raises(
        FeaturesNotCached, match=r"reduce='max'.*timm:tiny layer1:mean, timm:tiny layer2:mean"
    ):
        CachedFeatures(filled[0], reduce="max").fit(ids)
    with pytest.raises(
        FeaturesNotCached, match="No cached layer matches 'layer3'; cached are layer1, layer2"
    ):
        CachedFeatures(filled[0], layers=["layer1", "layer3"]).fit(ids)


def test_requests_that_mean_nothing(filled, ids):
    with pytest.raises(SpecError, match="does not say where it comes from"):
        CachedFeatures(filled[0], model="tiny").fit(ids)
    with pytest.raises(SpecError, match="'average' is not known"):
        CachedFeatures(filled[0], reduce="average").fit(ids)
    with pytest.raises(RequestError, match="name at least one layer"):
        CachedFeatures(filled[0], layers=[]).fit(ids)
    with pytest.raises(RequestError, match="'matrix' or 'blocks'"):
        CachedFeatures(filled[0], output="frame").fit(ids)


def test_what_other_layers_leave_open_is_no_question(tmp_path, add_features, make_rows, ids):
    rows = make_rows(24, (4,))
    add_features(tmp_path, rows)
    add_features(tmp_path, rows, layer="layer2", reduction=Reduction("max"))
    assert CachedFeatures(tmp_path, layers="layer1").fit(ids).specs_[0].reduction == Reduction("mean")
    with pytest.raises(AmbiguousFeatures, match="differ in reduction: max, mean"):
        CachedFeatures(tmp_path, layers=["layer1", "layer2"]).fit(ids)
