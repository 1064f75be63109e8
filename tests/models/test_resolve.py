"""`resolve` builds a network once; `default` works from a hub's cache and says what to do without one."""

from __future__ import annotations

import os
import time

import pytest
import torch
from safetensors.torch import save

from featpipe import remembered
from featpipe.errors import SpecError, UnknownModel, WeightsUnavailable
from featpipe.models import ModelRequest, _load, load, resolve
from featpipe.models._torchvision import import_torchvision

FILE_TIME = time.time() - 100  # old enough to be remembered


@pytest.fixture
def loads(monkeypatch):
    """Count how often a network is built."""
    built = []
    real = _load.load
    monkeypatch.setattr(_load, "load", lambda *a, **k: built.append(a) or real(*a, **k))
    monkeypatch.setattr(remembered, "_SETTLED_SECONDS", -1e9)
    return built


@pytest.fixture
def weights(networks):
    return networks("timm:resnet10t", "random:5").module.state_dict()


def test_random_weights_are_remembered(loads):
    request = ModelRequest("timm:resnet10t", "random:0")
    assert resolve(request) == resolve(request)
    assert len(loads) == 1


def test_rehash_builds_again(loads):
    request = ModelRequest("timm:resnet10t", "random:0")
    resolve(request)
    resolve(request, rehash=True)
    assert len(loads) == 2


def test_a_changed_file_is_noticed(loads, tmp_path, weights):
    file = tmp_path / "w.safetensors"
    file.write_bytes(save(weights))
    request = ModelRequest("timm:resnet10t", str(file))
    before = resolve(request)
    assert resolve(request) == before
    assert len(loads) == 1
    file.write_bytes(save({name: tensor + 1 for name, tensor in weights.items()}))
    assert resolve(request).weights != before.weights


def test_a_relative_file_means_the_folder_that_one_is_in(tmp_path, weights, monkeypatch):
    request = ModelRequest("timm:resnet10t", "./w.safetensors")
    cards = []
    for number, folder in enumerate((tmp_path / "a", tmp_path / "b")):
        folder.mkdir()
        (folder / "w.safetensors").write_bytes(save({k: v + number for k, v in weights.items()}))
        monkeypatch.chdir(folder)
        cards.append(resolve(request))
    assert cards[0].weights != cards[1].weights


def test_default_works_offline_from_a_filled_hub_cache(hub, weights, loads, networks):
    hub("timm/resnet10t.c3_in1k", "model.safetensors", save(weights))
    card = resolve(ModelRequest("timm:resnet10t"))
    assert card.weights == networks("timm:resnet10t", "random:5").card.weights
    assert card.weights_label == "c3_in1k"
    assert resolve(ModelRequest("timm:resnet10t")) == card
    assert len(loads) == 1


def test_tag_and_weights_are_two_ways_to_say_one_thing(hub, weights):
    hub("timm/resnet10t.c3_in1k", "model.safetensors", save(weights))
    assert resolve(ModelRequest("timm:resnet10t.c3_in1k")) == resolve(
        ModelRequest("timm:resnet10t", "c3_in1k")
    )


def test_a_new_file_in_the_hub_cache_is_noticed(hub, weights):
    file = hub("timm/resnet10t.c3_in1k", "model.safetensors", save(weights))
    before = resolve(ModelRequest("timm:resnet10t"))
    file.write_bytes(save({name: tensor + 1 for name, tensor in weights.items()}))
    os.utime(file, (FILE_TIME, FILE_TIME))
    assert resolve(ModelRequest("timm:resnet10t")).weights != before.weights


def test_default_of_torchvision_from_its_own_cache(tmp_path, hub, networks):
    file = tmp_path / "torch" / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    file.parent.mkdir(parents=True)
    torch.save(networks("torchvision:squeezenet1_1", "random:3").module.state_dict(), file)
    card = resolve(ModelRequest("torchvision:squeezenet1_1"))
    assert card.weights == networks("torchvision:squeezenet1_1", "random:3").card.weights
    assert card.weights_label == "IMAGENET1K_V1"


def test_what_torchvision_sets_by_itself_for_pretrained_weights_is_in_the_key(tmp_path, hub):
    models = import_torchvision().models
    file = (
        tmp_path / "torch" / "hub" / "checkpoints" / models.GoogLeNet_Weights.DEFAULT.url.rpartition("/")[2]
    )
    file.parent.mkdir(parents=True)
    torch.save(models.googlenet(init_weights=False, aux_logits=True).state_dict(), file)
    card = resolve(ModelRequest("torchvision:googlenet"))
    assert dict(card.model_args)["transform_input"] is True
    same = resolve(ModelRequest("torchvision:googlenet", str(file)))
    assert (same.weights, same.model_args) == (card.weights, card.model_args)


def test_default_of_open_clip_from_a_filled_hub_cache(hub, tiny_clip, networks, monkeypatch):
    from featpipe.models._zoo_open_clip import import_open_clip

    tags = {"a": {"hf_hub": "someone/tiny/", "quick_gelu": True, "mean": (0.1, 0.2, 0.3)}}
    monkeypatch.setitem(import_open_clip().pretrained._PRETRAINED, tiny_clip, tags)
    tower = networks("open_clip:featpipe-tiny", "random:3")
    state = {f"visual.{name}": tensor for name, tensor in tower.module.state_dict().items()}
    hub("someone/tiny", "open_clip_model.safetensors", save({**state, "logit_scale": torch.ones(1)}))
    card = resolve(ModelRequest("open_clip:featpipe-tiny/a"))
    assert card.weights == tower.card.weights
    assert card.model_args == (("force_quick_gelu", True),)
    assert card.preprocessing.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("offline", ["1", ""])
@pytest.mark.parametrize("model", ["timm:resnet10t", "torchvision:alexnet", "open_clip:RN50/openai"])
def test_without_cache_and_network_there_are_three_ways_out(hub, monkeypatch, model, offline):
    """Also at once where nobody said that there is no network: a hub's library would try for half a minute."""
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
        monkeypatch.delenv(f"{scheme.upper()}_PROXY", raising=False)
    started = time.monotonic()
    with pytest.raises(
        WeightsUnavailable, match=r"\(1\) .*copy.*\(2\) pass --weights FILE.*\(3\) .*random:SEED"
    ):
        load(ModelRequest(model))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("model", "weights", "error", "message"),
    [
        ("timm:resnet1", "random:0", UnknownModel, "timm has no model 'resnet1'"),
        ("torchvision:alex", "random:0", UnknownModel, "Similar: alexnet"),
        ("torchvision:resnet5O", "random:0", UnknownModel, r"Similar: .*\bresnet50\b"),
        ("timm:resnet5O", "random:0", UnknownModel, r"Similar: .*\bresnet50\b"),
        ("timm:mobilnetv2_100", "random:0", UnknownModel, "Similar: mobilenetv2_100"),
        ("open_clip:vit-b32", "random:0", UnknownModel, "Similar: .*ViT-B-32"),
        ("open_clip:ViT-B-33", "random:0", UnknownModel, "open_clip has no model"),
        ("timm:resnet10t.nope", "random:0", WeightsUnavailable, "no set of weights 'nope'.*c3_in1k"),
        ("open_clip:ViT-B-32", "default", WeightsUnavailable, "no single default.*openai"),
        ("timm:resnet10t", "random", SpecError, "Random weights need a seed"),
        ("timm:resnet10t.c3_in1k", "other", SpecError, "Give one of them"),
        ("timm:resnet10t", "not/there", SpecError, "There is no weights file not/there"),
        ("imported:x", "default", ValueError, "not a network"),
        ("torchvision:fasterrcnn_resnet50_fpn", "random:0", ValueError, "not a classification network"),
    ],
)
def test_a_wrong_request_says_what_would_be_right(model, weights, error, message):
    with pytest.raises(error, match=message):
        load(ModelRequest(model, weights))


def test_a_wrong_model_argument_names_it():
    with pytest.raises(ValueError, match=r"timm:resnet10t cannot be built with wings=2.*Check the model arg"):
        load(ModelRequest("timm:resnet10t", "random:0", model_args=(("wings", 2),)))


def test_a_resized_head_of_pretrained_weights_counts_as_missing(hub, weights):
    hub("timm/resnet10t.c3_in1k", "model.safetensors", save(weights))
    card = load(ModelRequest("timm:resnet10t", model_args=(("num_classes", 7),))).card
    assert set(card.missing) == {"fc.weight", "fc.bias"}
