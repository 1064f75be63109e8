"""Ridge equals scikit-learn's, its search equals an explicit loop, and odd input has a defined outcome."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, ShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from featpipe.encoding import LayerScaler, RidgeEncoder
from featpipe.errors import RequestError
from featpipe.metrics import pearson_r

ALPHAS = [0.01, 1.0, 100.0, 1e4]
SHAPES = [(60, 12), (40, 40), (12, 60)]  # tall, square, wide


@parametrize_with_checks(
    [
        RidgeEncoder(),
        RidgeEncoder(alpha=1.0),
        RidgeEncoder(scoring="pearson_r", search_precision="reduced"),
        RidgeEncoder(cv="loo"),
        RidgeEncoder(cv="gcv", penalty="shared"),
    ]
)
def test_scikit_learn_is_at_home(estimator, check):
    check(estimator)


def _problem(rng, shape, n_targets=4, noise=1.0):
    X = rng.standard_normal(shape) + 2
    return X, X @ rng.standard_normal((shape[1], n_targets)) + noise * rng.standard_normal(
        (shape[0], n_targets)
    )


def _relative(found, expected):
    return np.max(np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1))


@given(
    n_stimuli=st.integers(3, 30),
    n_features=st.integers(1, 30),
    n_targets=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_matches_sklearn_in_any_shape(n_stimuli, n_features, n_targets, seed):
    rng = np.random.default_rng(seed)
    X, Y = _problem(rng, (n_stimuli, n_features), n_targets)
    alpha, weight = 10.0 ** rng.uniform(-2, 3, n_targets), rng.random(n_stimuli) + 0.1
    expected = Ridge(alpha=alpha, solver="svd").fit(X, Y, sample_weight=weight)
    found = RidgeEncoder(alpha).fit(X, Y, sample_weight=weight)
    np.testing.assert_allclose(found.coef_, np.atleast_2d(expected.coef_), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.predict(X), expected.predict(X).reshape(Y.shape), rtol=1e-6, atol=1e-8)


def _well(X, rng):
    return X


def _collinear(X, rng):
    return X[:, :5] @ rng.standard_normal((5, X.shape[1])) + 1e-3 * X


def _common_factor(X, rng):
    return X + 30 * rng.standard_normal((len(X), 1))


@pytest.mark.parametrize("shape", [(300, 80), (80, 300), (200, 200), (200, 201)])
@pytest.mark.parametrize("condition", [_well, _collinear, _common_factor])
@pytest.mark.parametrize("alpha", [1e-2, 1e3])
def test_float32_is_within_1e_4_of_float64_scikit_learn(rng, shape, condition, alpha):
    X = condition(rng.standard_normal(shape), rng).astype(np.float32)
    Y = (X @ rng.standard_normal((shape[1], 3)) + rng.standard_normal((shape[0], 3))).astype(np.float32)
    exact = Ridge(alpha=alpha, solver="svd").fit(X.astype(np.float64), Y.astype(np.float64))
    found = RidgeEncoder(alpha).fit(X, Y)
    assert found.coef_.dtype == np.float32
    assert _relative(found.coef_, exact.coef_) < 1e-5  # promised: 1e-4


def _loop(X, Y, splits, metric, weight=None):
    """Mean score over folds of every penalty, refitted by scikit-learn: (n_alphas, n_targets)."""
    weight = np.ones(len(X)) if weight is None else weight
    return np.mean(
        [
            [
                metric(
                    Y[test],
                    Ridge(alpha=alpha, solver="svd")
                    .fit(X[train], Y[train], sample_weight=weight[train])
                    .predict(X[test]),
                    sample_weight=weight[test],
                )
                for alpha in ALPHAS
            ]
            for train, test in splits
        ],
        axis=0,
    )


def _r2(y_true, y_pred, sample_weight):
    return r2_score(y_true, y_pred, sample_weight=sample_weight, multioutput="raw_values")


METRICS = {"r2": _r2, "pearson_r": pearson_r}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scoring", ["r2", "pearson_r"])
@pytest.mark.parametrize("weighted", [False, True])
def test_search_equals_an_explicit_loop(rng, shape, scoring, weighted):
    X, Y = _problem(rng, shape, n_targets=6, noise=5.0)
    weight = rng.random(len(X)) + 0.5 if weighted else None
    cv = KFold(3, shuffle=True, random_state=1)
    expected = _loop(X, Y, list(cv.split(X)), METRICS[scoring], weight)
    found = RidgeEncoder(alphas=ALPHAS, cv=cv, scoring=scoring).fit(X, Y, sample_weight=weight)
    np.testing.assert_allclose(found.best_score_, expected.max(axis=0), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(found.alpha_, np.array(ALPHAS)[expected.argmax(axis=0)])


def test_folds_may_overlap(rng):
    X, Y = _problem(rng, (50, 8), noise=5.0)
    cv = ShuffleSplit(4, test_size=0.6, random_state=0)
    expected = _loop(X, Y, list(cv.split(X)), _r2)
    found = RidgeEncoder(alphas=ALPHAS, cv=cv).fit(X, Y)
    np.testing.assert_allclose(found.best_score_, expected.max(axis=0), rtol=1e-6)


def test_float32_search_agrees_with_float64(rng):
    X, Y = _problem(rng, (60, 100), n_targets=20, noise=10.0)
    single = RidgeEncoder(alphas=ALPHAS).fit(X.astype(np.float32), Y.astype(np.float32))
    double = RidgeEncoder(alphas=ALPHAS).fit(X, Y)
    np.testing.assert_array_equal(single.alpha_, double.alpha_)
    np.testing.assert_allclose(single.best_score_, double.best_score_, atol=1e-5)


@pytest.mark.parametrize("scoring", ["r2", "pearson_r"])
@pytest.mark.parametrize("unit", [1e-25, 1e-15, 1e25])
def test_units_of_the_responses_do_not_matter_to_the_search(rng, scoring, unit):
    X = rng.standard_normal((60, 8)).astype(np.float32)
    Y = X @ rng.standard_normal((8, 3)) + rng.standard_normal((60, 3))
    chosen, same = (
        RidgeEncoder(scoring=scoring, alphas=np.logspace(-1, 10, 12)).fit(X, (Y * u).astype(np.float32))
        for u in (unit, 1)
    )
    np.testing.assert_allclose(chosen.best_score_, same.best_score_, atol=1e-5)
    np.testing.assert_array_equal(chosen.alpha_, same.alpha_)


def test_solution_at_chosen_penalties_is_that_of_ridge_cv(rng):
    X, Y = _problem(rng, (60, 12), noise=5.0)
    chosen = RidgeCV(alphas=ALPHAS, alpha_per_target=True).fit(X, Y)
    found = RidgeEncoder(chosen.alpha_).fit(X, Y)
    np.testing.assert_allclose(found.coef_, chosen.coef_, rtol=1e-8)
    np.testing.assert_allclose(found.intercept_, chosen.intercept_, rtol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_intercept(rng, shape):
    X, Y = _problem(rng, shape)
    expected = Ridge(alpha=2.0, fit_intercept=False, solver="svd").fit(X, Y)
    found = RidgeEncoder(2.0, fit_intercept=False).fit(X, Y)
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-8, atol=1e-10)
    assert found.intercept_ == 0.0


@pytest.mark.parametrize("shape", SHAPES)
def test_penalty_zero_is_least_squares_of_least_norm(rng, shape):
    X, Y = _problem(rng, shape)
    expected = np.linalg.pinv(X - X.mean(axis=0)) @ (Y - Y.mean(axis=0))
    np.testing.assert_allclose(RidgeEncoder(0.0).fit(X, Y).coef_, expected.T, rtol=1e-5, atol=1e-7)


def test_penalty_of_one_target_leaves_the_others_alone(rng):
    X, Y = _problem(rng, (30, 8))
    before = RidgeEncoder([1.0, 1.0, 1.0, 1.0]).fit(X, Y)
    after = RidgeEncoder([1.0, 1.0, 50.0, 1.0]).fit(X, Y)
    np.testing.assert_allclose(np.delete(after.coef_, 2, 0), np.delete(before.coef_, 2, 0), rtol=1e-12)
    assert not np.allclose(after.coef_[2], before.coef_[2])


@pytest.mark.parametrize("shape", SHAPES)
def test_batches_of_targets_change_nothing(rng, shape):
    X, Y = _problem(rng, shape, n_targets=7, noise=5.0)
    whole = RidgeEncoder(alphas=ALPHAS, cv=3).fit(X, Y)
    parts = RidgeEncoder(alphas=ALPHAS, cv=3, target_batch=2).fit(X, Y)
    np.testing.assert_array_equal(parts.alpha_, whole.alpha_)
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_count_like_repeats(rng, shape):
    X, Y = _problem(rng, shape)
    counts = rng.integers(1, 4, len(X))
    weighted = RidgeEncoder(3.0).fit(X, Y, sample_weight=counts)
    repeated = RidgeEncoder(3.0).fit(np.repeat(X, counts, 0), np.repeat(Y, counts, 0))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_missing_trials_leave_out_their_stimuli(rng, shape):
    X, Y = _problem(rng, shape)
    Y[:3, 1] = np.nan
    Y[2:4, 3] = np.nan
    found = RidgeEncoder(2.0).fit(X, Y)
    for target in range(Y.shape[1]):
        seen = ~np.isnan(Y[:, target])
        expected = Ridge(alpha=2.0, solver="svd").fit(X[seen], Y[seen, target])
        np.testing.assert_allclose(found.coef_[target], expected.coef_, rtol=1e-7, atol=1e-10)


def test_missing_trials_of_a_target_leave_the_search_of_others_alone(rng):
    X, Y = _problem(rng, (50, 10), noise=5.0)
    before = RidgeEncoder(alphas=ALPHAS).fit(X, Y)
    Y[:9, 1] = np.nan
    after = RidgeEncoder(alphas=ALPHAS).fit(X, Y)
    np.testing.assert_allclose(np.delete(after.best_score_, 1), np.delete(before.best_score_, 1))
    assert after.best_score_[1] != before.best_score_[1]


def test_constant_features_and_targets(rng):
    X, Y = _problem(rng, (40, 6))
    X[:, 2], Y[:, 1] = 5.0, 0.3
    found = RidgeEncoder(alphas=ALPHAS).fit(X, Y)
    np.testing.assert_allclose(found.coef_[:, 2], 0, atol=1e-9)
    np.testing.assert_allclose(found.predict(X)[:, 1], 0.3)
    assert found.alpha_[1] == max(ALPHAS)  # nothing to choose by: the strongest
    assert found.best_score_[1] == 0


def test_all_features_constant(rng):
    Y = rng.standard_normal((20, 2))
    found = RidgeEncoder().fit(np.ones((20, 3)), Y)
    np.testing.assert_allclose(found.predict(np.ones((1, 3)))[0], Y.mean(axis=0))


def test_categories_in_order_do_not_spoil_an_int_cv(rng):
    """Contiguous folds would hold out a whole category each."""
    X, Y = _problem(rng, (50, 5))
    expected = RidgeEncoder(alphas=ALPHAS, cv=KFold(5, shuffle=True, random_state=0)).fit(X, Y)
    np.testing.assert_array_equal(RidgeEncoder(alphas=ALPHAS).fit(X, Y).best_score_, expected.best_score_)


def test_groups_stay_on_one_side(rng):
    X, Y = _problem(rng, (40, 5), noise=5.0)
    groups = rng.integers(0, 8, 40)
    folds = list(GroupKFold(4).split(X, Y, groups))
    expected = RidgeEncoder(alphas=ALPHAS, cv=folds).fit(X, Y)
    found = RidgeEncoder(alphas=ALPHAS, cv=4).fit(X, Y, groups=groups)
    np.testing.assert_array_equal(found.best_score_, expected.best_score_)


def test_a_search_routes_weights_and_groups_without_being_told(rng):
    X, Y = _problem(rng, (40, 5), noise=5.0)
    weight, groups = rng.random(40) + 0.1, np.repeat(np.arange(10), 4)
    pipeline = make_pipeline(LayerScaler(), RidgeEncoder(alphas=ALPHAS, cv=3))
    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(pipeline, {"layerscaler__floor": [0.1]}, cv=GroupKFold(3))
        found = search.fit(X, Y, sample_weight=weight, groups=groups).best_estimator_[-1]
    Z = LayerScaler().fit(X, sample_weight=weight).transform(X)
    expected = RidgeEncoder(alphas=ALPHAS, cv=3).fit(Z, Y, sample_weight=weight, groups=groups)
    np.testing.assert_array_equal(found.coef_, expected.coef_)


def test_one_response_has_the_shapes_of_scikit_learn(rng):
    X, Y = _problem(rng, (30, 5))
    found = RidgeEncoder(alphas=ALPHAS).fit(X, Y[:, 0])
    assert found.coef_.shape == (5,)
    assert found.predict(X).shape == (30,)
    assert all(isinstance(v, float) for v in (found.alpha_, found.intercept_, found.best_score_))


def test_features_are_neither_changed_nor_copied_to_float64(rng, monkeypatch):
    X, Y = (values.astype(np.float32) for values in _problem(rng, (40, 6)))
    X.setflags(write=False)
    Y.setflags(write=False)
    found = RidgeEncoder(alphas=ALPHAS).fit(X, Y)
    assert found.predict(X).dtype == np.float32


def test_pickle_predicts_the_same(rng):
    X, Y = _problem(rng, (30, 5))
    found = RidgeEncoder(alphas=ALPHAS).fit(X, Y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).predict(X), found.predict(X))


def test_a_given_penalty_has_no_inner_score(rng):
    X, Y = _problem(rng, (30, 5))
    found = RidgeEncoder(alphas=ALPHAS).fit(X, Y)
    assert not hasattr(found.set_params(alpha=1.0).fit(X, Y), "best_score_")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"alpha": [1.0, 2.0, 3.0]}, r"shape \(3,\), but there are 4 targets"),
        ({"alpha": -1.0}, "finite and >= 0"),
        ({"alphas": [0.0, 1.0]}, "finite penalties > 0"),
        ({"alphas": []}, "finite penalties > 0"),
        ({"scoring": "mse"}, "r2, pearson_r, got 'mse'"),
        ({"cv": 40}, "40 folds need at least 40 stimuli, got 20"),
        ({"cv": KFold(20)}, "two to score for target 0"),
        ({"target_batch": 0}, "int >= 1"),
    ],
)
def test_wrong_parameters_are_named(rng, params, message):
    X, Y = _problem(rng, (20, 5))
    with pytest.raises(RequestError, match=message):
        RidgeEncoder(**params).fit(X, Y)


def test_wrong_data_are_named(rng):
    X, Y = _problem(rng, (20, 5))
    with pytest.raises(ValueError, match="Input X contains NaN"):
        RidgeEncoder().fit(np.where(X > 3, np.nan, X), Y)
    with pytest.raises(RequestError, match="Target 2 has 1 responses"):
        RidgeEncoder().fit(X, np.where((np.arange(20)[:, None] > 0) & (np.arange(4) == 2), np.nan, Y))
    with pytest.raises(RequestError, match="must be >= 0 and not all 0, got -1"):
        RidgeEncoder().fit(X, Y, sample_weight=-np.ones(20))
    with pytest.raises(ValueError, match=r"non-zero number|not all 0"):
        RidgeEncoder().fit(X, Y, sample_weight=np.zeros(20))


CLOSED = pytest.mark.parametrize("cv", ["loo", "gcv"])


@CLOSED
@pytest.mark.parametrize("shape", SHAPES)
def test_closed_forms_choose_near_what_many_folds_choose(rng, shape, cv):
    X, Y = _problem(rng, shape, noise=5.0)
    weight = rng.random(len(X)) + 0.5
    found = RidgeEncoder(alphas=ALPHAS, cv=cv).fit(X, Y, sample_weight=weight)
    expected = Ridge(alpha=found.alpha_, solver="svd").fit(X, Y, sample_weight=weight)
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-6, atol=1e-9)
    assert set(found.alpha_) <= set(ALPHAS)
    assert (found.best_score_ < 1).all()


@CLOSED
def test_closed_forms_leave_missing_trials_out(rng, cv):
    X, Y = _problem(rng, (50, 10), noise=5.0)
    Y[:9, 1] = np.nan
    found = RidgeEncoder(alphas=ALPHAS, cv=cv).fit(X, Y)
    alone = RidgeEncoder(alphas=ALPHAS, cv=cv).fit(X[9:], Y[9:, 1])
    np.testing.assert_allclose(found.best_score_[1], alone.best_score_, rtol=1e-9)
    np.testing.assert_allclose(found.coef_[1], alone.coef_, rtol=1e-7)


@CLOSED
def test_closed_forms_do_not_split_groups(rng, cv):
    X, Y = _problem(rng, (30, 5))
    RidgeEncoder(cv=cv).fit(X, Y, groups=np.arange(30))
    with pytest.raises(RequestError, match="30 stimuli are in 10 groups"):
        RidgeEncoder(cv=cv).fit(X, Y, groups=np.repeat(np.arange(10), 3))


@pytest.mark.parametrize("cv", [3, "loo", "gcv"])
def test_a_shared_penalty_has_the_best_mean_score(rng, cv):
    X, Y = _problem(rng, (50, 10), n_targets=6, noise=8.0)
    Y[:4, 2] = np.nan  # two patterns of missing trials, one penalty
    each = np.stack(
        [RidgeEncoder(alphas=[alpha], cv=cv).fit(X, Y).best_score_ for alpha in ALPHAS]
    )  # (n_alphas, n_targets)
    shared = RidgeEncoder(alphas=ALPHAS, cv=cv, penalty="shared").fit(X, Y)
    best = each.mean(axis=1).argmax()
    np.testing.assert_array_equal(shared.alpha_, ALPHAS[best])
    np.testing.assert_allclose(shared.best_score_, each[best], rtol=1e-9)
    np.testing.assert_allclose(shared.coef_, RidgeEncoder(ALPHAS[best]).fit(X, Y).coef_, rtol=1e-9)


def test_targets_of_one_label_share_a_penalty(rng):
    X, Y = _problem(rng, (50, 10), n_targets=6, noise=8.0)
    labels = np.array(["V1", "V4", "V1", "IT", "V4", "V1"])
    found = RidgeEncoder(alphas=ALPHAS, penalty=labels).fit(X, Y)
    for label in set(labels):
        members = labels == label
        alone = RidgeEncoder(alphas=ALPHAS, penalty="shared").fit(X, Y[:, members])
        np.testing.assert_array_equal(found.alpha_[members], alone.alpha_)
        np.testing.assert_allclose(found.coef_[members], alone.coef_, rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cv", [5, "loo", "gcv"])
def test_collinear_layers_share_their_coefficients(rng, shape, cv):
    X, Y = _problem(rng, shape, noise=5.0)
    one = RidgeEncoder(alphas=[10.0, 100.0], cv=cv).fit(X, Y)
    twice = RidgeEncoder(alphas=[20.0, 200.0], cv=cv).fit(np.hstack([X, X]), Y)
    np.testing.assert_allclose(twice.alpha_, 2 * one.alpha_)
    np.testing.assert_allclose(twice.coef_, np.hstack([one.coef_, one.coef_]) / 2, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(twice.best_score_, one.best_score_, rtol=1e-6)


@pytest.mark.parametrize("cv", [5, "loo", "gcv"])
def test_duplicated_stimuli_count_like_weights(rng, cv):
    X, Y = _problem(rng, (12, 30), noise=5.0)
    found = RidgeEncoder(alphas=ALPHAS, cv=cv).fit(np.repeat(X, 2, axis=0), np.repeat(Y, 2, axis=0))
    expected = Ridge(alpha=found.alpha_, solver="svd").fit(X, Y, sample_weight=np.full(12, 2.0))
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-5, atol=1e-8)
    assert np.isfinite(found.best_score_).all()


@pytest.mark.parametrize("n_stimuli", [2, 3, 5, 9])
@pytest.mark.parametrize("n_features", [1, 4, 20])
@pytest.mark.parametrize("cv", [2, "loo", "gcv"])
def test_few_stimuli_are_fitted(rng, n_stimuli, n_features, cv):
    X, Y = _problem(rng, (n_stimuli, n_features))
    if cv == 2 and n_stimuli < 4:
        with pytest.raises(RequestError, match="No inner fold has two stimuli"):
            RidgeEncoder(cv=cv).fit(X, Y)
        return
    found = RidgeEncoder(cv=cv).fit(X, Y)
    assert np.isfinite(found.best_score_).all()
    expected = Ridge(alpha=found.alpha_, solver="svd").fit(X, Y)
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"cv": "loocv"}, "'loo', 'gcv' or 'held-out', got 'loocv'"),
        ({"penalty": "group"}, "'target', 'shared' or a label per target, got 'group'"),
        ({"penalty": ["a", "b"]}, r"penalty has shape \(2,\), but there are 4 targets"),
        ({"search_precision": "half"}, "exact, reduced, got 'half'"),
    ],
)
def test_wrong_searches_are_named(rng, params, message):
    X, Y = _problem(rng, (20, 5))
    with pytest.raises(RequestError, match=message):
        RidgeEncoder(**params).fit(X, Y)


@pytest.mark.parametrize("shape", [(900, 300), (500, 1500)])
@pytest.mark.parametrize("cv", [5, "loo", "gcv"])
@pytest.mark.parametrize("search_precision", ["exact", "reduced"])
def test_memory_beside_the_solution_is_at_most_half_as_much_again_as_the_data(
    rng, shape, cv, search_precision
):
    X = rng.standard_normal(shape).astype(np.float32)
    Y = rng.standard_normal((shape[0], 3000)).astype(np.float32)
    encoder = RidgeEncoder(cv=cv, search_precision=search_precision)
    encoder.fit(X[:50], Y[:50, :5])
    tracemalloc.start()
    encoder.fit(X, Y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - encoder.coef_.nbytes < 1.5 * (X.nbytes + Y.nbytes + 8 * min(shape) ** 2)
