"""Scores agree with scikit-learn and scipy, and degenerate targets score 0."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import r2_score

from featpipe.errors import RequestError
from featpipe.metrics import is_constant, moments, pearson_r, r2


@pytest.fixture
def pair(rng):
    y_true = rng.standard_normal((40, 3))
    return y_true, y_true + rng.standard_normal((40, 3))


def test_r_matches_scipy(pair):
    expected = [pearsonr(*columns)[0] for columns in zip(pair[0].T, pair[1].T, strict=True)]
    np.testing.assert_allclose(pearson_r(*pair), expected)


def test_r2_matches_sklearn_with_and_without_weights(pair, rng):
    weight = rng.random(40)
    for given in (None, weight):
        expected = r2_score(*pair, sample_weight=given, multioutput="raw_values")
        np.testing.assert_allclose(r2(*pair, sample_weight=given), expected)


@pytest.mark.parametrize("metric", [pearson_r, r2])
def test_weights_count_like_repeats(metric, pair, rng):
    counts = rng.integers(0, 4, 40)
    repeated = [np.repeat(values, counts, axis=0) for values in pair]
    np.testing.assert_allclose(metric(*pair, sample_weight=counts), metric(*repeated))


@pytest.mark.parametrize("metric", [pearson_r, r2])
def test_missing_responses_leave_only_their_target(metric, pair):
    y_true, y_pred = pair
    y_true[:7, 1] = np.nan
    scores = metric(y_true, y_pred)
    np.testing.assert_allclose(scores[1], metric(y_true[7:, 1], y_pred[7:, 1])[0])
    np.testing.assert_allclose(scores[[0, 2]], metric(y_true[:, [0, 2]], y_pred[:, [0, 2]]))


@pytest.mark.parametrize("metric", [pearson_r, r2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_responses_score_zero_even_if_predicted_exactly(metric, dtype):
    constant = np.full((30, 1), 0.1, dtype=dtype)
    np.testing.assert_array_equal(metric(constant, constant), 0)


def test_constant_predictions_have_no_correlation(rng):
    predictions = np.full(30, 0.1, dtype=np.float32)
    predictions[::2] = np.nextafter(predictions[0], np.float32(1))  # rounding, not signal
    assert pearson_r(rng.standard_normal(30), predictions) == 0


def test_a_large_offset_does_not_cost_digits(pair):
    y_true, y_pred = pair
    np.testing.assert_allclose(pearson_r(y_true + 1e8, y_pred - 1e8), pearson_r(*pair), atol=1e-7)


def test_float32_scores_are_accumulated_in_float64(rng):
    y_true = (rng.standard_normal((50_000, 1)) + 1000).astype(np.float32)
    y_pred = (y_true + rng.standard_normal(y_true.shape)).astype(np.float32)
    expected = pearson_r(y_true.astype(np.float64), y_pred.astype(np.float64))
    np.testing.assert_allclose(pearson_r(y_true, y_pred), expected, rtol=1e-12)


def test_moments_of_parts_add_up(pair):
    y_true, y_pred = pair
    joined = moments(y_true[:13], y_pred[:13]) + moments(y_true[13:], y_pred[13:])
    np.testing.assert_allclose(joined.pearson_r(), pearson_r(*pair))
    np.testing.assert_allclose(joined.r2(), r2(*pair))


def test_many_targets_are_scored_in_parts(rng, monkeypatch):
    y_true, y_pred = rng.standard_normal((2, 20, 50))
    whole = pearson_r(y_true, y_pred)
    monkeypatch.setattr("featpipe.metrics._CHUNK_VALUES", 60)
    np.testing.assert_allclose(pearson_r(y_true, y_pred), whole)


def test_columns_of_nan_or_one_value_are_constant():
    values = np.array([[1.0, np.nan, 1.0], [1.0, np.nan, 2.0], [1.0, np.nan, np.nan]])
    np.testing.assert_array_equal(is_constant(values), [True, True, False])


@pytest.mark.parametrize(
    ("y_true", "y_pred", "weight", "message"),
    [
        (np.ones((3, 2)), np.ones((3, 1)), None, r"\(3, 2\) and predictions \(3, 1\)"),
        (np.ones((3, 2)), np.full((3, 2), np.nan), None, "finite predictions"),
        (np.full(3, np.inf), np.ones(3), None, "finite or NaN"),
        (np.ones(3), np.ones(3), [1, 1], "each of 3 stimuli"),
        (np.ones(3), np.ones(3), [1, 1, -1], "from -1.0 to 1.0"),
        (np.ones((3, 0)), np.ones((3, 0)), None, "no target"),
        (np.ones((3, 1, 1)), np.ones((3, 1, 1)), None, "n_stimuli, n_targets"),
    ],
)
def test_bad_input_is_named(y_true, y_pred, weight, message):
    with pytest.raises(RequestError, match=message):
        pearson_r(y_true, y_pred, sample_weight=weight)
