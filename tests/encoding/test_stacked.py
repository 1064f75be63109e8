"""Stacking minimises held-out squared error over the simplex; weights never see what they are fitted to."""

from __future__ import annotations

import pickle

import joblib
import numpy as np
import pytest
import sklearn
import skops.io
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, ShuffleSplit
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from featpipe.blocks import LayerBlocks
from featpipe.encoding import LayerScaler, RidgeEncoder
from featpipe.encoding.layers._per_layer import check_problem, fit_layer, held_out_predictions
from featpipe.encoding.layers._simplex import simplex_weights
from featpipe.encoding.layers._stacked import StackedLayers
from featpipe.errors import RequestError
from featpipe.metrics import pearson_r

WIDTHS = [3, 5, 2]
ALPHAS = [0.1, 10.0, 1000.0]
RIDGE = RidgeEncoder(alphas=ALPHAS, cv=3)


@parametrize_with_checks([StackedLayers(RidgeEncoder(cv="gcv")), StackedLayers(Ridge(), shrinkage=0.1)])
def test_scikit_learn_is_at_home(estimator, check):
    check(estimator)


def _residual_moments(rng, n_targets, n_layers, n=60):
    common = rng.standard_normal((n, 1, n_targets))
    errors = common + rng.uniform(0.3, 1.5, (1, n_layers, n_targets)) * rng.standard_normal(
        (n, n_layers, n_targets)
    )
    return np.einsum("nkt,nlt->tkl", errors, errors)


@pytest.mark.parametrize("n_layers", [1, 2, 5, 12])
def test_weights_equal_a_general_solver(rng, n_layers):
    moments = _residual_moments(rng, 20, n_layers)
    found = simplex_weights(moments)
    for weights, S in zip(found, moments / 60, strict=True):
        expected = minimize(
            lambda w, S=S: w @ S @ w,
            np.full(n_layers, 1 / n_layers),
            jac=lambda w, S=S: 2 * S @ w,
            bounds=[(0, 1)] * n_layers,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert weights @ S @ weights <= expected.fun * (1 + 1e-8)
        np.testing.assert_allclose(weights, expected.x, atol=1e-5)


def test_weights_are_on_the_simplex_and_optimal(rng):
    """The conditions of Karush, Kuhn and Tucker: no layer would lower the error by taking weight."""
    moments = _residual_moments(rng, 300, 15)
    weights = simplex_weights(moments)
    gradient = np.einsum("tkl,tl->tk", moments, weights)
    level = np.einsum("tk,tk->t", weights, gradient)[:, None]
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert np.all(gradient >= level * (1 - 1e-6))
    np.testing.assert_allclose(np.where(weights > 0, gradient - level, 0) / level, 0, atol=1e-6)


def test_weights_of_one_target_and_units_leave_the_others_alone(rng):
    moments = _residual_moments(rng, 30, 6)
    np.testing.assert_array_equal(simplex_weights(moments)[7:9], simplex_weights(moments[7:9]))
    np.testing.assert_allclose(simplex_weights(1e-12 * moments), simplex_weights(moments), atol=1e-9)


def test_equal_layers_share_their_weight(rng):
    moments = _residual_moments(rng, 10, 4)[:, [0, 1, 2, 3, 1, 1]][:, :, [0, 1, 2, 3, 1, 1]]
    weights = simplex_weights(moments)
    np.testing.assert_allclose(weights[:, [4, 5]], weights[:, [1, 1]], atol=1e-4)
    np.testing.assert_allclose(simplex_weights(np.zeros((1, 4, 4))), 0.25)


def _problem(rng, n=60, n_targets=4, noise=2.0):
    X = rng.standard_normal((n, sum(WIDTHS)))
    coef = rng.standard_normal((sum(WIDTHS), n_targets)) * rng.uniform(0, 1, (sum(WIDTHS), 1))
    return X, X @ coef + noise * rng.standard_normal((n, n_targets)) + 3


def _layers(X):
    return np.split(X, np.cumsum(WIDTHS)[:-1], axis=1)


def _blocks(X):
    layers = _layers(X.astype(np.float32))
    return LayerBlocks(
        [str(row) for row in range(len(X))],
        names=["a", "b", "c"],
        shapes=[(width,) for width in WIDTHS],
        dims=[("channel",)] * 3,
        digests=["a", "b", "c"],
        read=lambda layer, ids: layers[layer][ids.astype(int)],
    )


def _naive(X, Y, estimator, splits, weight=None, **more):
    """Weights per target from refitting every encoder to every fold: (n_layers, n_targets)."""
    root = np.sqrt(np.ones(len(X)) if weight is None else weight)[:, None]
    rows = np.concatenate([test for _, test in splits])
    moments = []
    for train, test in splits:
        given = {name: values[train] for name, values in more.items()}
        if weight is not None:
            given["sample_weight"] = weight[train]
        fits = [clone(estimator).fit(layer[train], Y[train], **given) for layer in _layers(X)]
        errors = np.stack(
            [
                np.nan_to_num((fit.predict(layer[test]) - Y[test]) * root[test])
                for fit, layer in zip(fits, _layers(X), strict=True)
            ]
        )
        moments.append(np.einsum("knt,lnt->tkl", errors, errors))
    assert len(rows)
    return simplex_weights(np.sum(moments, axis=0)).T


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("estimator", [RIDGE, Ridge(2.0), RidgeEncoder(2.0, fit_intercept=False)])
def test_fit_equals_explicit_refitting(rng, estimator, weighted):
    X, Y = _problem(rng)
    weight = rng.random(len(X)) if weighted else None
    splits = list(KFold(4, shuffle=True, random_state=1).split(X))
    found = StackedLayers(estimator, widths=WIDTHS, cv=splits).fit(X, Y, sample_weight=weight)
    np.testing.assert_allclose(found.weights_, _naive(X, Y, estimator, splits, weight), atol=1e-7)
    for fitted, layer in zip(found.estimators_, _layers(X), strict=True):
        np.testing.assert_allclose(
            fitted.coef_, clone(estimator).fit(layer, Y, sample_weight=weight).coef_, rtol=1e-6
        )


@pytest.mark.parametrize("cv", [3, "loo", "gcv"])
@pytest.mark.parametrize("scoring", ["r2", "pearson_r"])
@pytest.mark.parametrize("n_features", [5, 90])  # primal, dual
def test_held_out_predictions_of_ridge_are_those_of_refitting(rng, scoring, n_features, cv):
    """One Gram matrix for all folds of all folds, missing trials, weights of 0 and groups among them."""
    X, Y = rng.standard_normal((60, n_features)), rng.standard_normal((60, 5)) + 1
    Y += X[:, :5]
    Y[:7, 1] = Y[50:53, 3] = np.nan
    given = {"sample_weight": rng.integers(0, 3, 60).astype(float), "groups": rng.integers(0, 20, 60)}
    if isinstance(cv, str):
        given["groups"] = None
    estimator = RidgeEncoder(alphas=ALPHAS, cv=cv, scoring=scoring)
    splits = list(KFold(4, shuffle=True, random_state=3).split(X))
    problem, _ = check_problem(StackedLayers(), X, Y, widths=None, **given)
    found = held_out_predictions(estimator, X, problem, splits)
    for (train, test), predicted in zip(splits, found, strict=True):
        part = {name: values[train] for name, values in given.items() if values is not None}
        expected = fit_layer(estimator, X[train], Y[train], part).predict(X[test])
        np.testing.assert_allclose(predicted, expected, rtol=1e-6, atol=1e-9)


def test_folds_may_overlap_and_leave_stimuli_out(rng):
    X, Y = _problem(rng)
    splits = list(ShuffleSplit(3, test_size=0.4, random_state=0).split(X))
    found = StackedLayers(RIDGE, widths=WIDTHS, cv=splits).fit(X, Y)
    np.testing.assert_allclose(found.weights_, _naive(X, Y, RIDGE, splits), atol=1e-7)


def test_responses_of_a_held_out_fold_do_not_move_their_predictions(rng):
    X, Y = _problem(rng)
    changed = Y.copy()
    splits = list(KFold(3).split(X))
    changed[splits[0][1]] = rng.standard_normal((20, 4))
    first = [
        next(
            held_out_predictions(
                RIDGE, X, check_problem(StackedLayers(), X, responses, **_nothing())[0], splits
            )
        )
        for responses in (Y, changed)
    ]
    np.testing.assert_array_equal(*first)


def _nothing():
    return {"sample_weight": None, "groups": None, "widths": None}


def test_prediction_is_the_weighted_sum_and_the_concatenated_coefficients(rng):
    X, Y = _problem(rng)
    found = StackedLayers(RIDGE, widths=WIDTHS).fit(X, Y)
    summed = sum(
        fit.predict(layer) * weights
        for fit, layer, weights in zip(found.estimators_, _layers(X), found.weights_, strict=True)
    )
    np.testing.assert_allclose(found.predict(X), summed)
    np.testing.assert_allclose(X @ found.coef_.T + found.intercept_, summed)
    assert found.coef_.shape == (4, sum(WIDTHS))


def test_blocks_equal_a_matrix_with_widths(rng):
    X, Y = _problem(rng)
    X = X.astype(np.float32)
    matrix, blocks = StackedLayers(RIDGE, widths=WIDTHS).fit(X, Y), StackedLayers(RIDGE).fit(_blocks(X), Y)
    np.testing.assert_allclose(blocks.weights_, matrix.weights_, atol=1e-6)
    np.testing.assert_allclose(blocks.predict(_blocks(X)), matrix.predict(X), rtol=1e-5)
    assert blocks.layer_names_ == ("a", "b", "c")
    assert blocks.score(_blocks(X), Y) == pytest.approx(matrix.score(X, Y), abs=1e-6)


def test_a_useless_layer_gets_no_weight_and_a_perfect_one_all(rng):
    X, _ = _problem(rng, n=200)
    Y = _layers(X)[1] @ rng.standard_normal((5, 6)) + 0.1 * rng.standard_normal((200, 6))
    weights = StackedLayers(RIDGE, widths=WIDTHS).fit(X, Y).weights_
    assert np.all(weights[1] > 0.97)


def test_stacking_beats_every_layer_where_each_knows_a_part(rng):
    X, Y = _problem(rng, n=400, noise=1.0)
    found = StackedLayers(RIDGE, widths=WIDTHS).fit(X[:200], Y[:200])
    single = [
        fit.score(layer[200:], Y[200:]) for fit, layer in zip(found.estimators_, _layers(X), strict=True)
    ]
    assert found.score(X[200:], Y[200:]) > max(single)


def test_noise_is_not_predicted(rng):
    X, noise = rng.standard_normal((160, sum(WIDTHS))), rng.standard_normal((160, 300))
    found = StackedLayers(RidgeEncoder(cv="gcv"), widths=WIDTHS).fit(X[:60], noise[:60])
    assert abs(pearson_r(noise[60:], found.predict(X[60:])).mean()) < 0.03


def test_shrinkage_draws_weights_to_equal_ones(rng):
    X, Y = _problem(rng)
    spread = [
        StackedLayers(RIDGE, widths=WIDTHS, shrinkage=shrinkage).fit(X, Y).weights_.std()
        for shrinkage in (0.0, 0.3, 1e6)
    ]
    assert spread[0] > spread[1] > spread[2]
    assert spread[2] < 1e-5


def test_missing_trials_of_a_target_leave_the_others_alone(rng):
    X, Y = _problem(rng)
    before = StackedLayers(RIDGE, widths=WIDTHS).fit(X, Y)
    Y[:9, 1] = np.nan
    after = StackedLayers(RIDGE, widths=WIDTHS).fit(X, Y)
    np.testing.assert_allclose(np.delete(after.weights_, 1, 1), np.delete(before.weights_, 1, 1), atol=1e-9)
    assert np.all(np.isfinite(after.predict(X)))


def test_constant_targets_are_predicted_exactly(rng):
    X, Y = _problem(rng)
    Y[:, 2] = 0.3
    np.testing.assert_allclose(StackedLayers(RIDGE, widths=WIDTHS).fit(X, Y).predict(X)[:, 2], 0.3)


def test_groups_stay_on_one_side(rng):
    X, Y = _problem(rng)
    groups = rng.integers(0, 9, 60)
    splits = list(GroupKFold(4).split(X, Y, groups))
    found = StackedLayers(RIDGE, widths=WIDTHS, cv=4).fit(X, Y, groups=groups)
    np.testing.assert_allclose(found.weights_, _naive(X, Y, RIDGE, splits, groups=groups), atol=1e-7)


def test_a_search_routes_weights_and_groups_without_being_told(rng):
    X, Y = _problem(rng)
    blocks = _blocks(X)
    weight, groups = rng.random(60) + 0.1, np.repeat(np.arange(20), 3)
    pipeline = make_pipeline(LayerScaler(output="blocks"), StackedLayers(RIDGE, cv=3))
    grid = {"stackedlayers__shrinkage": [0.1], "stackedlayers__estimator__cv": [3]}
    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(pipeline, grid, cv=GroupKFold(3), error_score="raise")
        found = search.fit(blocks, Y, sample_weight=weight, groups=groups).best_estimator_[-1]
    scaled = LayerScaler(output="blocks").fit(blocks, sample_weight=weight).transform(blocks)
    expected = StackedLayers(RIDGE, cv=3, shrinkage=0.1).fit(scaled, Y, sample_weight=weight, groups=groups)
    np.testing.assert_array_equal(found.weights_, expected.weights_)


def test_weights_reach_whoever_takes_them_and_nobody_else(rng):
    X, Y = _problem(rng)
    weight = rng.random(60)
    weighted, plain = (
        StackedLayers(Ridge(), widths=WIDTHS).fit(X, Y, sample_weight=w) for w in (weight, None)
    )
    assert not np.allclose(weighted.estimators_[0].coef_, plain.estimators_[0].coef_)
    StackedLayers(KNeighborsRegressor(), widths=WIDTHS).fit(X, Y, sample_weight=weight)
    inside = make_pipeline(StandardScaler(), LinearRegression())
    StackedLayers(inside, widths=WIDTHS).fit(X, Y, sample_weight=weight)


def test_what_was_routed_does_not_keep_it_from_a_file(rng):
    X, Y = _problem(rng)
    found = StackedLayers(Ridge(), widths=WIDTHS).fit(X, Y, sample_weight=rng.random(60))
    written = skops.io.dumps(found)
    read = skops.io.loads(written, trusted=skops.io.get_untrusted_types(data=written))
    np.testing.assert_array_equal(read.predict(X), found.predict(X))


def test_without_coefficients_there_are_none(rng):
    X, Y = _problem(rng)
    found = StackedLayers(KNeighborsRegressor(), widths=WIDTHS).fit(X, Y)
    assert not hasattr(found, "coef_")
    assert found.predict(X).shape == Y.shape


def test_one_response_has_one_dimension(rng):
    X, Y = _problem(rng)
    found = StackedLayers(RIDGE, widths=WIDTHS).fit(X, Y[:, 0])
    assert found.predict(X).shape == (60,)
    assert found.weights_.shape == (3,)
    assert found.coef_.shape == (sum(WIDTHS),)
    np.testing.assert_allclose(X @ found.coef_ + found.intercept_, found.predict(X))


def test_jobs_batches_and_pickles_change_nothing(rng, monkeypatch):
    X, Y = _problem(rng)
    found = StackedLayers(RIDGE, widths=WIDTHS).fit(X, Y)
    copied = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(copied.predict(X), found.predict(X))
    threads = StackedLayers(RIDGE, widths=WIDTHS, n_jobs=2)
    with joblib.parallel_config("threading"):
        np.testing.assert_array_equal(threads.fit(X, Y).weights_, found.weights_)
    monkeypatch.setattr("featpipe.encoding.layers._stacked._MEMORY", 0)
    monkeypatch.setattr("featpipe.encoding.layers._stacked._CHUNK_VALUES", 60 * 3)
    np.testing.assert_allclose(StackedLayers(RIDGE, widths=WIDTHS).fit(X, Y).weights_, found.weights_)


def test_wrong_requests_are_named(rng):
    X, Y = _problem(rng)
    with pytest.raises(RequestError, match="shrinkage must be >= 0, got -1"):
        StackedLayers(shrinkage=-1).fit(X, Y)
    with pytest.raises(RequestError, match="add up to 4 features, but X has 10"):
        StackedLayers(widths=[2, 2]).fit(X, Y)
    with pytest.raises(RequestError, match="Leave widths out"):
        StackedLayers(widths=WIDTHS).fit(_blocks(X), Y)
    with pytest.raises(RequestError, match="sample_weight must be >= 0"):
        StackedLayers().fit(X, Y, sample_weight=-np.ones(60))
    with pytest.raises(RequestError, match="was fitted to layers"):
        StackedLayers(RIDGE).fit(_blocks(X), Y).predict(_blocks(X).select(["a"]))
