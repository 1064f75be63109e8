"""Intervals and p-values agree with scipy, cover what they should, and reject noise as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.model_selection import KFold

from featpipe.datasets import Responses
from featpipe.errors import RequestError
from featpipe.metrics import pearson_r
from featpipe.model_selection import (
    bootstrap_interval,
    false_discovery,
    permutation_p,
    response_inference,
)
from featpipe.model_selection._held_out import HeldOut
from featpipe.model_selection._permutation import _fold_shifts, _shifted, _shuffles


@pytest.fixture
def pair(rng):
    """Responses of six targets, predicted ever better."""
    y_pred = rng.standard_normal((60, 6)) + rng.standard_normal((60, 1))
    return rng.standard_normal((60, 6)) + np.linspace(0, 1, 6) * y_pred, y_pred


@pytest.fixture
def folds():
    return list(KFold(3, shuffle=True, random_state=1).split(np.empty(60)))


def mean_r(y_true, y_pred, folds):
    return np.mean([pearson_r(y_true[test], y_pred[test]) for _, test in folds], axis=0)


def row_r(a, b, axis):
    """Pearson's r along an axis, as scipy calls a vectorised statistic."""
    a, b = a - a.mean(axis=axis, keepdims=True), b - b.mean(axis=axis, keepdims=True)
    return (a * b).sum(axis) / np.sqrt((a * a).sum(axis) * (b * b).sum(axis))


# Bootstrap


def test_interval_matches_scipy(pair):
    expected = stats.bootstrap(
        pair, row_r, paired=True, vectorized=True, axis=0, method="percentile", n_resamples=2000,
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    found = bootstrap_interval(*pair, n_draws=4000).targets
    np.testing.assert_allclose(found.T, expected, atol=0.03)


def test_draws_match_a_loop_within_folds(pair, folds):
    """The same draws, made by repeating rows."""
    y, p = pair
    masks = {"last": np.arange(6) >= 4}
    found = bootstrap_interval(y, p, folds, masks=masks, n_draws=50, level=0.8, seed=3)
    rng = np.random.default_rng(3)
    counts = [rng.multinomial(20, np.full(20, 1 / 20), size=50) for _ in folds]
    draws = np.array(
        [
            np.mean(
                [
                    pearson_r(y[test], p[test], sample_weight=count[k])
                    for (_, test), count in zip(folds, counts, strict=True)
                ],
                axis=0,
            )
            for k in range(50)
        ]
    )
    np.testing.assert_allclose(found.targets.T, np.quantile(draws, [0.1, 0.9], axis=0), atol=1e-5)
    np.testing.assert_allclose(found.overall, np.quantile(draws.mean(axis=1), [0.1, 0.9]), atol=1e-5)
    np.testing.assert_allclose(
        found.groups["last"], np.quantile(draws[:, 4:].mean(axis=1), [0.1, 0.9]), atol=1e-5
    )


def test_interval_covers_the_truth():
    """Over many experiments, r of the population lies in the 90 % interval about 90 % of the time."""
    rng = np.random.default_rng(5)
    y_pred = rng.standard_normal((200, 800))
    y_true = 0.5 * y_pred + np.sqrt(0.75) * rng.standard_normal((200, 800))
    low, high = bootstrap_interval(y_true, y_pred, n_draws=300, level=0.9).targets.T
    assert np.mean((low < 0.5) & (high > 0.5)) == pytest.approx(0.9, abs=0.035)


def test_interval_of_a_mean_knows_that_targets_covary(rng):
    signal, noise = rng.standard_normal((2, 100, 1))
    together = bootstrap_interval(np.tile(signal + noise, 8), np.tile(signal, 8), n_draws=400)
    np.testing.assert_allclose(together.overall, together.targets[0], atol=1e-6)
    apart = bootstrap_interval(rng.standard_normal((100, 8)), rng.standard_normal((100, 8)), n_draws=400)
    assert np.ptp(apart.overall) < 0.6 * np.ptp(apart.targets, axis=1).mean()


def test_stimuli_of_one_group_are_drawn_together(pair):
    """Every stimulus four times, in groups, is as uncertain as once."""
    once = bootstrap_interval(*pair, n_draws=3000).targets
    repeated = [np.repeat(values, 4, axis=0) for values in pair]
    grouped = bootstrap_interval(*repeated, groups=np.repeat(np.arange(60), 4), n_draws=3000).targets
    np.testing.assert_allclose(grouped, once, atol=0.02)
    blind = bootstrap_interval(*repeated, n_draws=3000).targets
    assert np.all(np.ptp(blind, axis=1) < 0.7 * np.ptp(once, axis=1))


# Permutation


def test_p_matches_scipy(pair):
    expected = stats.permutation_test(
        pair, row_r, permutation_type="pairings", alternative="greater", vectorized=True,
        axis=0, n_resamples=2000, rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    np.testing.assert_allclose(permutation_p(*pair, n_permutations=3000).targets, expected, atol=0.035)


def test_shuffles_match_a_loop_within_folds(pair, folds):
    y, p = pair
    found = permutation_p(y, p, folds, masks={"last": np.arange(6) >= 4}, n_permutations=80, seed=3)
    rng = np.random.default_rng(3)
    orders = [_shuffles(20, None, 80, rng) for _, test in folds]
    null = np.array(
        [
            np.mean(
                [
                    pearson_r(y[test], p[test][order[k]])
                    for (_, test), order in zip(folds, orders, strict=True)
                ],
                axis=0,
            )
            for k in range(81)
        ]
    )
    np.testing.assert_allclose(null[0], mean_r(y, p, folds))
    np.testing.assert_allclose(found.targets, (null >= null[0] - 1e-6).mean(axis=0))
    np.testing.assert_allclose(found.overall, (null.mean(axis=1) >= null[0].mean() - 1e-6).mean())
    expected = null[:, 4:].mean(axis=1)
    np.testing.assert_allclose(found.groups["last"], (expected >= expected[0] - 1e-6).mean())


@pytest.mark.parametrize("n", [17, 24])  # prime, and with few factors
def test_shifts_are_permutations_and_match_a_loop(rng, n):
    y, p = rng.standard_normal((2, n, 3))
    fold = next(HeldOut.of(y, p).batches(8))[1][0]
    plan = _fold_shifts(n, 30, 4, rng)
    found = _shifted(fold, plan)
    for draw in range(30):
        moved = (np.arange(n) + plan.shifts[draw]) * plan.factors[draw % len(plan.factors)] % n
        assert sorted(moved) == list(range(n))
        expected = pearson_r(y[plan.order], p[plan.order][moved])
        np.testing.assert_allclose(found[draw], expected, atol=1e-5)
    np.testing.assert_allclose(found[0], pearson_r(y, p), atol=1e-5)


@pytest.mark.parametrize("method", ["shuffle", "shift"])
@pytest.mark.parametrize("n_folds", [1, 4])
def test_noise_is_rejected_as_often_as_said(method, n_folds):
    rng = np.random.default_rng(11)
    y_true, y_pred = rng.standard_normal((2, 120, 3000))
    folds = None if n_folds == 1 else list(KFold(n_folds).split(y_true))
    p = permutation_p(y_true, y_pred, folds, n_permutations=199, method=method).targets
    for level in (0.01, 0.05, 0.2):
        assert np.mean(p <= level) == pytest.approx(level, abs=4 * np.sqrt(level / 3000))


@pytest.mark.parametrize("method", ["shuffle", "shift"])
def test_noise_with_heavy_tails_and_missing_trials_is_rejected_as_often_as_said(method):
    rng = np.random.default_rng(12)
    y_true, y_pred = rng.standard_t(2, (2, 100, 3000))
    y_true[rng.random(y_true.shape) < 0.3] = np.nan
    p = permutation_p(y_true, y_pred, list(KFold(2).split(y_true)), n_permutations=199, method=method).targets
    assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.016)


def test_p_of_a_mean_knows_that_targets_covary():
    """Ten targets that are nearly one reject as often as one; taken for ten they would reject more."""
    rng = np.random.default_rng(13)
    p = []
    for _ in range(400):
        y_true, y_pred = rng.standard_normal((2, 40, 1)) + 0.3 * rng.standard_normal((2, 40, 10))
        p.append(permutation_p(y_true, y_pred, n_permutations=99).overall)
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.035)


def test_methods_agree(rng):
    y_pred = rng.standard_normal((400, 20))
    y_true = np.linspace(0, 0.2, 20) * y_pred + rng.standard_normal((400, 20))
    folds = list(KFold(4).split(y_true))
    p = [
        permutation_p(y_true, y_pred, folds, n_permutations=2000, method=method).targets
        for method in ("shuffle", "shift")
    ]
    np.testing.assert_allclose(*p, atol=0.04)


def test_differences_between_folds_are_no_signal(rng):
    """Both sides higher in one fold: pooled they correlate, within folds they do not."""
    level = np.repeat([0, 5], 50)[:, None]
    y_true, y_pred = level + rng.standard_normal((2, 100, 300))
    folds = [(None, np.arange(50)), (None, np.arange(50, 100))]
    assert (permutation_p(y_true, y_pred, n_permutations=99).targets <= 0.05).all()
    assert np.mean(permutation_p(y_true, y_pred, folds, n_permutations=99).targets <= 0.05) < 0.1


def test_groups_of_all_sizes_stay_together_as_far_as_they_can(rng):
    groups = np.repeat(np.arange(8), np.arange(1, 9))
    orders = _shuffles(36, groups, 200, rng)
    assert all(sorted(order) == list(range(36)) for order in orders)
    together = np.mean(np.diff(groups[orders]) == 0)
    assert together == pytest.approx(28 / 35)
    assert len(np.unique(orders, axis=0)) > 150


def test_whole_groups_change_places(rng):
    groups = np.array([3, 3, 1, 2, 2, 1, 0, 0])
    for order in _shuffles(8, groups, 30, rng):
        assert sorted(order) == list(range(8))
        moved = groups[order]
        assert all(len(set(moved[groups == group])) == 1 for group in range(4))


@pytest.mark.parametrize("sizes", [np.full(20, 5), np.arange(20) % 6 + 2], ids=["equal", "unequal"])
def test_groups_of_equal_stimuli_are_no_evidence(sizes):
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(20), sizes)
    y_true, y_pred = rng.standard_normal((2, 20, 1000))[:, groups]
    assert np.mean(permutation_p(y_true, y_pred, n_permutations=99).targets <= 0.05) > 0.15
    grouped = permutation_p(y_true, y_pred, groups=groups, n_permutations=99).targets
    assert np.mean(grouped <= 0.05) == pytest.approx(0.05, abs=0.025)


@pytest.mark.parametrize("infer", [bootstrap_interval, permutation_p])
def test_a_fold_of_one_group_is_taken_stimulus_by_stimulus(pair, folds, infer):
    groups = np.empty(60, dtype=int)
    for number, (_, test) in enumerate(folds):
        groups[test] = number
    np.testing.assert_array_equal(infer(*pair, folds, groups=groups).targets, infer(*pair, folds).targets)


# Both


@pytest.mark.parametrize("infer", [bootstrap_interval, permutation_p])
def test_units_batches_and_files_do_not_matter(pair, folds, infer, tmp_path, monkeypatch):
    expected = infer(*pair, folds).targets
    monkeypatch.setattr("featpipe.model_selection._held_out._READ_TARGETS", 4)
    stored = Responses.write(tmp_path / "y.npy", pair[0] * 1e-12 + 3e-9)
    found = infer(stored, pair[1] * 1e6 - 7, folds, target_batch=3).targets
    np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_array_equal(expected, infer(*pair, folds).targets)
    assert not np.array_equal(expected, infer(*pair, folds, seed=1).targets)


@pytest.mark.parametrize("infer", [bootstrap_interval, permutation_p])
def test_missing_trials_leave_only_their_target(pair, folds, infer):
    y, p = pair
    expected = infer(y, p, folds).targets
    y[folds[0][1], 2] = np.nan  # a fold without the target
    y[:, 3] = np.nan
    found = infer(y, p, folds).targets
    np.testing.assert_allclose(np.delete(found, [2, 3], 0), np.delete(expected, [2, 3], 0), atol=1e-6)
    assert np.isfinite(found[2]).all()
    assert np.isnan(found[3]).all()


@pytest.mark.parametrize("infer", [bootstrap_interval, permutation_p])
def test_folds_of_one_stimulus_are_left_out(pair, folds, infer):
    shorter = [(train, test[:-1]) for train, test in folds]
    more = [*shorter, (None, folds[0][1][-1:])]
    np.testing.assert_array_equal(infer(*pair, more).targets, infer(*pair, shorter).targets)


def test_constant_targets_are_never_significant(pair):
    y, p = pair
    y[:, 0] = p[:, 1] = 0.3
    np.testing.assert_allclose(bootstrap_interval(y, p).targets[:2], 0)
    np.testing.assert_allclose(permutation_p(y, p).targets[:2], 1)


# False discoveries


@pytest.mark.parametrize("correction", ["bh", "by"])
def test_correction_matches_scipy(rng, correction):
    p = rng.random(200) ** 3
    expected = stats.false_discovery_control(p, method=correction)
    np.testing.assert_allclose(false_discovery(p, correction), expected)
    holes = np.insert(p, [0, 70], np.nan).reshape(2, 101)
    found = false_discovery(holes, correction)
    np.testing.assert_allclose(found[~np.isnan(holes)], expected)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(holes))


def test_false_discoveries_stay_below_q(rng):
    y_pred = rng.standard_normal((150, 1000))
    y_true = rng.standard_normal((150, 1000))
    y_true[:, :300] += y_pred[:, :300]
    found = response_inference(y_true, y_pred, n_bootstrap=2, q=0.1)
    assert found.significant[:300].all()
    assert found.significant[300:].sum() / found.significant.sum() < 0.15


def test_summary_counts_targets_and_can_be_written(pair, folds):
    y, p = pair
    y[:, 3] = np.nan
    masks = {"first": np.arange(6) < 3, "gone": np.arange(6) == 3}
    found = response_inference(y, p, folds, masks=masks, n_bootstrap=100, n_permutations=200)
    summary = found.summary()
    assert summary["significant"]["n_tested"] == 5
    assert (
        summary["significant"]["overall"]
        == (false_discovery(permutation_p(y, p, folds, n_permutations=200).targets) <= 0.05).sum()
    )
    assert summary["significant"]["groups"] == {"first": found.significant[:3].sum(), "gone": 0}
    assert list(summary["interval"]["groups"]) == list(summary["permutation"]["groups"]) == ["first"]
    low, high = summary["interval"]["overall"]
    assert low < np.nanmean(mean_r(y[:, found.q_values < 2], p[:, found.q_values < 2], folds)) < high
    assert list(found.table()) == ["r_low", "r_high", "p", "q"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda y, p: bootstrap_interval(y, p[:-1]), r"shape \(60, 6\) and predictions \(59, 6\)"),
        (lambda y, p: bootstrap_interval(y, p, [(None, [0, 1]), (None, [1, 2])]), "3 different ones"),
        (lambda y, p: bootstrap_interval(y, p, [(None, [0]), (None, [1])]), "at least two at a time"),
        (lambda y, p: bootstrap_interval(y, p, level=95), "level 95"),
        (lambda y, p: bootstrap_interval(y, p * np.nan), "finite predictions"),
        (lambda y, p: permutation_p(y, p, masks={"V1": np.ones(6)}), "'V1' is float64"),
        (lambda y, p: permutation_p(y, p, method="all"), "choose from auto, shuffle, shift"),
        (lambda y, p: permutation_p(y, p, method="shift", groups=np.arange(60)), "tear groups apart"),
        (lambda y, p: response_inference(y, p, q=5), "q is 5"),
        (lambda y, p: false_discovery([0.5, 1.5]), "to 1.5"),
        (lambda y, p: false_discovery([0.5], "holm"), "choose from bh, by"),
    ],
)
def test_bad_input_is_named(pair, call, message):
    with pytest.raises(RequestError, match=message):
        call(*pair)
