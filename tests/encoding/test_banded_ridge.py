"""Banded ridge equals himalaya's, and ridge on rescaled columns; its search equals refitting; odd input is defined."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    PredefinedSplit,
    ShuffleSplit,
    TimeSeriesSplit,
)
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from featpipe.blocks import LayerBlocks
from featpipe.encoding import BandedRidge, RidgeEncoder
from featpipe.errors import RequestError
from featpipe.metrics import pearson_r, r2

ALPHAS = [0.1, 1.0, 10.0, 100.0, 1e3]
WIDTHS = {"dual": (20, 50, 30), "primal": (4, 9, 6)}
FOLDS = KFold(4, shuffle=True, random_state=1)
METRICS = {"r2": r2, "pearson_r": pearson_r}


@parametrize_with_checks(
    [
        BandedRidge(),
        BandedRidge(scoring="pearson_r", refine=0),
        BandedRidge(search_precision="reduced", mixture="shared"),
    ]
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


def _refitted(X, Y, delta, widths, splits, metric, weight):
    scores = []
    for train, test in splits:
        coef, intercept = _ridge(X[train], Y[train], delta, widths, weight[train])
        scores.append(metric(Y[test], X[test] @ coef.T + intercept, sample_weight=weight[test]))
    return np.mean(scores, axis=0)


@pytest.mark.parametrize("scoring", METRICS)
@pytest.mark.parametrize("precision", ["exact", "reduced"])
@pytest.mark.parametrize(
    "cv",
    [
        FOLDS,
        ShuffleSplit(3, test_size=0.4, random_state=0),
        TimeSeriesSplit(3),
        PredefinedSplit([-1, 0, 1] * 20),
    ],
)
def test_score_of_a_candidate_is_that_of_refitting(rng, widths, scoring, precision, cv):
    X, Y = _problem(rng, widths)
    weight = rng.random(len(X)) + 0.2
    gamma, alpha = np.array([0.2, 0.7, 0.1]), 8.0
    expected = _refitted(X, Y, np.log(gamma / alpha), widths, list(cv.split(X)), METRICS[scoring], weight)
    model = BandedRidge(widths, alphas=[alpha], n_iter=[gamma], refine=0, cv=cv, scoring=scoring)
    found = model.set_params(search_precision=precision).fit(X, Y, sample_weight=weight)
    np.testing.assert_allclose(found.best_score_, expected, atol=1e-9 if precision == "exact" else 1e-5)


@pytest.mark.parametrize("scoring", METRICS)
def test_refined_score_is_that_of_refitting_and_no_worse(rng, widths, scoring):
    X, Y = _problem(rng, widths)
    search = BandedRidge(widths, alphas=ALPHAS, cv=FOLDS, scoring=scoring, refine=0).fit(X, Y)
    found = clone(search).set_params(refine=4).fit(X, Y)
    assert np.all(found.best_score_ >= search.best_score_)
    assert np.mean(found.best_score_ > search.best_score_ + 1e-3) > 0.5
    for target, delta in enumerate(found.deltas_.T):
        one = Y[:, [target]]
        expected = _refitted(X, one, delta, widths, list(FOLDS.split(X)), METRICS[scoring], np.ones(len(X)))
        np.testing.assert_allclose(found.best_score_[target], expected, atol=1e-8)


def test_a_shared_mixture_is_the_best_for_all_targets_together(rng, widths):
    X, Y = _problem(rng, widths)
    gammas = rng.dirichlet([0.5] * 3, 6)
    model = BandedRidge(widths, alphas=ALPHAS, cv=FOLDS, refine=0, mixture="shared")
    alone = [clone(model).set_params(n_iter=[gamma]).fit(X, Y).best_score_.mean() for gamma in gammas]
    found = clone(model).set_params(n_iter=gammas).fit(X, Y)
    np.testing.assert_allclose(found.gamma_, np.repeat(gammas[[np.argmax(alone)]].T, 5, axis=1))
    np.testing.assert_allclose(found.best_score_.mean(), max(alone))
    assert np.isclose(found.alpha_[:, None], ALPHAS).any(axis=1).all()


def test_a_refined_shared_mixture_is_shared_and_better(rng, widths):
    X, Y = _problem(rng, widths)
    model = BandedRidge(widths, alphas=ALPHAS, mixture="shared", n_iter=1)
    before, found = clone(model).set_params(refine=0).fit(X, Y), model.fit(X, Y)
    np.testing.assert_allclose(found.gamma_, found.gamma_[:, [0, 0, 0, 0, 0]])
    assert found.best_score_.mean() > before.best_score_.mean() + 1e-3
    assert np.all(found.gamma_[2] < before.gamma_[2])  # the band of noise


@pytest.mark.parametrize("shape", [(60, 20), (30, 80)])
@pytest.mark.parametrize("scoring", METRICS)
def test_one_band_is_ridge(rng, shape, scoring):
    X, Y = _problem(rng, (5, shape[1] - 10, 5), shape[0])
    Y[:7, 2] = np.nan
    params = {"alphas": ALPHAS, "scoring": scoring}
    expected, found = RidgeEncoder(**params).fit(X, Y), BandedRidge(**params).fit(X, Y)
    np.testing.assert_allclose(found.alpha_, expected.alpha_)
    np.testing.assert_allclose(found.best_score_, expected.best_score_, atol=1e-8)
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.intercept_, expected.intercept_, rtol=1e-6)
    np.testing.assert_allclose(found.gamma_, 1)


@pytest.mark.parametrize("n_iter", [1, 20])
def test_a_band_of_noise_gets_a_small_share(rng, n_iter):
    X = rng.standard_normal((100, 110))
    Y = X[:, :10] @ rng.standard_normal((10, 6)) + rng.standard_normal((100, 6))
    found = BandedRidge((10, 100), n_iter=n_iter).fit(X, Y)
    assert np.all(found.gamma_[1] < 0.1)
    assert np.all(found.best_score_ > RidgeEncoder().fit(X, Y).best_score_)


def test_missing_trials_leave_out_their_stimuli(rng, widths):
    X, Y = _problem(rng, widths)
    Y[:6, 1] = Y[3:8, 3] = np.nan
    found = BandedRidge(widths, alphas=ALPHAS, cv=FOLDS, n_iter=3).fit(X, Y)
    for target in range(Y.shape[1]):
        seen = ~np.isnan(Y[:, target])
        coef, intercept = _ridge(X[seen], Y[seen, target], found.deltas_[:, target], widths)
        np.testing.assert_allclose(found.coef_[target], coef, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found.intercept_[target], intercept, rtol=1e-6)


def test_missing_trials_of_a_target_leave_the_search_of_others_alone(rng, widths):
    X, Y = _problem(rng, widths)
    model = BandedRidge(widths, alphas=ALPHAS, n_iter=5, refine=0)
    before = clone(model).fit(X, Y)
    Y[:9, 1] = np.nan
    after = model.fit(X, Y)
    np.testing.assert_allclose(np.delete(after.deltas_, 1, 1), np.delete(before.deltas_, 1, 1))
    assert after.best_score_[1] != before.best_score_[1]


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_weights_count_like_repeats(rng, widths, fit_intercept):
    X, Y = _problem(rng, widths)
    counts = rng.integers(0, 4, len(X))
    model = BandedRidge(widths, deltas=[-1.0, -2.0, -np.inf], fit_intercept=fit_intercept)
    weighted = clone(model).fit(X, Y, sample_weight=counts)
    repeated = model.fit(np.repeat(X, counts, 0), np.repeat(Y, counts, 0))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(weighted.intercept_, repeated.intercept_, rtol=1e-6)


def test_constant_bands_and_targets(rng, widths):
    X, Y = _problem(rng, widths)
    X[:, : widths[0]], Y[:, 2] = 4.0, 0.25
    found = BandedRidge(widths, alphas=ALPHAS, n_iter=4).fit(X, Y)
    np.testing.assert_array_equal(found.gamma_[0], 0)
    np.testing.assert_allclose(found.coef_[:, : widths[0]], 0)
    np.testing.assert_allclose(found.predict(X)[:, 2], 0.25)
    assert found.best_score_[2] == 0
    np.testing.assert_allclose(found.alpha_[2], max(ALPHAS))  # nothing to choose by: the strongest


def test_all_bands_constant(rng):
    Y = rng.standard_normal((20, 2))
    found = BandedRidge((1, 2)).fit(np.ones((20, 3)), Y)
    np.testing.assert_allclose(found.predict(np.ones((1, 3)))[0], Y.mean(axis=0))


def test_of_equal_bands_only_the_sum_of_their_shares_matters(rng):
    X, Y = _problem(rng, (30, 20, 30))
    twice = np.hstack([X[:, :30], X])
    together, apart = (
        BandedRidge(widths, deltas=np.log(gamma)).fit(Z, Y)
        for Z, widths, gamma in ((X, (30, 50), [0.6, 0.4]), (twice, (30, 30, 50), [0.2, 0.4, 0.4]))
    )
    np.testing.assert_allclose(apart.predict(twice), together.predict(X), rtol=1e-8)
    np.testing.assert_allclose(apart.coef_[:, 30:60], 2 * apart.coef_[:, :30], rtol=1e-8)
    searched = BandedRidge((30, 30, 50)).fit(twice, Y)
    assert np.all(searched.best_score_ > RidgeEncoder().fit(X, Y).best_score_ - 1e-3)


@pytest.mark.parametrize("unit", [1e-15, 1e15])
def test_units_of_the_responses_do_not_matter(rng, widths, unit):
    X, Y = _problem(rng, widths)
    model = BandedRidge(widths, alphas=ALPHAS, search_precision="reduced")
    same, found = clone(model).fit(X, Y), model.fit(X, Y * unit)
    np.testing.assert_allclose(found.best_score_, same.best_score_, atol=1e-5)


def test_batches_of_targets_change_nothing(rng, widths):
    X, Y = _problem(rng, widths, n_targets=7)
    whole, parts = (BandedRidge(widths, alphas=ALPHAS, target_batch=batch).fit(X, Y) for batch in (100, 2))
    np.testing.assert_allclose(parts.deltas_, whole.deltas_, rtol=1e-6)
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=1e-6)


def test_groups_stay_on_one_side(rng, widths):
    X, Y = _problem(rng, widths)
    groups = rng.integers(0, 8, len(X))
    model = BandedRidge(widths, alphas=ALPHAS, refine=0)
    expected = clone(model).set_params(cv=list(GroupKFold(4).split(X, Y, groups))).fit(X, Y)
    found = model.set_params(cv=4).fit(X, Y, groups=groups)
    np.testing.assert_array_equal(found.best_score_, expected.best_score_)


def test_a_search_routes_weights_and_groups_without_being_told(rng, widths):
    X, Y = _problem(rng, widths)
    weight, groups = rng.random(60) + 0.1, np.repeat(np.arange(12), 5)
    model = BandedRidge(widths, alphas=ALPHAS, cv=3)
    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(make_pipeline(clone(model)), {"bandedridge__refine": [1]}, cv=GroupKFold(3))
        found = search.fit(X, Y, sample_weight=weight, groups=groups).best_estimator_[-1]
    expected = model.set_params(refine=1).fit(X, Y, sample_weight=weight, groups=groups)
    np.testing.assert_array_equal(found.coef_, expected.coef_)


def _blocks(X, widths, names="abc"):
    """Layers of two by width / 2 units, read from columns of X."""
    stops = np.cumsum(widths)
    shapes = [(2, width // 2) for width in widths]

    def read(layer, ids):
        columns = X[:, stops[layer] - widths[layer] : stops[layer]].astype(np.float32)
        return columns[[int(name) for name in ids]].reshape(-1, *shapes[layer])

    return LayerBlocks(
        [str(row) for row in range(len(X))],
        names=names,
        shapes=shapes,
        dims=[("channel", "unit")] * len(widths),
        digests=list(names),
        read=read,
    )


def test_layers_are_bands(rng):
    widths = (20, 50, 30)
    X, Y = _problem(rng, widths)
    expected = BandedRidge(widths, alphas=ALPHAS).fit(X.astype(np.float32), Y)
    blocks = _blocks(X, widths)
    found = BandedRidge(alphas=ALPHAS).fit(blocks, Y)
    assert found.bands_ == (("a", 20), ("b", 50), ("c", 30))
    np.testing.assert_array_equal(found.coef_, expected.coef_)
    np.testing.assert_allclose(found.predict(blocks[:5]), expected.predict(X[:5]), rtol=1e-4)
    with pytest.raises(RequestError, match=r"fitted to bands \(\('a', 20\).*but got \(\('x'"):
        found.predict(_blocks(X, widths, "xyz"))


def test_parts_of_the_bands_add_up_to_the_prediction(rng, widths):
    X, Y = _problem(rng, widths)
    found = BandedRidge(widths, alphas=ALPHAS).fit(X, Y)
    parts = found.predict(X, by_band=True)
    assert parts.shape == (3, *Y.shape)
    np.testing.assert_allclose(parts.sum(axis=0) + found.intercept_, found.predict(X))


def test_one_response_has_the_shapes_of_scikit_learn(rng, widths):
    X, Y = _problem(rng, widths)
    found = BandedRidge(widths, alphas=ALPHAS).fit(X, Y[:, 0])
    assert found.coef_.shape == (X.shape[1],)
    assert found.predict(X).shape == (60,)
    assert found.predict(X, by_band=True).shape == (3, 60)
    assert found.deltas_.shape == found.gamma_.shape == (3,)
    np.testing.assert_allclose(np.log(found.gamma_ / found.alpha_), found.deltas_)
    assert all(isinstance(v, float) for v in (found.alpha_, found.intercept_, found.best_score_))


def test_same_seed_same_model_and_pickle_predicts_the_same(rng, widths):
    X, Y = _problem(rng, widths)
    one, other = (BandedRidge(widths, alphas=ALPHAS, n_iter=12).fit(X, Y) for _ in range(2))
    np.testing.assert_array_equal(one.coef_, other.coef_)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)).predict(X), one.predict(X))


def test_given_penalties_have_no_inner_score(rng, widths):
    X, Y = _problem(rng, widths)
    found = BandedRidge(widths, alphas=ALPHAS).fit(X, Y)
    assert not hasattr(found.set_params(deltas=[0.0, 0.0, 0.0]).fit(X, Y), "best_score_")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"widths": [3, 4]}, "add up to 7 features, but X has 6"),
        ({"alphas": [0.0]}, "finite penalties > 0"),
        ({"n_iter": 0}, "n_iter must be an int >= 1"),
        ({"n_iter": [[1.0, 0.0, 0.0]]}, r"shape \(n_candidates, 2\)"),
        ({"n_iter": [[0.5, 0.6]]}, "add up to 1 over the bands"),
        ({"n_iter": 9, "concentration": [0.0]}, "concentration must be a number > 0"),
        ({"refine": -1}, "refine must be an int >= 0"),
        ({"deltas": [0.0]}, "2 bands and 4 targets"),
        ({"deltas": [-np.inf, -np.inf]}, "with a finite one for each target"),
        ({"deltas": [99.0, 99.0]}, "too small for features of this size"),
        ({"alphas": [1e-30]}, "every candidate is singular"),
        ({"scoring": "mse"}, "r2, pearson_r, got 'mse'"),
        ({"mixture": "roi"}, "mixture must be one of target, shared, got 'roi'"),
        ({"search_precision": "half"}, "exact, reduced, got 'half'"),
        ({"device": "tpu"}, "device must be"),
        ({"cv": [(np.arange(15), np.arange(10, 20))]}, "no stimulus twice"),
    ],
)
def test_wrong_parameters_are_named(rng, params, message):
    X, Y = rng.standard_normal((20, 6)), rng.standard_normal((20, 4))
    X[:, 5] = X[:, 4]  # singular without a penalty
    with pytest.raises(RequestError, match=message):
        BandedRidge(**{"widths": (2, 4), **params}).fit(X, Y)


def test_wrong_data_are_named(rng, widths):
    X, Y = _problem(rng, widths)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        BandedRidge(widths).fit(np.where(X > 3, np.nan, X), Y)
    with pytest.raises(RequestError, match="must be >= 0 and not all 0, got -1"):
        BandedRidge(widths).fit(X, Y, sample_weight=-np.ones(60))
    with pytest.raises(RequestError, match="LayerBlocks know it"):
        BandedRidge((20, 50, 30)).fit(_blocks(np.ones((60, 100)), (20, 50, 30)), Y)
