"""Comparisons equal scipy's and rsatoolbox's, with ties and with missing pairs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from featpipe.errors import RequestError
from featpipe.rsa import RDMs, concat
from featpipe.rsa._compare import compare, second_order
from featpipe.rsa._resampling import pair_weights, weighted_similarity
from featpipe.rsa._similarity import METHODS, similarity

TOOLBOX = {
    "spearman": "spearman",
    "pearson": "corr",
    "kendall": "tau-a",
    "cosine": "cosine",
    "rho_a": "rho-a",
}


def rdms(rng, n_rdms, n_stimuli=10, name="a", levels=None, **labels):
    vectors = rng.random((n_rdms, n_stimuli * (n_stimuli - 1) // 2))
    if levels:
        vectors = np.ceil(vectors * levels)
    return RDMs.from_upper(vectors, [f"{name}/{i}" for i in range(n_stimuli)], **labels)


@pytest.mark.parametrize("levels", [None, 3])  # without and with ties
@pytest.mark.parametrize("method", METHODS)
def test_comparison_is_that_of_rsatoolbox(rng, method, levels):
    toolbox = pytest.importorskip("rsatoolbox")
    models, data = rdms(rng, 4, levels=levels), rdms(rng, 3, levels=levels)
    theirs = [toolbox.rdm.RDMs(part.upper()) for part in (models, data)]
    expected = toolbox.rdm.compare(*theirs, TOOLBOX[method])
    np.testing.assert_allclose(compare(models, data, method), expected, atol=1e-12)


@pytest.mark.parametrize(("method", "reference"), [("spearman", spearmanr), ("pearson", pearsonr)])
def test_missing_pairs_are_left_out_of_each_two(rng, method, reference):
    a, b = rng.random((3, 45)), rng.random((4, 45))
    a[1, :9] = a[2, 30] = b[0, 5:20] = b[3, 44] = np.nan
    expected = [[reference(x[k], y[k])[0] for y in b for k in [~np.isnan(x + y)]] for x in a]
    found = compare(RDMs.from_upper(a), RDMs.from_upper(b), method)
    np.testing.assert_allclose(found, expected)


def test_rho_a_is_the_mean_over_random_orders_of_ties(rng):
    models, data = rdms(rng, 1, 6, levels=2), rdms(rng, 1, 6)
    broken = [spearmanr(models.upper()[0] + 1e-6 * rng.random(15), data.upper()[0])[0] for _ in range(3000)]
    np.testing.assert_allclose(compare(models, data, "rho_a")[0, 0], np.mean(broken), atol=0.01)
    assert abs(compare(models, data, "spearman")[0, 0]) > abs(np.mean(broken))  # ties are no fault there


def test_tau_a_counts_pairs_of_pairs(rng):
    models, data = rdms(rng, 1, 6, levels=4), rdms(rng, 1, 6, levels=5)
    x, y = models.upper()[0], data.upper()[0]
    first, second = np.triu_indices(15, 1)
    expected = np.mean(np.sign(x[first] - x[second]) * np.sign(y[first] - y[second]))
    np.testing.assert_allclose(compare(models, data, "kendall")[0, 0], expected)


@pytest.mark.parametrize("method", METHODS)
def test_sets_are_compared_apart_and_averaged(rng, method):
    models = [rdms(rng, 3, 8, name) for name in "ab"]
    data = [rdms(rng, 2, 8, name) for name in "ab"]
    parts = [compare(m, d, method) for m, d in zip(models, data, strict=True)]
    np.testing.assert_allclose(compare(concat(models), concat(data), method), np.mean(parts, axis=0))


@pytest.mark.parametrize("method", METHODS)
def test_many_models_are_compared_in_chunks_and_threads(rng, monkeypatch, method):
    models, data = rdms(rng, 30), rdms(rng, 3)
    whole = compare(models, data, method)
    monkeypatch.setattr("featpipe.rsa._compare._CHUNK_VALUES", 90)
    for cores in (1, 2):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        np.testing.assert_allclose(compare(models, data, method), whole, rtol=1e-12)


@pytest.mark.parametrize("method", ["spearman", "pearson", "kendall", "rho_a"])
def test_a_constant_model_is_like_nothing(rng, method):
    constant = RDMs(np.full((1, 10, 10), 0.1), [f"a/{i}" for i in range(10)])
    np.testing.assert_array_equal(compare(constant, rdms(rng, 2), method), 0)


def test_models_are_joined_by_id_and_may_hold_more(rng):
    models, data = rdms(rng, 3), rdms(rng, 2)
    expected = compare(models, data)
    np.testing.assert_allclose(compare(models[rng.permutation(10)], data), expected)
    np.testing.assert_allclose(
        compare(models, data[[1, 4, 5, 7]]), compare(models[[1, 4, 5, 7]], data[[1, 4, 5, 7]])
    )


def test_two_stimuli_have_no_comparison(rng):
    assert np.isnan(compare(rdms(rng, 2)[:2], rdms(rng, 2)[:2])).all()


def test_second_order_is_a_mean_over_subjects(rng):
    layers = rdms(rng, 3, targets=["conv1", "conv2", "fc"])
    data = rdms(rng, 4, targets=["EVC", "EVC", "IT", "IT"], subjects=["1", "2", "1", "2"])
    table = second_order(layers, data)
    assert list(table.index) == ["conv1", "conv2", "fc"]
    np.testing.assert_allclose(table["IT"], compare(layers, data)[:, 2:].mean(axis=1))
    own = second_order(layers, layers)
    np.testing.assert_allclose(np.diag(own), 1)
    np.testing.assert_allclose(own, own.T)


@pytest.mark.parametrize("method", METHODS)
def test_weights_count_like_repeated_pairs(rng, method):
    a, b = np.ceil(rng.random((2, 28)) * 9), rng.random((3, 28))
    b[1, :4] = np.nan
    weights = pair_weights(8, 5, rng)
    found = weighted_similarity(a, b, weights, method)
    for draw, weight in enumerate(weights):
        repeated = [np.repeat(part, weight, axis=1) for part in (a, b)]
        np.testing.assert_allclose(found[draw], similarity(*repeated, method), atol=1e-12)


def test_drawn_stimuli_are_those_of_resampled_rdms(rng):
    y, pred = rdms(rng, 2), rdms(rng, 1)
    rows = rng.integers(10, size=10)
    counts = np.bincount(rows, minlength=10)
    first, second = np.triu_indices(10, 1)
    weights = (counts[first] * counts[second])[None]
    found = weighted_similarity(pred.upper(), y.upper(), weights)[0]
    np.testing.assert_allclose(found, compare(pred[rows], y[rows]))


@pytest.mark.parametrize(
    ("models", "data", "method", "message"),
    [
        (RDMs(np.zeros((3, 3))), RDMs(np.zeros((3, 3))), "tau", "no way 'tau'.*kendall"),
        (np.zeros((3, 3)), RDMs(np.zeros((3, 3))), "spearman", "but got ndarray"),
        (RDMs(np.zeros((3, 3))), RDMs(np.zeros((4, 4))), "spearman", "1 of 4 stimuli are not in these"),
        (RDMs(np.zeros((1, 0, 0))), RDMs(np.zeros((1, 0, 0))), "cosine", "There are no stimuli"),
    ],
)
def test_bad_input_is_named(models, data, method, message):
    with pytest.raises(RequestError, match=message):
        compare(models, data, method)
