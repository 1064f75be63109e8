"""Our transform equals those of the zoos, and overrides change what they say and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from featpipe.errors import ModelError
from featpipe.models import ModelRequest, apply_preprocessing, load, normalise
from featpipe.models._preprocess import override
from featpipe.spec import Preprocessing

SIZES = [(224, 224), (425, 425), (301, 223), (223, 301), (97, 401), (640, 479), (33, 50), (1001, 334)]
NATIVE = Preprocessing(256, (224, 224), "bilinear", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def image(size):
    coarse = np.random.default_rng(sum(size)).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def ours(picture, preprocessing):
    return normalise(apply_preprocessing(picture, preprocessing)[None], preprocessing)[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "model", ["resnet10t", "test_vit", "mobilenetv2_100", "efficientnet_b1", "vit_base_patch16_siglip_224"]
)
def test_equals_timm(model, size):
    from featpipe.models._zoo_timm import from_timm, import_timm

    timm = import_timm()
    config = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
    picture = image(size)
    assert torch.equal(ours(picture, from_timm(config, model)), timm.data.create_transform(**config)(picture))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_equals_open_clip(size, resize_mode, tiny_clip):
    from featpipe.models._architecture import Wanted
    from featpipe.models._zoo_open_clip import _preprocessing, import_open_clip

    config = {"resize_mode": resize_mode, "interpolation": "bicubic"}
    preprocessing = _preprocessing(config, torch.nn.Identity(), Wanted("x", None, {}, None, False))
    picture = image(size)
    expected = import_open_clip().image_transform(224, is_train=False, **config)(picture)
    assert torch.equal(ours(picture, preprocessing), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model", ["alexnet", "inception_v3", "swin_v2_t", "efficientnet_b3"])
def test_equals_torchvision(size, model):
    from featpipe.models._torchvision import import_torchvision
    from featpipe.models._zoo_torchvision import _preprocessing

    weights = import_torchvision().models.get_model_weights(model).DEFAULT
    picture = image(size)
    assert torch.equal(ours(picture, _preprocessing(weights)), weights.transforms()(picture))


def test_whole_keeps_the_border():
    picture = Image.new("RGB", (300, 100))
    picture.paste((255, 0, 0), (0, 0, 20, 100))  # a red left edge, which a centre crop loses
    whole = override(NATIVE, ModelRequest("timm:x", preprocess="whole"))
    assert whole.mode == "whole"
    assert apply_preprocessing(picture, whole)[0, :, 0].min() == 255
    assert apply_preprocessing(picture, NATIVE)[0].max() == 0


def test_another_size_keeps_the_ratio_of_resize_to_crop():
    smaller = override(NATIVE, ModelRequest("timm:x", image_size=112))
    assert (smaller.resize, smaller.crop) == (128, (112, 112))


@pytest.mark.parametrize(
    ("field", "value"), [("mean", (0.0, 0.0, 0.0)), ("std", (1.0, 1.0, 1.0)), ("interpolation", "lanczos")]
)
def test_an_override_changes_its_field_alone(field, value):
    changed = override(NATIVE, ModelRequest("timm:x", **{field: value}))
    assert {n: v for n, v in changed.to_json().items() if NATIVE.to_json()[n] != v}.keys() == {field}


def test_a_size_that_is_not_square_needs_whole():
    with pytest.raises(ModelError, match="Use --preprocess whole"):
        override(NATIVE, ModelRequest("timm:x", image_size=(100, 200)))
    whole = override(NATIVE, ModelRequest("timm:x", image_size=(100, 200), preprocess="whole"))
    assert apply_preprocessing(image((64, 64)), whole).shape == (3, 100, 200)


def test_a_border_crop_is_refused_and_whole_is_the_way_out(monkeypatch):
    from featpipe.models._zoo_timm import from_timm

    config = {"input_size": (3, 64, 64), "crop_mode": "border", "crop_pct": 1.0, "interpolation": "bicubic"}
    config |= {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(ModelError, match=r"'border' crop.*--preprocess whole"):
        from_timm(config, "timm:x")
    assert from_timm(config, "timm:x", whole=True).mode == "whole"


@pytest.mark.parametrize("model", ["timm:test_vit", "timm:test_convnext", "open_clip:featpipe-tiny"])
def test_a_network_takes_another_image_size(model, networks):
    backbone = networks(model, image_size=64)
    assert backbone.card.preprocessing.input_size == (64, 64)
    backbone.module(torch.zeros(1, 3, 64, 64))


def test_a_network_with_a_fixed_size_is_built_for_another_one():
    card = load(ModelRequest("timm:test_vit4", "random:0", image_size=96)).card
    assert card.preprocessing.input_size == (96, 96)
