"""Low-rank changes against W + BA written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featpipe.errors import RequestError
from featpipe.tuning.network._low_rank import LowRank, merge, tune_low_rank


class Net(nn.Module):
    """All that can be changed, and a 3×3, a grouped and a normalising layer, which cannot."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.pixel = nn.Conv2d(8, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.linear = nn.Linear(6, 5)

    def forward(self, x):
        x = self.norm(self.pixel(self.grouped(self.wide(x)))).flatten(2).mT
        return self.linear(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def images():
    return torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def moved(net):
    """Give the factors B values, as if they had been trained."""
    generator = torch.Generator().manual_seed(2)
    for layer in net.modules():
        if isinstance(layer, LowRank):
            layer.B.data = torch.randn(layer.B.shape, generator=generator)
    return net


def test_starts_as_the_untouched_network(net, images):
    before = net(images)
    tune_low_rank(net, 2)
    torch.testing.assert_close(net(images), before, rtol=0, atol=0)


def test_trains_two_factors_a_layer_and_nothing_else(net):
    tune_low_rank(net, 3)
    shapes = [(6, 8), (18, 6), (6, 6), (5, 6)]  # pixel, packed projection, output projection, linear
    wanted = sum(3 * (n_out + n_in) for n_out, n_in in shapes)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == wanted


def test_rank_is_capped_at_the_smaller_side(net):
    tune_low_rank(net, 100)
    factors = net.linear.parametrizations.weight[0]
    assert factors.A.shape == (5, 6)
    assert factors.B.shape == (5, 5)


def test_forward_is_that_of_weights_with_their_changes_added(net, images):
    plain = copy.deepcopy(net)
    moved_net = moved(_tuned(net, scale=0.5))
    for layer, name in (
        (plain.pixel, "pixel"),
        (plain.linear, "linear"),
        (plain.attention.out_proj, "attention.out_proj"),
    ):
        factors = moved_net.get_submodule(name).parametrizations.weight[0]
        layer.weight.data = layer.weight + 0.5 * (factors.B @ factors.A).view_as(layer.weight)
    factors = moved_net.attention.parametrizations.in_proj_weight[0]
    plain.attention.in_proj_weight.data += 0.5 * factors.B @ factors.A
    torch.testing.assert_close(moved_net(images), plain(images))
    merge(moved_net)
    torch.testing.assert_close(moved_net(images), plain(images))
    assert moved_net.state_dict().keys() == plain.state_dict().keys()


def test_gradient_is_that_of_the_product():
    layer = nn.Linear(4, 3)
    W, x = layer.weight.detach().clone(), torch.randn(7, 4)
    tune_low_rank(layer, 2, scale=2.0)
    factors = moved(layer).parametrizations.weight[0]
    A, B = (p.detach().clone().requires_grad_() for p in (factors.A, factors.B))
    (F.linear(x, W + 2 * B @ A, layer.bias) ** 2).sum().backward()
    (layer(x) ** 2).sum().backward()
    torch.testing.assert_close(factors.A.grad, A.grad)
    torch.testing.assert_close(factors.B.grad, B.grad)


def test_frozen_layers_stay(net):
    tune_low_rank(net, 2, frozen=frozenset({"pixel", "attention", "attention.out_proj"}))
    assert [n for n, p in net.named_parameters() if p.requires_grad] == [
        "linear.parametrizations.weight.0.A",
        "linear.parametrizations.weight.0.B",
    ]


def test_the_seed_draws_the_first_factor(net):
    one, same, other = (_tuned(copy.deepcopy(net), seed=seed) for seed in (1, 1, 2))
    first, second, third = (n.linear.parametrizations.weight[0].A for n in (one, same, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert first.abs().max() <= 6**-0.5


def test_a_network_without_such_layers_is_refused():
    with pytest.raises(RequestError, match="none outside its frozen layers"):
        tune_low_rank(nn.Sequential(nn.Conv2d(3, 4, 3)), 2)


@pytest.mark.parametrize(
    ("model", "tap", "frozen"),
    [("timm:test_vit", "blocks.2", "..blocks.0"), ("timm:test_resnet", "layer3", None)],
)
def test_tuned_gives_plain_weights_under_plain_names(body_of, model, tap, frozen):
    body = body_of(model, tap, 160 if "vit" in model else 64, frozen=frozen, lora_rank=2, lora_scale=0.1)
    moved(body.network)
    rows, plain = torch.arange(4), body_of(model, tap, 160 if "vit" in model else 64)
    tuned = body.tuned()
    assert tuned
    assert not plain.network.load_state_dict(tuned, strict=False).unexpected_keys
    torch.testing.assert_close(body(rows)[0], plain(rows)[0], rtol=1e-4, atol=1e-5)
    body.merge()
    assert body.network.state_dict().keys() == plain.network.state_dict().keys()
    torch.testing.assert_close(body.tuned(), tuned)
    torch.testing.assert_close(body(rows)[0], plain(rows)[0], rtol=1e-4, atol=1e-5)


def _tuned(net, **options):
    tune_low_rank(net, 2, **options)
    return net
