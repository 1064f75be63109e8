"""The range test suggests a rate that trains, whatever the curvature and noise, and leaves the module as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from featpipe.errors import RequestError, WorkError
from featpipe.tuning import RangeTest, Training, range_test
from featpipe.tuning._range_test import smooth

SGD = Training(1.0, optimiser="sgd", momentum=0.0, weight_decay=0.0, batch_size=8, device="cpu")


def _quadratic(curvature, noise, *, width=1):
    """Return ``c/2 (|w|² + noise)``, of which gradient descent is stable at rates below 2/c."""
    module = nn.Module()
    module.w = nn.Parameter(torch.ones(width))

    def loss(rows, generator):
        drawn = noise * torch.randn((), generator=generator)
        return (0.5 * curvature * (module.w.square().sum() + drawn))[None], torch.ones(1)

    return module, loss


def _net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
        X = torch.randn(40, 4)

    def loss(rows, generator):
        return (module(X[rows])[:, 0] - X[rows].sum(1)).square().sum()[None], torch.tensor([float(len(rows))])

    return module, loss


@pytest.mark.parametrize("curvature", [0.1, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1, 0.2])
def test_the_suggestion_follows_the_curvature(curvature, noise):
    for seed in range(4):
        found = range_test(*_quadratic(curvature, noise), replace(SGD, seed=seed), rows=np.arange(64))
        assert 0.02 < found.suggestion * curvature < 0.5  # a quarter of what is stable, at most


def test_rates_grow_by_the_same_factor_until_the_loss_is_four_times_its_lowest():
    found = range_test(*_quadratic(30.0, 0.0), SGD, rows=np.arange(64), n_steps=80)
    np.testing.assert_allclose(np.diff(np.log(found.rates)), np.log(1e8) / 79)
    assert found.rates[0] == 1e-7
    assert 2 / 30 < found.rates[-1] < 10
    assert np.isfinite(found.losses).all()


def test_losses_are_those_of_a_bare_loop():
    module, loss = _quadratic(2.0, 0.0, width=3)
    found = range_test(module, loss, SGD, rows=np.arange(64))
    w = np.ones(3, dtype=np.float32)
    for rate, seen in zip(found.rates, found.losses, strict=True):
        assert seen == pytest.approx((w**2).sum(), rel=1e-4)
        w -= np.float32(2.0 * rate) * w


def test_smoothing_is_a_mean_that_does_not_lag():
    losses = np.array([5.0, 4.0, 2.0, 1.0, 3.0])
    weight = [[0.5 ** abs(i - j) for j in range(5)] for i in range(5)]
    expected = [np.average(losses, weights=row) for row in weight]
    np.testing.assert_allclose(smooth(losses, 0.5), expected)
    np.testing.assert_array_equal(smooth(losses, 0.0), losses)
    np.testing.assert_allclose(
        smooth(np.append(losses[:4], 1e9), 0.5), smooth(np.append(losses[:4], 5.0), 0.5)
    )


def test_the_module_and_the_global_generators_are_left_as_they_were():
    module, loss = _net()
    module[2].eval()
    module[0].bias.requires_grad_(False)
    module[0].weight.grad = torch.ones(8, 4)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state, modes = torch.get_rng_state(), [part.training for part in module.modules()]
    range_test(module, loss, Training(1e-3, batch_size=8, device="cpu"), rows=np.arange(40))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(module[0].weight.grad, torch.ones(8, 4))
    assert module[3].weight.grad is None
    assert not module[0].bias.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_two_tests_are_the_same_and_another_seed_is_not():
    def found(seed):
        return range_test(*_net(), Training(1e-3, seed=seed, batch_size=8, device="cpu"), rows=np.arange(40))

    first = found(0).table()
    for name, column in found(0).table().items():
        np.testing.assert_array_equal(column, first[name])
    assert not np.array_equal(found(1).losses, first["loss"])


def test_groups_keep_their_ratio():
    module, loss = _quadratic(1.0, 0.0, width=2)
    module.v = nn.Parameter(torch.ones(1))
    seen = []

    def both(rows, generator):
        seen.append((module.w.detach()[0].item(), module.v.detach()[0].item()))
        losses, weights = loss(rows, generator)
        return losses + module.v.sum(), weights

    groups = [{"params": [module.w]}, {"params": [module.v], "lr": 0.05}]
    training = replace(SGD, learning_rate=0.5)
    rates = range_test(module, both, training, rows=np.arange(64), groups=groups).rates
    w, v = np.array(seen[: len(rates)]).T
    # gradients are w and 1: the second group is 10 times as slow
    np.testing.assert_allclose(-np.diff(w), rates[: len(w) - 1] * w[:-1], atol=2e-7)
    np.testing.assert_allclose(-np.diff(v), 0.1 * rates[: len(v) - 1], atol=2e-7)


def test_batches_may_be_the_callers():
    seeds = []

    def batches(seed):
        seeds.append(seed)
        return list(torch.arange(6).split(2))

    found = range_test(*_quadratic(1.0, 0.0), SGD, rows=batches, n_steps=20)
    assert len(set(seeds)) == len(seeds) == -(-len(found.rates) // 3)


def test_a_loss_that_never_falls_is_an_error():
    module, _ = _quadratic(1.0, 0.0)

    def noise(rows, generator):
        return (1 + 0 * module.w.sum() + torch.randn((), generator=generator))[None], torch.ones(1)

    with pytest.raises(
        WorkError, match=r"does not fall at any learning rate from 1.0e-07 to .*Try another range"
    ):
        range_test(module, noise, SGD, rows=np.arange(64))
    with pytest.raises(WorkError, match="does not fall"):  # far too low
        range_test(*_quadratic(1e-6, 0.01), SGD, rows=np.arange(64))


def test_a_loss_that_is_no_number_is_an_error_and_the_module_is_put_back():
    module, _ = _quadratic(1.0, 0.0)
    with pytest.raises(WorkError, match=r"no number at a learning rate of 1.0e-07"):
        range_test(module, lambda *_: ((module.w * np.nan), torch.ones(1)), SGD, rows=np.arange(64))
    assert module.w.item() == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lowest": 0.0}, "lowest must be a number > 0, got 0.0"),
        ({"lowest": 1.0, "highest": 0.5}, "highest must be a number > 1, got 0.5"),
        ({"n_steps": 5}, "n_steps must be an int >= 10, got 5"),
        ({"smoothing": 1.0}, "smoothing must be a number >= 0 and < 1, got 1.0"),
    ],
)
def test_wrong_values_say_what_is_right(given, message):
    with pytest.raises(RequestError, match=message):
        range_test(*_quadratic(1.0, 0.0), SGD, rows=np.arange(64), **given)


def test_the_plot_is_drawn(tmp_path):
    rates = np.geomspace(1e-3, 1, 30)
    losses = np.append(np.linspace(2, 1, 29), np.float64(1e6))
    RangeTest(rates, losses, smooth(losses, 0.5), 0.03).plot(tmp_path / "range.png")
    assert (tmp_path / "range.png").read_bytes().startswith(b"\x89PNG")
