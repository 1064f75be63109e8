"""Banded ridge equals himalaya's, and ridge on rescaled columns; its search equals refitting; odd input is defined."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from featpipe.encoding._banded import BandedRidge
from featpipe.metrics import pearson_r, r2

ALPHAS = [0.1, 1.0, 10.0, 100.0, 1e3]
WIDTHS = {"dual": (20, 50, 30), "primal": (4, 9, 6)}
FOLDS = KFold(4, shuffle=True, random_state=1)
METRICS = {"r2": r2, "pearson_r": pearson_r}


@parametrize_with_checks(
    [BandedRidge(), BandedRidge(scoring="pearson_r", refine=0), BandedRidge(search_precision="reduced")]
)
def test_scikit_learn_is_at_home(estimator, check):
    check(estimator)


@pytest.fixture(params=WIDTHS)
def widths(request):
    return WIDTHS[request.param]


def _problem(rng, widths, n_stimuli=60, n_targets=5, noise=2.0):
    """Targets that hang on the first band, the second, or both; the last band is noise."""
    X = rng.standard_normal((n_stimuli, sum(widths))) + 1
    coef = rng.standard_normal((sum(widths), n_targets))
    coef[widths[0] :, ::3] = coef[: widths[0], 1::3] = 0
    coef[-widths[-1] :] = 0
    Y = X @ coef
    return X, Y / Y.std(axis=0) + noise * rng.standard_normal(Y.shape) / 2 + 3


def _ridge(X, Y, delta, widths, weight=None, **params):
    """scikit-learn's ridge on columns times exp(delta / 2): coefficients of the columns themselves, intercept."""
    root = np.repeat(np.exp(np.asarray(delta) / 2), widths)
    model = Ridge(alpha=1.0, solver="svd", **params).fit(X * root, Y, sample_weight=weight)
    return model.coef_ * root, model.intercept_


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_is_ridge_on_rescaled_columns(rng, widths, weighted, fit_intercept):
    X, Y = _problem(rng, widths)
    weight = rng.random(len(X)) + 0.1 if weighted else None
    deltas = rng.uniform(-6, 1, (3, Y.shape[1]))
    found = BandedRidge(widths, deltas=deltas, fit_intercept=fit_intercept).fit(X, Y, sample_weight=weight)
    for target, delta in enumerate(deltas.T):
        coef, intercept = _ridge(X, Y[:, target], delta, widths, weight, fit_intercept=fit_intercept)
        np.testing.assert_allclose(found.coef_[target], coef, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(np.broadcast_to(found.intercept_, 5)[target], intercept, rtol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::DeprecationWarning")
def test_search_and_solution_are_those_of_himalaya(rng, widths):
    ridge = pytest.importorskip("himalaya.ridge")
    score = pytest.importorskip("himalaya.scoring").r2_score
    X, Y = _problem(rng, widths)
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    gammas = rng.dirichlet([0.5] * 3, 8)
    solver = {"n_iter": gammas, "alphas": np.array(ALPHAS), "score_func": score, "progress_bar": False}
    theirs = ridge.GroupRidgeCV(
        groups=np.repeat(np.arange(3), widths),
        cv=FOLDS,
        fit_intercept=True,
        solver_params=solver | {"warn": False},
    ).fit(X, Y)
    found = BandedRidge(widths, alphas=ALPHAS, n_iter=gammas, refine=0, cv=FOLDS).fit(X, Y)
    np.testing.assert_allclose(found.best_score_, theirs.cv_scores_.max(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.deltas_, theirs.deltas_, rtol=1e-6)
    np.testing.assert_allclose(found.predict(X), theirs.predict(X), rtol=1e-5, atol=1e-8)
