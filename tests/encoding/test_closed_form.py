"""Closed forms equal explicit refitting: every stimulus left out, weights and intercept included."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score

from featpipe.encoding.ridge._closed_form import closed_form_fit, closed_form_scores
from featpipe.encoding.ridge._gram import GramStatistics
from featpipe.encoding.ridge._ridge import ridge
from featpipe.metrics import pearson_r

ALPHAS = np.array([0.01, 1.0, 100.0, 1e4])
SHAPES = [(40, 8), (24, 24), (25, 23), (12, 40)]  # tall, square, one direction more than features, wide


def _problem(rng, shape, n_targets=6, noise=3.0):
    X = rng.standard_normal(shape) + 2
    return X, X @ rng.standard_normal((shape[1], n_targets)) + noise * rng.standard_normal(
        (shape[0], n_targets)
    )


def _left_out(X, Y, alpha, weight, center):
    """Predictions of every stimulus by scikit-learn from a fit to the others."""
    rows = np.arange(len(X))
    model = Ridge(alpha=alpha, solver="svd", fit_intercept=center)
    return np.concatenate(
        [model.fit(X[rows != i], Y[rows != i], sample_weight=weight[rows != i]).predict(X[[i]]) for i in rows]
    )


def _r2(y_true, y_pred, sample_weight):
    return r2_score(y_true, y_pred, sample_weight=sample_weight, multioutput="raw_values")


METRICS = {"r2": _r2, "pearson_r": pearson_r}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scoring", ["r2", "pearson_r"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_leave_one_out_equals_refitting(rng, shape, scoring, weighted, center):
    X, Y = _problem(rng, shape)
    weight = rng.random(len(X)) + 0.2 if weighted else np.ones(len(X))
    expected = np.array(
        [METRICS[scoring](Y, _left_out(X, Y, a, weight, center), sample_weight=weight) for a in ALPHAS]
    )
    subset = GramStatistics(X, weight=weight, center=center).decompose(np.arange(len(X)))
    found = closed_form_scores(subset, Y, ALPHAS, scoring=scoring)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    alpha, score, *_ = closed_form_fit(subset, Y, ALPHAS, scoring=scoring)
    np.testing.assert_array_equal(alpha, ALPHAS[expected.argmax(axis=0)])
    np.testing.assert_allclose(score, expected.max(axis=0), rtol=1e-6, atol=1e-8)


def _gcv_predictions(X, Y, alpha, weight, center):
    """Predictions with every leverage replaced by their mean, from the hat matrix itself."""
    root = np.sqrt(weight)[:, None]
    mean = np.average(X, axis=0, weights=weight) if center else 0.0
    Z = root * (X - mean)
    hat = Z @ np.linalg.solve(Z.T @ Z + alpha * np.eye(Z.shape[1]), Z.T)
    hat += center * (root @ root.T) / weight.sum()
    residual = root * Y - hat @ (root * Y)
    return Y - residual / root / (1 - np.trace(hat) / len(X))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scoring", ["r2", "pearson_r"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_gcv_puts_the_mean_leverage_for_each(rng, shape, scoring, weighted, center):
    X, Y = _problem(rng, shape)
    weight = rng.random(len(X)) + 0.2 if weighted else np.ones(len(X))
    predicted = [_gcv_predictions(X, Y, alpha, weight, center) for alpha in ALPHAS]
    expected = np.array([METRICS[scoring](Y, p, sample_weight=weight) for p in predicted])
    subset = GramStatistics(X, weight=weight, center=center).decompose(np.arange(len(X)))
    found = closed_form_scores(subset, Y, ALPHAS, method="gcv", scoring=scoring)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_bounds_never_lose_the_best_penalty(rng):
    """Many targets of all signal-to-noise ratios: penalties left out must be worse."""
    X, Y = _problem(rng, (60, 20), n_targets=300)
    Y += 10.0 ** rng.uniform(-2, 3, 300) * rng.standard_normal(Y.shape)
    alphas = np.logspace(-2, 5, 15)
    subset = GramStatistics(X, weight=rng.random(60) ** 3 + 0.01).decompose(np.arange(60))
    every = closed_form_scores(subset, Y, alphas)
    alpha, score, *_ = closed_form_fit(subset, Y, alphas, target_batch=70)
    np.testing.assert_array_equal(alpha, alphas[::-1][every[::-1].argmax(axis=0)])
    np.testing.assert_allclose(score, every.max(axis=0), atol=1e-10)


def test_choice_is_that_of_scikit_learn(rng):
    X, Y = _problem(rng, (50, 12))
    chosen = RidgeCV(alphas=ALPHAS, alpha_per_target=True).fit(X, Y)
    subset = GramStatistics(X).decompose(np.arange(50))
    alpha, _, coef, intercept = closed_form_fit(subset, Y, ALPHAS)
    np.testing.assert_array_equal(alpha, chosen.alpha_)
    np.testing.assert_allclose(coef, chosen.coef_, rtol=1e-8)
    np.testing.assert_allclose(intercept, chosen.intercept_, rtol=1e-8)


@pytest.mark.parametrize("shape", [(200, 50), (60, 58), (60, 200)])
@pytest.mark.parametrize("method", ["loo", "gcv"])
def test_float32_agrees_with_float64(rng, shape, method):
    X, Y = _problem(rng, shape, n_targets=40, noise=10.0)
    subsets = [GramStatistics(X.astype(t)).decompose(np.arange(len(X))) for t in (np.float32, np.float64)]
    single, double = (closed_form_scores(s, Y.astype(s.gram.dtype), ALPHAS, method=method) for s in subsets)
    np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-5)


def test_solution_is_that_of_ridge(rng):
    X, Y = _problem(rng, (40, 8))
    gram = GramStatistics(X)
    alpha, _, *solution = closed_form_fit(gram.decompose(np.arange(40)), Y, ALPHAS, target_batch=4)
    for found, expected in zip(solution, ridge(gram, Y, alpha), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("method", ["loo", "gcv"])
def test_a_constant_target_takes_the_strongest_penalty(rng, method):
    X, Y = _problem(rng, (30, 5))
    Y[:, 1] = 0.3
    subset = GramStatistics(X).decompose(np.arange(30))
    alpha, score, coef, intercept = closed_form_fit(subset, Y, ALPHAS, method=method)
    assert (alpha[1], score[1], intercept[1]) == (ALPHAS.max(), 0.0, pytest.approx(0.3))
    assert not coef[1].any()


@pytest.mark.parametrize("method", ["loo", "gcv"])
def test_left_out_means_turn_correlations_of_strong_penalties_round(rng, method):
    """Why R² is preferred for weak targets: a prediction that is nearly the mean of the others has r near -1."""
    X, Y = rng.standard_normal((30, 5)), rng.standard_normal((30, 4))
    subset = GramStatistics(X).decompose(np.arange(30))
    of_r, of_r2 = (
        closed_form_scores(subset, Y, np.array([1e9]), method=method, scoring=scoring)
        for scoring in ("pearson_r", "r2")
    )
    np.testing.assert_allclose(of_r, -1, atol=1e-4)
    np.testing.assert_allclose(of_r2, 1 - (30 / 29) ** 2, atol=1e-4)
