"""Weights: what fits, what does not, and a digest of what was loaded."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from featpipe.errors import ModelError, WeightsMismatch
from featpipe.models import ModelRequest, describe, load, resolve
from featpipe.models._weights import weights_digest

MODEL = "timm:resnet10t"


@pytest.fixture
def state(networks):
    return {name: tensor.clone() for name, tensor in networks(MODEL).module.state_dict().items()}


def asked(file, **more):
    return ModelRequest(MODEL, str(file), **more)


@pytest.fixture
def containers(tmp_path, state):
    """One set of weights in six files."""
    save_file(state, tmp_path / "plain.safetensors")
    save_file({f"module.{k}": v for k, v in state.items()}, tmp_path / "parallel.safetensors")
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pt")
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "both.bin")
    counters = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    save_file(counters, tmp_path / "no-counters.safetensors")
    return sorted(tmp_path.iterdir())


def test_digest_does_not_depend_on_the_container(containers, networks):
    digests = {load(asked(file)).card.weights for file in containers}
    assert digests == {networks(MODEL).card.weights}


def test_digest_depends_on_every_tensor(networks):
    module = load(ModelRequest(MODEL, "random:0")).module
    seen = {weights_digest(module)}
    for tensor in module.state_dict().values():
        tensor += 1
        seen.add(weights_digest(module))
    counters = sum(name.endswith("num_batches_tracked") for name in module.state_dict())
    assert len(seen) == 1 + len(module.state_dict()) - counters


def test_digest_is_pinned():
    """A change here orphans every cache on every disk."""
    module = torch.nn.Linear(2, 1)
    module.load_state_dict({"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])})
    assert weights_digest(module) == "56bfef617839fce52501e065efbc35bc5c87a6eb1f505315e949208f91ce002b"


def test_random_weights_follow_their_seed_and_move_no_random_state():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, again, other = (load(ModelRequest(MODEL, f"random:{seed}")).card.weights for seed in (1, 1, 2))
    assert one == again != other
    assert torch.equal(torch.get_rng_state(), before)


def test_a_part_is_loaded_and_what_depends_on_the_rest_is_known(tmp_path, state):
    save_file(
        {k: v for k, v in state.items() if not k.startswith(("layer4.", "fc."))}, tmp_path / "p.safetensors"
    )
    backbone = load(asked(tmp_path / "p.safetensors"))
    assert {name.split(".")[0] for name in backbone.card.missing} == {"layer4", "fc"}
    depends = {info.name: info.depends_on_missing for info in describe(backbone)}
    assert not depends["layer3"]
    assert depends["layer4.0.bn1"]
    assert depends["layer4"]
    assert depends["output"]


def test_a_file_of_another_network_says_how_it_differs(tmp_path, networks):
    save_file(networks("timm:test_vit").module.state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(
        WeightsMismatch, match=r"vit.safetensors .* 0 of \d+ tensors matched; \d+ missing \(conv1"
    ):
        load(asked(tmp_path / "vit.safetensors"))


def test_another_shape_names_both(tmp_path, state):
    state["fc.weight"] = torch.zeros(7, 512)
    save_file(state, tmp_path / "seven.safetensors")
    with pytest.raises(WeightsMismatch, match=r"fc.weight \(7, 512\) instead of \(1000, 512\)"):
        load(asked(tmp_path / "seven.safetensors"))


def test_a_file_that_executes_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ModelError, match="cannot be read as weights"):
        load(asked(tmp_path / "evil.pth"))


@pytest.mark.parametrize("name", ["torn.safetensors", "torn.pth"])
def test_a_torn_file_is_refused(tmp_path, containers, name):
    whole = next(file for file in containers if file.name == f"plain{name[4:]}")
    (tmp_path / name).write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(ModelError, match=f"{name} cannot be read as weights"):
        load(asked(tmp_path / name))


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ModelError, match=r"no weights file nowhere\.pth"):
        load(asked("nowhere.pth"))


@pytest.mark.data
def test_real_weights_without_a_classifier(real_data):
    file = real_data / "weights" / "squeezenet1_1_features.safetensors"
    card = resolve(ModelRequest("torchvision:squeezenet1_1", str(file)))
    assert card.missing == ("classifier.1.weight", "classifier.1.bias")
