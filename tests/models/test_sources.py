"""Checkpoints, user files, the catalogue, and what a card says of a network."""

from __future__ import annotations

import pytest
from safetensors.torch import save_file

from featpipe.errors import ModelError, RequestError
from featpipe.models import ModelRequest, describe, list_models, load, resolve, save_checkpoint
from featpipe.spec import Preprocessing

NETWORK = """
from torch import nn

def make(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(inplace=True)), PREPROCESSING

def number():
    return 3
"""


@pytest.fixture
def user_file(tmp_path):
    file = tmp_path / "mine.py"
    preprocessing = Preprocessing(16, (16, 16), "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).to_json()
    file.write_text(NETWORK.replace("PREPROCESSING", repr(preprocessing)))
    return file


def test_a_checkpoint_is_the_network_inside_it(tmp_path, networks):
    backbone = networks("timm:test_vit", "random:4", mean=(0.1, 0.2, 0.3))
    save_checkpoint(tmp_path / "tuned.safetensors", backbone)
    for source in (tmp_path / "tuned.safetensors", tmp_path):
        card = resolve(ModelRequest(f"local:{source}"))
        assert (card.architecture, card.weights) == (backbone.card.architecture, backbone.card.weights)
        assert card.preprocessing == backbone.card.preprocessing
    assert [file.name for file in tmp_path.iterdir()] == ["tuned.safetensors"]


def test_a_checkpoint_takes_overrides(tmp_path, networks):
    save_checkpoint(tmp_path / "t.safetensors", networks("timm:test_vit"))
    card = resolve(ModelRequest(f"local:{tmp_path / 't.safetensors'}", preprocess="whole", image_size=64))
    assert card.preprocessing.mode == "whole"
    assert card.preprocessing.input_size == (64, 64)


def test_a_checkpoint_that_does_not_say_what_it_is_is_refused(tmp_path, networks):
    save_file(networks("timm:test_vit").module.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(ModelError, match=r"--model ZOO:NAME --weights .*bare.safetensors"):
        resolve(ModelRequest(f"local:{tmp_path / 'bare.safetensors'}"))


def test_a_checkpoint_of_other_weights_than_were_saved_is_refused(tmp_path, networks):
    file = tmp_path / "tuned.safetensors"
    save_checkpoint(file, networks("timm:test_vit"))
    data = bytearray(file.read_bytes())
    data[-5000] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(ModelError, match=r"tuned\.safetensors is damaged: its weights are not those"):
        load(ModelRequest(f"local:{file}"))


def test_a_checkpoint_may_be_read_by_whoever_may_read_its_neighbours(tmp_path, networks):
    save_checkpoint(tmp_path / "tuned.safetensors", networks("timm:test_vit"))
    (tmp_path / "neighbour").touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_a_folder_of_two_checkpoints_is_refused(tmp_path, networks):
    for name in "ab":
        save_checkpoint(tmp_path / f"{name}.safetensors", networks("timm:test_vit"))
    with pytest.raises(ModelError, match=r"holds 2 \.safetensors files"):
        resolve(ModelRequest(f"local:{tmp_path}"))


@pytest.mark.data
def test_a_real_file_that_names_its_network_is_a_checkpoint(real_data):
    file = real_data / "weights" / "mobilenetv2_100.safetensors"
    halves = (0.5, 0.5, 0.5)
    direct = ModelRequest(
        "timm:mobilenetv2_100", str(file), (("pad_type", "same"),), mean=halves, std=halves, image_size=224
    )
    assert resolve(ModelRequest(f"local:{file}")) == resolve(direct)


def test_a_user_file_needs_trust(user_file):
    with pytest.raises(RequestError, match=r"would execute mine\.py.*--trust"):
        load(ModelRequest(f"python:{user_file}:make"))


def test_a_user_file_gives_module_preprocessing_and_its_own_digest(user_file):
    request = ModelRequest(f"python:{user_file}:make", "random:0", trust=True, model_args=(("width", 6),))
    card = load(request).card
    assert card.architecture == "python:mine.py:make"
    assert card.preprocessing.input_size == (16, 16)
    assert card.layers == ("0", "1", "output")
    user_file.write_text(user_file.read_text() + "\n")
    assert load(request).card.code != card.code
    assert load(request).card.weights == card.weights


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.py:number", "returned a int"),
        ("mine.py:nothing", "no function"),
        ("other.py:make", "There is no file"),
    ],
)
def test_a_user_file_that_is_wrong_says_how(user_file, name, message):
    with pytest.raises(ModelError, match=message):
        load(ModelRequest(f"python:{user_file.parent / name}", trust=True))


@pytest.mark.parametrize(
    ("zoo", "pattern", "name", "tag"),
    [
        ("timm", "resnet10t", "timm:resnet10t", "c3_in1k"),
        ("torchvision", "alex*", "torchvision:alexnet", "IMAGENET1K_V1"),
        ("open_clip", "vit-b-32", "open_clip:ViT-B-32", "openai"),
    ],
)
def test_the_catalogue_has_names_and_tags(zoo, pattern, name, tag):
    assert tag in dict(list_models(pattern, zoo))[name]


def test_another_zoo_is_refused():
    with pytest.raises(RequestError, match="choose from timm, open_clip, torchvision"):
        list_models("*", "keras")


@pytest.mark.parametrize(
    ("model", "convolutional", "prefix", "layout"),
    [
        ("timm:resnet10t", True, 0, "channels_first"),
        ("timm:mobilenetv2_100", True, 0, "channels_first"),
        ("timm:test_convnext", True, 0, "channels_first"),
        ("timm:test_vit", False, 1, "channels_first"),
        ("timm:swin_tiny_patch4_window7_224", False, 0, "channels_last"),
        ("torchvision:squeezenet1_1", True, 0, "channels_first"),
        ("open_clip:featpipe-tiny", False, 1, "channels_first"),
    ],
)
def test_a_card_knows_its_network(networks, model, convolutional, prefix, layout):
    card = networks(model).card
    assert (card.channels_last, card.prefix_tokens, card.layout) == (convolutional, prefix, layout)
    assert card.layers[-1] == "output"


@pytest.mark.parametrize("model", ["timm:test_convnext", "timm:swin_tiny_patch4_window7_224"])
def test_layouts_are_true_of_every_four_dimensional_output(networks, model):
    """A map here is square, so its channels are the axis that differs from the other two."""
    backbone = networks(model)
    for info in describe(backbone):
        is_map = info.shape and len(info.shape) == 3
        if is_map and len(set(info.shape)) == 2:
            layout = "channels_last" if info.shape[0] == info.shape[1] else "channels_first"
            assert backbone.card.layout_of(info.name) == layout, info


def test_a_network_that_refuses_its_own_input_size_says_so(user_file):
    user_file.write_text(user_file.read_text().replace("nn.Conv2d(3,", "nn.Conv2d(1,"))
    with pytest.raises(ModelError, match="does not take an image of 16×16 pixels"):
        load(ModelRequest(f"python:{user_file}:make", trust=True))


def test_torchvision_transformers_take_another_size_only_untrained(networks):
    assert networks("torchvision:vit_b_32", image_size=64).card.model_args == (("image_size", 64),)
