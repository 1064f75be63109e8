"""Keys: every field changes them, nothing else does, and they stay what they were."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from featpipe.errors import SpecError
from featpipe.spec import (
    FeatureSpec,
    LayerRequest,
    ModelRef,
    Preprocessing,
    Reduction,
    match_names,
    split_layer,
)

PREPROCESSING = Preprocessing(
    resize=256, crop=(224, 224), interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
SPEC = FeatureSpec("timm:resnet50", "0" * 64, "layer3", PREPROCESSING, model_args=(("a", 1), ("b", "x")))
OTHERS = {
    "model": "timm:resnet51",
    "weights": "1" * 64,
    "layer": "layer4",
    "preprocessing": replace(PREPROCESSING, resize=255),
    "model_args": (("a", 2), ("b", "x")),
    "code": "2" * 64,
    "call": 1,
    "element": "0",
    "prefix_tokens": 1,
    "layout": "channels_last",
    "reduction": Reduction("mean"),
    "reduction_version": 2,
    "store_dtype": "float16",
    "precision": "bf16",
    "view": 1,
    "augmentation": "crop",
    "view_seed": 1,
}


@pytest.mark.parametrize("field", [f.name for f in fields(FeatureSpec)])
def test_every_field_changes_the_key(field):
    assert replace(SPEC, **{field: OTHERS[field]}).key("s") != SPEC.key("s")


@pytest.mark.parametrize("field", [f.name for f in fields(Preprocessing)])
def test_every_field_of_preprocessing_changes_the_key(field):
    others = {
        "resize": (256, 256), "crop": None, "interpolation": "bilinear",
        "mean": (0.4, 0.5, 0.5), "std": (0.5, 0.5, 0.4), "decoder": "other",
    }  # fmt: skip
    changed = replace(PREPROCESSING, **{field: others[field]})
    assert replace(SPEC, preprocessing=changed).key("s") != SPEC.key("s")


def test_the_stimulus_set_changes_the_key_but_not_the_digest():
    assert SPEC.key("s") != SPEC.key("t")
    assert SPEC.digest() == FeatureSpec.from_json(SPEC.to_json()).digest()


def test_key_is_pinned():
    """A change here orphans every cache on every disk: bump the format on purpose."""
    assert SPEC.key("s") == "5f61bdedf2d7cb4b1e240813ed449d9260e7f59f0d52b4b3012e6852e8c1b988"


def test_fields_at_their_default_are_not_written():
    assert {"call", "view", "precision", "code"}.isdisjoint(SPEC.to_json())


@pytest.mark.parametrize("field", [None, *OTHERS])
def test_json_round_trip(field):
    spec = SPEC if field is None else replace(SPEC, **{field: OTHERS[field]})
    assert FeatureSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_order_of_model_arguments_does_not_matter():
    assert replace(SPEC, model_args=(("b", "x"), ("a", 1))).key("s") == SPEC.key("s")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"future": 1}, "no field future; it may have been written by a newer"),
        ({"weights": "abc"}, "64 hexadecimal digits"),
        ({"store_dtype": "bfloat16"}, "not 'bfloat16'; zarr has no bfloat16"),
        ({"precision": "fp8"}, "'fp8' is not known; choose from fp32"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(change, words):
    with pytest.raises(SpecError, match=words):
        FeatureSpec.from_json({**SPEC.to_json(), **change})


def test_a_spec_that_lacks_a_field_is_refused():
    with pytest.raises(SpecError, match="lacks layer, model"):
        FeatureSpec.from_json({"weights": "0" * 64, "preprocessing": None})


@pytest.mark.parametrize(
    ("text", "zoo", "name", "tag"),
    [
        ("timm:resnet50.a1_in1k", "timm", "resnet50", "a1_in1k"),
        ("timm:resnet50", "timm", "resnet50", None),
        ("open_clip:ViT-B-32/openai", "open_clip", "ViT-B-32", "openai"),
        ("torchvision:alexnet", "torchvision", "alexnet", None),
        ("local:some/folder/x.safetensors", "local", "some/folder/x.safetensors", None),
        ("python:nets/mine.py:build", "python", "nets/mine.py:build", None),
    ],
)
def test_model_references(text, zoo, name, tag):
    ref = ModelRef.parse(text)
    assert (ref.zoo, ref.name, ref.tag, str(ref)) == (zoo, name, tag, text)


@pytest.mark.parametrize("text", ["resnet50", "hub:resnet50", "timm:", ""])
def test_a_model_without_a_zoo_is_refused(text):
    with pytest.raises(SpecError, match="Write ZOO:NAME"):
        ModelRef.parse(text)


@pytest.mark.parametrize("text", ["none", "mean", "max", "cls", "grid:4", "srp:512:7"])
def test_reductions_round_trip(text):
    assert str(Reduction.parse(text)) == text


def test_a_projection_without_a_seed_has_seed_zero():
    assert Reduction.parse("srp:512") == Reduction("srp", 512, 0)


@pytest.mark.parametrize(
    "text", ["median", "grid", "grid:0", "grid:a", "grid:1:2", "srp", "srp:-1", "mean:3", ""]
)
def test_reductions_that_are_none_are_refused(text):
    with pytest.raises(SpecError, match="Write none, mean"):
        Reduction.parse(text)


def test_layer_requests():
    assert LayerRequest.parse("blocks.[1-6]:grid:4") == LayerRequest("blocks.[1-6]", Reduction("grid", 4))
    assert LayerRequest.parse("head") == LayerRequest("head", Reduction("none"))
    with pytest.raises(SpecError, match="has no name"):
        LayerRequest.parse(":mean")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("blocks.1", ["blocks.1"]),
        ("blocks.*", ["blocks.1", "blocks.10"]),
        ("blocks.**", ["blocks.1", "blocks.1.conv", "blocks.10"]),
        ("blocks.[0-9]", ["blocks.1"]),
        ("blocks.[!1]*", []),
        ("**.conv", ["blocks.1.conv"]),
        ("block?", ["blocks"]),
        ("odd[name", ["odd[name"]),
    ],
)
def test_patterns(pattern, expected):
    names = ["blocks", "blocks.1", "blocks.1.conv", "blocks.10", "odd[name"]
    assert match_names(pattern, names) == expected


def test_calls_and_elements_of_layers():
    assert split_layer("attn@2/0") == ("attn", 2, "0")
    assert split_layer("attn") == ("attn", None, "")
    with pytest.raises(SpecError, match="must be a number from 0, got 'x'"):
        split_layer("attn@x")
    assert replace(SPEC, call=2, element="0").layer_label == "layer3@2/0"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"interpolation": "area"}, "'area' is not known; choose from nearest"),
        ({"resize": 0}, "at least one pixel"),
        ({"std": (0.0, 1.0, 1.0)}, "std positive"),
        ({"mean": (0.5, 0.5)}, "three numbers"),
    ],
)
def test_preprocessing_that_cannot_be_is_refused(change, words):
    with pytest.raises(SpecError, match=words):
        replace(PREPROCESSING, **change)


def test_whole_images_are_those_without_a_crop():
    assert PREPROCESSING.mode == "model"
    whole = replace(PREPROCESSING, resize=(224, 224), crop=None)
    assert (whole.mode, whole.input_size) == ("whole", (224, 224))
