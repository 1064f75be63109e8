"""Losses equal their formulas in NumPy, leave out what was not measured, and have a gradient everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from featpipe.tuning.rdms._losses import (
    absolute_loss,
    correlation_loss,
    pair_correlations,
    squared_loss,
    standardise,
)


@pytest.fixture
def pairs(rng):
    """Predictions of 30 pairs in two sets, and three measured RDMs with a gap each."""
    predicted, measured = rng.random(30), rng.random((3, 30))
    measured[[0, 1, 2], [4, 20, 7]] = np.nan
    return torch.tensor(predicted), torch.tensor(measured), torch.tensor([0] * 12 + [5] * 18)


def test_correlation_loss_is_the_mean_over_sets_and_rdms(pairs):
    predicted, measured, sets = (part.numpy() for part in pairs)
    r = []
    for name in (0, 5):
        for rdm in measured:
            use = (sets == name) & ~np.isnan(rdm)
            r.append(stats.pearsonr(predicted[use], rdm[use]).statistic)
    assert float(correlation_loss(*pairs)) == pytest.approx(1 - np.mean(r))


def test_without_sets_all_pairs_are_one(pairs):
    predicted, measured, _ = pairs
    r = np.corrcoef(predicted[5:], measured[0, 5:])[0, 1]
    assert float(correlation_loss(predicted[5:], measured[0, 5:])) == pytest.approx(1 - r)


def test_scale_and_offset_of_a_set_do_not_change_the_correlation_loss(pairs):
    predicted, measured, sets = pairs
    moved = torch.where(sets == 0, 3 * predicted + 7, predicted)
    torch.testing.assert_close(
        correlation_loss(moved, measured, sets), correlation_loss(predicted, measured, sets)
    )


def test_two_pairs_do_not_correlate(pairs):
    predicted, measured, sets = pairs
    two = torch.cat([torch.arange(12), torch.tensor([15, 16])])
    only = correlation_loss(predicted[:12], measured[:, :12], sets[:12])
    torch.testing.assert_close(correlation_loss(predicted[two], measured[:, two], sets[two]), only)
    assert float(correlation_loss(predicted[:2], measured[:, :2])) == 0


@pytest.mark.parametrize(
    ("loss", "error"), [(squared_loss, lambda p, m: (p - m) ** 2), (absolute_loss, lambda p, m: abs(p - m))]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_errors_are_weighed_means_over_measured_pairs(pairs, rng, loss, error, weighted):
    predicted, measured, _ = pairs
    weights = rng.random(measured.shape) if weighted else np.ones(measured.shape)
    known = ~np.isnan(measured.numpy())
    expected = np.average(error(predicted.numpy(), measured.numpy())[known], weights=weights[known])
    found = loss(predicted, measured, torch.tensor(weights) if weighted else None)
    assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize("loss", [squared_loss, absolute_loss, correlation_loss])
def test_gradients_are_those_of_finite_differences(pairs, loss):
    predicted, measured, sets = pairs
    more = (sets,) if loss is correlation_loss else ()
    assert torch.autograd.gradcheck(lambda p: loss(p, measured, *more), predicted.clone().requires_grad_())


def test_correlations_equal_numpys_and_have_its_gradient(rng):
    rows = torch.tensor(rng.standard_normal((5, 7)), requires_grad=True)
    first, second = torch.triu_indices(5, 5, 1)
    expected = np.corrcoef(rows.detach().numpy())[first, second]
    np.testing.assert_allclose(pair_correlations(rows, first, second).detach(), expected)
    assert torch.autograd.gradcheck(lambda z: pair_correlations(z, first, second), rows)


@pytest.mark.parametrize("level", [0.0, 0.1, 1e4])
def test_a_constant_row_correlates_with_nothing_and_has_no_gradient(level):
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    rows[1] = level
    rows.requires_grad_()
    first, second = torch.triu_indices(3, 3, 1)
    r = pair_correlations(rows, first, second)
    assert r[0] == r[2] == 0
    correlation_loss(r, torch.tensor([0.1, 0.7, 0.3])).backward()
    assert rows.grad.isfinite().all()
    assert not rows.grad[1].any()


def test_constant_predictions_lose_one_and_pass_no_gradient():
    predicted = torch.full((6,), 0.3, requires_grad=True)
    loss = correlation_loss(predicted, torch.rand(6, generator=torch.Generator().manual_seed(0)))
    loss.backward()
    assert float(loss.detach()) == 1
    assert not predicted.grad.any()


def test_autocast_leaves_correlations_in_full_precision(rng):
    rows = torch.tensor(rng.standard_normal((4, 300)), dtype=torch.float32)
    first, second = torch.triu_indices(4, 4, 1)
    with torch.autocast("cpu", torch.bfloat16):
        low = pair_correlations(rows, first, second)
    torch.testing.assert_close(low, pair_correlations(rows, first, second))


def test_standardised_rows_have_length_one(rng):
    unit = standardise(torch.tensor(rng.standard_normal((4, 9)) * 1e-3 + 5))
    torch.testing.assert_close(unit.square().sum(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(unit.sum(1), torch.zeros(4, dtype=torch.float64))
