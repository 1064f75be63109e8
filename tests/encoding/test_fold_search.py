"""Every way to search by folds gives the scores of explicit refitting, and a sparing search ends in a peak."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, KFold, LeavePOut, ShuffleSplit

from featpipe.encoding import RidgeEncoder
from featpipe.encoding.ridge._deletion import pays_off
from featpipe.encoding.ridge._fold_search import climb, fit_by_folds, fold_scores
from featpipe.encoding.ridge._gram import GramStatistics
from featpipe.encoding.ridge._ridge import best_penalties, cross_validated_scores, ridge

ALPHAS = np.logspace(-1, 5, 9)
SHAPES = [(60, 12), (40, 90)]


def _problem(rng, shape, n_targets=30, noise=5.0, dtype=np.float64):
    X = rng.standard_normal(shape) + 2
    Y = X @ rng.standard_normal((shape[1], n_targets)) + noise * rng.standard_normal((shape[0], n_targets))
    return X.astype(dtype), Y.astype(dtype)


@pytest.mark.parametrize("scoring", ["r2", "pearson_r"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_folds_left_out_of_one_decomposition_score_as_if_refitted(rng, scoring, weighted, center, shape):
    X, Y = _problem(rng, shape)
    X[:, 3] = 1.0
    weight = rng.random(len(X)) + 0.2 if weighted else None
    gram = GramStatistics(X, weight=weight, center=center)
    splits = list(GroupKFold(5).split(X, Y, rng.integers(0, 9, len(X))))  # folds of unequal size
    found = np.concatenate(
        [
            fold_scores(gram, Y, part, splits, rows=np.arange(len(X)), scoring=scoring, target_batch=7)
            for part in np.split(ALPHAS, 3)
        ]
    )
    assert pays_off(gram, splits, 3)
    expected = cross_validated_scores(gram, Y, ALPHAS, splits, scoring=scoring)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
def test_folds_left_out_keep_their_scores_in_float32(rng, unit):
    """Small penalties divide by little: rounding of the mean must not be blown up."""
    X, Y = _problem(rng, (40, 90), dtype=np.float32)
    gram, exact = GramStatistics(X), GramStatistics(X.astype(np.float64))
    splits = list(KFold(5).split(X))
    found = fold_scores(gram, (Y * unit).astype(np.float32), ALPHAS, splits, rows=np.arange(40))
    expected = cross_validated_scores(exact, Y.astype(np.float64), ALPHAS, splits)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("scoring", ["r2", "pearson_r"])
def test_folds_that_leave_fewer_stimuli_than_features_are_decomposed_by_themselves(rng, scoring):
    """A small penalty alone holds what they do not span, and rounding in float32 would fill it."""
    X, Y = _problem(rng, (40, 32), dtype=np.float32)
    splits, alphas = list(KFold(2).split(X)), np.array([1e-6, 1e-4, 1e-2])
    gram, exact = GramStatistics(X), GramStatistics(X.astype(np.float64))
    found = fold_scores(gram, Y, alphas, splits, rows=np.arange(40), scoring=scoring)
    expected = cross_validated_scores(exact, Y.astype(np.float64), alphas, splits, scoring=scoring)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert pays_off(gram, list(KFold(8).split(X)), 3)


@pytest.mark.parametrize(
    ("cv", "suits"),
    [
        (KFold(5), True),
        (KFold(2), False),  # two halves are cheaper to decompose
        (ShuffleSplit(5, test_size=0.2, random_state=0), True),
        (
            ShuffleSplit(5, test_size=0.2, train_size=0.5, random_state=0),
            False,
        ),  # not all the others are fitted
        ([(np.arange(20), np.arange(20, 40)), (np.arange(10), np.arange(10, 20))], False),
    ],
)
def test_one_decomposition_serves_folds_that_leave_few_out_of_all(rng, cv, suits):
    X = rng.standard_normal((40, 90))
    splits = cv if isinstance(cv, list) else list(cv.split(X))
    assert pays_off(GramStatistics(X), splits, 9) is suits
    assert not pays_off(GramStatistics(X[:, :20]), splits, 9)  # one more decomposition is as cheap


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scoring", ["r2", "pearson_r"])
@pytest.mark.parametrize("precision", ["exact", "reduced"])
def test_choice_and_solution_follow_from_the_scores_of_refitting(rng, shape, scoring, precision):
    X, Y = _problem(rng, shape)
    rows = np.arange(2, len(X))  # some stimuli are missing
    splits = [(rows[train], rows[test]) for train, test in KFold(5).split(rows)]
    gram = GramStatistics(X, weight=rng.random(len(X)) + 0.2)
    scores = cross_validated_scores(gram, Y, ALPHAS, splits, scoring=scoring)
    alpha, score, *solution = fit_by_folds(
        gram, Y, ALPHAS, splits, rows=rows, scoring=scoring, precision=precision, target_batch=11
    )
    place = np.searchsorted(ALPHAS, alpha)
    np.testing.assert_allclose(score, scores[place, np.arange(30)], rtol=1e-7, atol=1e-9)
    for found, expected in zip(solution, ridge(gram, Y, alpha, rows=rows), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
    if precision == "exact":
        np.testing.assert_array_equal(place, scores.argmax(axis=0))
    for neighbour in (np.maximum(place - 1, 0), np.minimum(place + 1, len(ALPHAS) - 1)):
        assert (scores[neighbour, np.arange(30)] <= score + 1e-9).all()


@pytest.mark.parametrize("guess", [0, 3, 8])
def test_climbing_reaches_a_peak_from_anywhere_and_looks_no_further(rng, guess):
    order = rng.permutation(9)
    alphas = np.logspace(0, 8, 9)[order]
    peaks = rng.integers(0, 9, 50)
    table = 10 - np.abs(np.log10(alphas)[:, None] - peaks)
    scores = climb(np.full(50, guess), alphas, lambda position, chosen: table[position, chosen])
    seen = np.isfinite(scores)
    np.testing.assert_array_equal(np.log10(best_penalties(scores, alphas)[0]), peaks)
    np.testing.assert_array_equal(scores[seen], table[seen])
    far = np.abs(np.log10(alphas)[:, None] - peaks) > 1 + np.abs(np.log10(alphas[guess]) - peaks)
    assert not seen[far].any()


def test_reduced_precision_changes_neither_penalties_nor_coefficients(rng):
    for shape in SHAPES:
        X, Y = _problem(rng, shape, dtype=np.float32)
        exact, reduced = (RidgeEncoder(search_precision=p).fit(X, Y) for p in ("exact", "reduced"))
        np.testing.assert_array_equal(reduced.alpha_, exact.alpha_)
        np.testing.assert_allclose(reduced.best_score_, exact.best_score_, atol=1e-6)
        np.testing.assert_allclose(reduced.coef_, exact.coef_, rtol=1e-4, atol=1e-7)


def test_leaving_pairs_out_is_a_search_by_folds_too(rng):
    X, Y = _problem(rng, (8, 30), n_targets=3)
    expected = cross_validated_scores(GramStatistics(X), Y, ALPHAS, list(LeavePOut(2).split(X)))
    found = RidgeEncoder(alphas=ALPHAS, cv=LeavePOut(2)).fit(X, Y)
    np.testing.assert_allclose(found.best_score_, expected.max(axis=0), rtol=1e-8)


def test_where_nothing_predicts_the_ends_are_tried_too():
    table = np.array([-0.5, -0.4, -0.6, -0.7, -0.6, -0.3, -0.2])[:, None]  # two peaks
    scores = climb(np.array([1]), np.arange(1.0, 8.0), lambda position, chosen: table[position, chosen])
    np.testing.assert_array_equal(np.isfinite(scores[:, 0]), [True] * 3 + [False] * 2 + [True] * 2)
    assert scores.argmax() == 6
