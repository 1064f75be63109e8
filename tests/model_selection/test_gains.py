"""Gains of one model over another: against means and counts written out, and what draws must and must not see."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.errors import RequestError
from featpipe.metrics import pearson_r
from featpipe.model_selection import bootstrap_interval, drawn_means, gain_of


def test_means_gain_and_shares_are_those_written_out(rng):
    control = rng.uniform(-0.2, 0.6, 40)
    r = control + rng.normal(0.02, 0.05, 40)
    found = gain_of(control, r, tolerance=0.03)
    assert (found.n_targets, found.over_stimuli) == (40, None)
    np.testing.assert_allclose(
        [found.control, found.r, found.gain], [control.mean(), r.mean(), (r - control).mean()]
    )
    better, worse = (sum(s * (b - a) > 0.03 for a, b in zip(control, r, strict=True)) for s in (1, -1))
    assert (found.improved, found.worsened) == pytest.approx((100 * better / 40, 100 * worse / 40))
    assert found.over_targets[0] < found.gain < found.over_targets[1]


def test_the_interval_over_targets_is_that_of_a_mean(rng):
    control, r = rng.uniform(0, 0.5, 400), rng.uniform(0.1, 0.6, 400)
    half = 1.96 * np.std(r - control) / np.sqrt(400)
    low, high = gain_of(control, r, n_draws=4000).over_targets
    np.testing.assert_allclose([low, high], (r - control).mean() + half * np.array([-1, 1]), atol=0.1 * half)


def test_equal_features_improve_nothing_beyond_the_tolerance(rng):
    """Last digits alone would improve half of the targets."""
    control = rng.uniform(0, 0.5, 200)
    r = control + rng.normal(0, 1e-6, 200)
    assert gain_of(control, r).improved == 0
    assert 30 < gain_of(control, r, tolerance=0).improved < 70


def test_targets_that_one_of_them_lacks_are_left_out():
    found = gain_of(np.array([0.1, np.nan, 0.3]), np.array([0.2, 0.4, np.nan]))
    assert (found.n_targets, round(found.gain, 12)) == (1, 0.1)


@pytest.mark.parametrize(
    ("control", "tolerance", "message"),
    [
        ([np.nan], 0.01, "No target has a score in both"),
        ([0.1], -1, "tolerance is -1"),
        ([0.1], np.nan, "is nan"),
    ],
)
def test_what_cannot_be_compared_is_said(control, tolerance, message):
    with pytest.raises(RequestError, match=message):
        gain_of(np.array(control), np.array([0.2]), tolerance=tolerance)


@pytest.fixture
def held_out(rng):
    y = rng.standard_normal((30, 6)).astype(np.float32)
    folds = [(np.arange(15, 30), np.arange(15)), (np.arange(15), np.arange(15, 30))]
    return y, [(y + rng.standard_normal(y.shape)).astype(np.float32) for _ in range(2)], folds


def test_draws_are_those_of_the_interval(held_out):
    y, (prediction, _), folds = held_out
    masks = {"a": np.arange(6) < 4}
    draws = drawn_means(y, prediction, folds, masks=masks, n_draws=300, seed=3)["a"]
    ends = bootstrap_interval(y, prediction, folds, masks=masks, n_draws=300, seed=3).groups["a"]
    np.testing.assert_allclose(np.quantile(draws, [0.025, 0.975]), ends, rtol=1e-6)


def test_two_models_meet_the_same_draws(held_out):
    """What they share then cancels: the interval of a difference with itself is a point."""
    y, (first, second), folds = held_out
    masks = {"all": np.ones(6, dtype=bool)}
    one, same, other = (
        drawn_means(y, p, folds, masks=masks, n_draws=400)["all"] for p in (first, 2 * first + 1, second)
    )
    np.testing.assert_allclose(same, one, atol=1e-5)
    expected = np.mean([pearson_r(y[t], second[t]) - pearson_r(y[t], first[t]) for _, t in folds])
    assert abs(np.mean(other - one) - expected) < 3 * np.std(other - one)
