"""Ceilings equal rsatoolbox's, corrections scipy's and a loop, and tests of models hold under chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from featpipe.errors import RequestError
from featpipe.rsa import RDMs, concat, stack
from featpipe.rsa._compare import compare
from featpipe.rsa._inference import correct_p, noise_ceilings, official_noise_ceilings
from featpipe.rsa._model_comparison import OVER, TESTS, compare_models
from featpipe.rsa._scores import rdm_ceiling, rdm_ceiling_lower

TOOLBOX = {
    "spearman": "spearman",
    "pearson": "corr",
    "kendall": "tau-a",
    "cosine": "cosine",
    "rho_a": "rho-a",
}


def measured(rng, n_subjects=5, n_stimuli=10, name="a", target="EVC", signal=None):
    vectors = rng.random((n_subjects, n_stimuli * (n_stimuli - 1) // 2))
    vectors = vectors if signal is None else vectors + signal
    ids = [f"{name}/{i}" for i in range(n_stimuli)]
    return RDMs.from_upper(vectors, ids, targets=[target] * n_subjects)


def contest(rng, n_subjects=8, n_stimuli=12):
    """A model that knows the signal, one that knows some of it, one that knows nothing; and the data."""
    n_pairs = n_stimuli * (n_stimuli - 1) // 2
    signal, noise = rng.random(n_pairs), rng.random((2, n_pairs))
    vectors = np.stack([signal, signal + 2 * noise[0], noise[1]])
    data = measured(rng, n_subjects, n_stimuli, signal=signal)
    return RDMs.from_upper(vectors, data.ids, targets=["good", "fair", "none"]), data


@pytest.mark.parametrize("method", TOOLBOX)
@pytest.mark.filterwarnings("ignore:Noise ceiling for tau")
def test_ceilings_are_those_of_rsatoolbox(rng, method):
    toolbox = pytest.importorskip("rsatoolbox")
    data = measured(rng)
    theirs = toolbox.rdm.RDMs(data.upper())
    expected = toolbox.inference.boot_noise_ceiling(theirs, TOOLBOX[method])
    np.testing.assert_allclose(np.ravel(noise_ceilings(data, method)), expected, atol=1e-9)


def test_ceilings_are_per_target_and_averaged_over_sets(rng):
    parts = [measured(rng, name="a"), measured(rng, name="b", n_stimuli=7)]
    expected = np.mean([noise_ceilings(part) for part in parts], axis=0)
    np.testing.assert_allclose(noise_ceilings(concat(parts)), expected)


def test_official_ceilings_are_means_over_subjects(rng):
    data = measured(rng)
    lower, upper = official_noise_ceilings(data)
    np.testing.assert_allclose(upper, rdm_ceiling(data, data.mean()).mean())
    np.testing.assert_allclose(lower, rdm_ceiling_lower(data, data.mean()).mean())


def test_corrections_by_hand():
    p = np.array([[0.01, 0.04], [0.03, np.nan]])
    np.testing.assert_allclose(correct_p(p, "bonferroni"), [[0.03, 0.12], [0.09, np.nan]])
    np.testing.assert_allclose(correct_p(p, "holm"), [[0.03, 0.06], [0.06, np.nan]])
    np.testing.assert_allclose(correct_p(p, "fdr"), [[0.03, 0.04], [0.04, np.nan]])
    np.testing.assert_allclose(correct_p(p, "none"), p)


def test_t_test_of_models_is_the_paired_one(rng):
    models, data = contest(rng)
    values = compare(models, data)
    found = compare_models(models, data, test="t", correction="none", n=10)
    assert found.pairs == ((0, 1), (0, 2), (1, 2))
    expected = [ttest_rel(values[a], values[b]).pvalue for a, b in found.pairs]
    np.testing.assert_allclose(found.p[:, 0], expected)
    np.testing.assert_allclose(found.scores[:, 0], values.mean(axis=1))


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("test", TESTS)
def test_a_good_model_is_better_than_one_that_knows_nothing(rng, test, over):
    models, data = contest(rng)
    found = compare_models(models, data, test=test, over=over, n=300)
    table = found.to_frame().set_index(["first", "second"])
    assert table.loc[("good", "none"), "difference"] > 0
    assert table.loc[("good", "none"), "p_corrected"] < 0.05
    assert (found.p_corrected >= found.p - 1e-12).all()
    scores = found.scores_frame()
    assert (scores["low"] < scores["score"]).all()
    assert (scores["score"] < scores["high"]).all()


@pytest.mark.parametrize("test", ["sign-flip", "t"])
def test_models_that_know_nothing_seldom_differ(rng, test):
    p = []
    for _ in range(80):
        data = measured(rng, 8, 6)
        noise = RDMs.from_upper(rng.random((2, 15)), data.ids, targets=["one", "other"])
        p.append(compare_models(noise, data, test=test, n=99).p[0, 0])
    assert (
        np.mean(np.array(p) <= 0.1) < 0.3
    )  # RDMs of few stimuli: over subjects alone these tests are lenient
    assert 0.25 < np.mean(p) < 0.75


def test_drawing_both_is_wider_than_either(rng):
    models, data = contest(rng)
    width = {
        over: np.ptp(compare_models(models, data, over=over, n=400).intervals, axis=-1).mean()
        for over in OVER
    }
    assert width["both"] > max(width["subjects"], width["stimuli"])


@pytest.mark.parametrize("method", ["spearman", "pearson", "kendall"])
def test_same_seed_same_result(rng, method):
    models, data = contest(rng, 4, 7)
    runs = [compare_models(models, data, over="both", method=method, n=20, seed=seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0].p, runs[1].p)
    assert not np.array_equal(runs[0].intervals, runs[2].intervals)


@pytest.mark.parametrize("over", OVER)
def test_a_target_without_measured_pairs_has_no_p(rng, over):
    models, data = contest(rng, 3, 6)
    nothing = RDMs(np.full((3, 6, 6), np.nan), data.ids, targets=["IT"] * 3)
    found = compare_models(models, stack([data, nothing]), over=over, n=20)
    assert np.isnan(found.p[:, 1]).all()
    assert np.isnan(found.intervals[:, 1]).all()
    assert not np.isnan(found.p_corrected[:, 0]).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": "anova"}, "test is 'anova'; choose from bootstrap, sign-flip, t"),
        ({"over": "sessions"}, "over is 'sessions'"),
        ({"correction": "tukey"}, "correction is 'tukey'"),
        ({"n": 0}, "at least one draw"),
        ({"method": "tau"}, "no way 'tau'"),
    ],
)
def test_unknown_options_are_named(rng, change, message):
    models, data = contest(rng, 3, 6)
    with pytest.raises(RequestError, match=message):
        compare_models(models, data, **change)


def test_models_need_names_and_company_and_subjects(rng):
    models, data = contest(rng, 3, 6)
    unnamed = RDMs(models.values, models.ids)
    for few in (unnamed, models.select(targets=["good"])):
        with pytest.raises(RequestError, match="at least two models and a name to each"):
            compare_models(few, data)
    with pytest.raises(RequestError, match="one subject says nothing about other subjects"):
        compare_models(models, data.rows([0]))
    compare_models(models, data.rows([0]), over="stimuli", n=10)
