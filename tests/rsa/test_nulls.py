"""Chance levels equal loops over permuted RDMs, hold on noise, and see main effects."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from featpipe.errors import RequestError
from featpipe.rsa import RDMs, concat
from featpipe.rsa._nulls import (
    interval_of_rho,
    main_effect_null,
    permutation_null,
    rdm_nulls_summary,
    t_test_of_zero,
)
from featpipe.rsa._scores import rdm_r2, rdm_rho, scoring_units, target_columns, unit_rhos


def measured(rng, n_stimuli=12, name="a", n_subjects=4, targets=("EVC", "IT")):
    rows = [(target, str(subject)) for target in targets for subject in range(n_subjects)]
    vectors = rng.random((len(rows), n_stimuli * (n_stimuli - 1) // 2))
    ids = [f"{name}/{i}" for i in range(n_stimuli)]
    return RDMs.from_upper(vectors, ids, targets=[t for t, _ in rows], subjects=[s for _, s in rows])


def predicted(rng, y):
    return RDMs.from_upper(rng.random(y.n_pairs), y.ids)


def with_holes(y, rng, rdms):
    values = y.values.copy()
    for row in rdms:
        i, j = rng.choice(len(y), 2, replace=False)
        values[row, i, j] = values[row, j, i] = np.nan
    return RDMs(values, y.ids, subjects=y.subjects, targets=y.targets, times=y.times)


@pytest.mark.parametrize("holes", ["none", "measured", "predicted"])
def test_permutations_equal_a_loop(rng, holes):
    y, pred = measured(rng), predicted(rng, measured(rng))
    y = with_holes(y, rng, [0, 3]) if holes == "measured" else y
    pred = with_holes(pred, rng, [0, 0]) if holes == "predicted" else pred
    null = permutation_null(y, pred, n=20, seed=3)
    orders = np.random.default_rng(3).permuted(np.tile(np.arange(12), (20, 1)), axis=1)
    moved = [RDMs(pred.values[:, order[:, None], order], y.ids) for order in orders]
    for place, columns in enumerate(target_columns(y).values()):
        expected = [(rdm_r2(y, m)[columns].mean(), rdm_rho(y, m)[columns].mean()) for m in moved]
        np.testing.assert_allclose(null.r2_null[:, place], [r2 for r2, _ in expected])
        np.testing.assert_allclose(null.rho_null[:, place], [rho for _, rho in expected], atol=1e-14)
        np.testing.assert_allclose(null.r2[place], rdm_r2(y, pred)[columns].mean())


def test_same_seed_same_null_whatever_the_batches(rng, monkeypatch):
    y, pred = measured(rng), predicted(rng, measured(rng))
    for function in (permutation_null, main_effect_null):
        whole = function(y, pred, n=30, seed=1).r2_null
        with monkeypatch.context() as patched:
            patched.setattr("featpipe.rsa._nulls._BATCH_VALUES", 200)
            np.testing.assert_allclose(function(y, pred, n=30, seed=1).r2_null, whole)
        assert not np.array_equal(function(y, pred, n=30, seed=2).r2_null, whole)


def test_the_true_order_is_found(rng):
    y = measured(rng, 20, targets=["EVC"])
    null = permutation_null(y, y.mean(), n=199)
    assert null.p[0] == null.rho_p[0] == 1 / 200
    opposite = permutation_null(y, y.with_upper(-y.upper()).mean(), n=199)
    assert opposite.p[0] == 1 / 200  # R² rewards the wrong sign, the signed rho does not
    assert opposite.rho_p[0] == 1


def test_p_values_of_noise_are_uniform(rng):
    p = [permutation_null(measured(rng, 8), predicted(rng, measured(rng, 8)), n=39).p for _ in range(60)]
    assert 0.01 < np.mean(np.ravel(p) <= 0.1) < 0.2
    assert 0.4 < np.mean(p) < 0.6


def test_on_noise_the_signed_rho_is_within_its_interval_of_zero(rng):
    y = concat([measured(rng, 30, "a", 15), measured(rng, 25, "b", 15)])
    pred = predicted(rng, y)
    null = permutation_null(y, pred, n=300)
    assert (null.rho_interval[:, 0] < null.rho).all()
    assert (null.rho < null.rho_interval[:, 1]).all()
    assert (null.r2 < null.p95 * 1.5).all()
    assert (np.abs(null.rho_mean) < 0.01).all()


def test_folds_and_sets_keep_their_stimuli(rng):
    """With two stimuli in each fold but one, only that fold has scores, whatever the permutation."""
    y = concat([measured(rng, 9, "a"), measured(rng, 9, "b")])
    pred = predicted(rng, y)
    blocks = np.full(18, -1)
    blocks[:9], blocks[9:11] = 0, 1
    null = permutation_null(y, pred, n=10, blocks=blocks)
    alone = permutation_null(y.take(y.ids[:9]), pred.take(y.ids[:9]), n=10)
    np.testing.assert_allclose(null.r2, alone.r2)
    np.testing.assert_allclose(null.r2_null, alone.r2_null)


def test_predictions_of_folds_are_scored_within_folds(rng):
    y, pred = measured(rng, 12), predicted(rng, measured(rng, 12))
    blocks = np.arange(12) % 2
    across = blocks[:, None] != blocks
    gaps = RDMs(np.where(across, np.nan, pred.values), pred.ids)
    for function in (permutation_null, main_effect_null):
        expected = function(y, pred, n=15, blocks=blocks)
        np.testing.assert_allclose(function(y, gaps, n=15, blocks=blocks).r2_null, expected.r2_null)


def test_main_effects_score_where_measured_rdms_hold_them(rng):
    noise = measured(rng, 20, targets=["EVC"])
    effects = rng.standard_normal((4, 20))
    held = RDMs(noise.values + 3 * (effects[:, :, None] + effects[:, None]), noise.ids, targets=["EVC"] * 4)
    pred = predicted(rng, noise)
    assert main_effect_null(held, pred, n=100).mean > 4 * permutation_null(held, pred, n=100).mean
    np.testing.assert_allclose(main_effect_null(noise, pred, n=100).mean, 1 / 190, rtol=0.5)


def test_main_effects_equal_a_loop(rng):
    y, pred = with_holes(measured(rng), rng, [1]), with_holes(predicted(rng, measured(rng)), rng, [0])
    null = main_effect_null(y, pred, n=10, seed=5)
    effects = np.random.default_rng(5).standard_normal((10, 12))
    missing = np.where(np.isnan(pred.values), np.nan, 0)
    drawn = [RDMs(u[:, None] + u + missing, y.ids) for u in effects]
    expected = [[rdm_r2(y, rdm)[c].mean() for c in target_columns(y).values()] for rdm in drawn]
    np.testing.assert_allclose(null.r2_null, expected)


def test_interval_over_subjects_is_a_bootstrap_of_their_means(rng):
    y, pred = measured(rng, 15, n_subjects=15), predicted(rng, measured(rng, 15))
    interval = interval_of_rho(y, pred, n=4000)
    for (mean, low, high), columns in zip(interval, target_columns(y).values(), strict=True):
        rho = rdm_rho(y, pred)[columns]
        np.testing.assert_allclose(mean, rho.mean())
        half = 1.96 * rho.std() / np.sqrt(15)
        np.testing.assert_allclose([low, high], [mean - half, mean + half], atol=0.3 * half)
    wider = interval_of_rho(y, pred, n=200, stimuli=True)
    assert (np.ptp(wider[:, 1:], axis=1) > np.ptp(interval[:, 1:], axis=1)).all()


def test_times_are_averaged_in_every_draw(rng):
    y = measured(rng, 10, n_subjects=6, targets=["MEG-late"])
    timed = RDMs(
        y.values, y.ids, targets=y.targets, subjects=["0", "0", "0", "1", "1", "1"], times=[0, 1, 2] * 2
    )
    pred = predicted(rng, y)
    units = scoring_units(y, pred)
    by_hand = unit_rhos(units, y)[0].reshape(2, 3).mean(axis=1)
    np.testing.assert_allclose(permutation_null(timed, pred, n=5).r2[0], (by_hand**2).mean())


def test_summary_is_json_with_everything_beside_the_score(rng):
    y = concat([measured(rng, 10, "a"), measured(rng, 9, "b")])
    pred = predicted(rng, y)
    summary = json.loads(json.dumps(rdm_nulls_summary(y, pred, n=50), allow_nan=False))
    evc = summary["targets"]["EVC"]
    null = permutation_null(y, pred, n=50)
    assert summary["n"] == 50
    assert list(summary["targets"]) == ["EVC", "IT"]
    np.testing.assert_allclose([evc["r2"], evc["permutation"]["p95"]], [null.r2[0], null.p95[0]])
    assert evc["rho"]["n_above_zero"] == (rdm_rho(y, pred)[:4] > 0).sum()
    assert evc["t_test_p"] == pytest.approx(ttest_1samp(rdm_r2(y, pred)[:4], 0).pvalue)
    assert evc["ceiling_lower"] < evc["ceiling"]


def test_summary_of_a_subject_alone_has_gaps(rng):
    y = measured(rng, n_subjects=1)
    evc = rdm_nulls_summary(y, predicted(rng, y), n=10)["targets"]["EVC"]
    assert evc["ceiling_lower"] is None
    assert evc["t_test_p"] is None


def test_too_few_stimuli_have_no_scores_but_a_summary(rng):
    y = measured(rng, 2)
    evc = rdm_nulls_summary(y, predicted(rng, y), n=10)["targets"]["EVC"]
    assert evc["r2"] is None
    assert evc["rho"]["interval"] == [None, None]
    assert evc["permutation"]["p"] is None


def test_t_test_is_that_of_scipy(rng):
    values = rng.random(9)
    assert t_test_of_zero(np.append(values, np.nan)) == pytest.approx(ttest_1samp(values, 0).pvalue)
    assert t_test_of_zero(np.zeros(5)) == 1
    assert t_test_of_zero(np.ones(5)) == 0


def test_no_scored_stimulus_is_refused(rng):
    y = measured(rng)
    with pytest.raises(RequestError, match="No stimulus is scored"):
        permutation_null(y, predicted(rng, y), blocks=np.full(12, -1))


@pytest.mark.parametrize("function", [permutation_null, main_effect_null, interval_of_rho])
def test_no_draws_are_refused(rng, function):
    y = measured(rng)
    with pytest.raises(RequestError, match="n is 0; 1000 is usual"):
        function(y, predicted(rng, y), n=0)
