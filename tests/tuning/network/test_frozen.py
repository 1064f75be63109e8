"""Frozen ranges by name, and what no gradient reaches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featpipe.errors import LayerNotFound, RequestError
from featpipe.tuning.network import freeze


class Net(nn.Module):
    """A token of its own, a stem, three blocks of two, and a head."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(3))
        self.stem = nn.Linear(3, 3)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(3)))
        self.head = nn.Linear(3, 2)


ALL = {"token", "stem", *(f"blocks.{i}.{j}" for i in range(3) for j in range(2)), "head"}


def owners(module):
    """Return the layers (and the token) whose parameters are trained."""
    return {
        name.removesuffix(".weight").removesuffix(".bias")
        for name, p in module.named_parameters()
        if p.requires_grad
    }


@pytest.mark.parametrize(
    ("frozen", "stay"),
    [
        (None, set()),
        ((), set()),
        ("stem", {"stem"}),
        ("blocks", {f"blocks.{i}.{j}" for i in range(3) for j in range(2)}),
        (["head", "blocks.1"], {"head", "blocks.1.0", "blocks.1.1"}),
        ("blocks.*.1", {"blocks.0.1", "blocks.1.1", "blocks.2.1"}),
        ("blocks.0.1..blocks.1", {"blocks.0.1", "blocks.1.0", "blocks.1.1"}),
        ("..blocks.1.0", {"token", "stem", "blocks.0.0", "blocks.0.1", "blocks.1.0"}),
        ("..blocks.0", {"token", "stem", "blocks.0.0", "blocks.0.1"}),
        ("blocks.2..", {"blocks.2.0", "blocks.2.1", "head"}),
        ("**", ALL),
    ],
)
def test_what_stays(frozen, stay):
    net = Net()
    freeze(net, frozen)
    assert owners(net) == ALL - stay


def test_freezing_anew_forgets_what_was_frozen():
    net = Net()
    freeze(net, "**")
    freeze(net, "stem")
    assert owners(net) == ALL - {"stem"}


def test_a_name_that_matches_nothing_is_told_the_closest():
    with pytest.raises(LayerNotFound, match=r"blocks\.7.*blocks\."):
        freeze(Net(), "..blocks.7")


def test_a_range_that_ends_before_it_starts_is_refused():
    with pytest.raises(RequestError, match=r"'stem' comes before 'blocks\.1'"):
        freeze(Net(), "blocks.1..stem")


def test_what_lies_behind_the_deepest_tap_is_not_trained(body_of, trained_of):
    body = body_of("timm:test_vit", ["blocks.1:cls", "blocks.3:mean"], 160)
    names = set(trained_of(body))
    assert {"cls_token", "blocks.3.mlp.fc2.weight"} <= names
    assert not any(name.startswith(("blocks.4", "blocks.5", "norm", "head")) for name in names)
    assert set(body.tuned()) == names


def test_a_head_alone_may_be_trained(body_of, trained_of):
    body = body_of("timm:test_resnet", "layer2", frozen="..layer2")
    assert not trained_of(body)
    assert body.tuned() == {}
    assert not body(torch.arange(2))[0].requires_grad
