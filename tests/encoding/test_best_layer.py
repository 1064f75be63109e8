"""The layer is chosen by held-out scores of inner folds, for each target, each region or all."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from featpipe.blocks import LayerBlocks
from featpipe.encoding import RidgeEncoder
from featpipe.encoding.layers._best_layer import BestLayer, best_layers
from featpipe.errors import RequestError
from featpipe.metrics import METRICS

WIDTHS = [3, 5, 2]
RIDGE = RidgeEncoder(alphas=[0.1, 10.0, 1000.0], cv=3)


@parametrize_with_checks([BestLayer(RidgeEncoder(cv="gcv")), BestLayer(Ridge(), per="all", scoring="r2")])
def test_scikit_learn_is_at_home(estimator, check):
    check(estimator)


def _layers(X):
    return np.split(X, np.cumsum(WIDTHS)[:-1], axis=1)


@pytest.fixture
def problem(rng):
    """Targets 0 and 1 come from the first layer, 2 to 4 from the second, 5 from the third."""
    X = rng.standard_normal((90, sum(WIDTHS)))
    source = [0, 0, 1, 1, 1, 2]
    Y = np.stack([_layers(X)[s] @ rng.standard_normal(WIDTHS[s]) for s in source], axis=1)
    return X, Y + 0.3 * rng.standard_normal(Y.shape), source


def test_every_target_finds_its_layer(problem):
    X, Y, source = problem
    found = BestLayer(RIDGE, widths=WIDTHS).fit(X, Y)
    assert found.layer_.tolist() == [str(s) for s in source]
    assert set(found.estimators_) == {"0", "1", "2"}
    expected = np.stack(
        [
            RidgeEncoder(RIDGE.alphas[0]).fit(_layers(X)[s], Y[:, t]).predict(_layers(X)[s])
            for t, s in enumerate(source)
        ],
        axis=1,
    )
    np.testing.assert_allclose(found.predict(X), expected, atol=0.2)
    np.testing.assert_allclose(X @ found.coef_.T + found.intercept_, found.predict(X))
    assert np.all(found.coef_[0, 3:] == 0)


@pytest.mark.parametrize("scoring", ["pearson_r", "r2"])
def test_scores_equal_explicit_refitting(problem, rng, scoring):
    X, Y, _ = problem
    Y = Y + 3 * rng.standard_normal(Y.shape)
    Y[:5, 1] = np.nan
    weight = rng.random(len(X))
    splits = list(KFold(4, shuffle=True, random_state=2).split(X))
    found = BestLayer(RIDGE, widths=WIDTHS, cv=splits, scoring=scoring).fit(X, Y, sample_weight=weight)
    expected = [
        np.mean(
            [
                METRICS[scoring](
                    Y[test],
                    RidgeEncoder(**RIDGE.get_params())
                    .fit(layer[train], Y[train], sample_weight=weight[train])
                    .predict(layer[test]),
                    sample_weight=weight[test],
                )
                for train, test in splits
            ],
            axis=0,
        )
        for layer in _layers(X)
    ]
    np.testing.assert_allclose(found.layer_scores_, expected, atol=1e-7)
    np.testing.assert_array_equal(found.layer_, np.argmax(expected, axis=0).astype(str))


def test_all_targets_choose_together(problem):
    X, Y, _ = problem
    found = BestLayer(RIDGE, widths=WIDTHS, per="all").fit(X, Y)
    assert set(found.layer_) == {"1"}
    np.testing.assert_allclose(found.coef_[:, 3:8], found.estimators_["1"].coef_)


def test_regions_choose_by_themselves_and_the_rest_together(problem):
    X, Y, _ = problem
    rois = {"lh.V1v": np.arange(6) < 3, "rh.V4": [5]}
    found = BestLayer(RIDGE, widths=WIDTHS, per="group", rois=rois).fit(X, Y)
    assert found.layer_.tolist() == ["0", "0", "0", "1", "1", "2"]


def test_a_target_in_two_regions_takes_the_best_of_their_means():
    scores = np.array([[0.9, 0.5, 0.0], [0.6, 0.6, 0.5]])
    rois = {"a": np.array([0, 1]), "b": np.array([1, 2])}
    np.testing.assert_array_equal(best_layers(scores, per="group", rois=rois), [0, 1, 1])


def test_the_choice_does_not_look_at_what_is_scored(problem):
    """Noise chooses any layer, and its held-out score is then around 0."""
    X, *_ = problem
    noise = np.random.default_rng(5).standard_normal((90, 200))
    found = BestLayer(RIDGE, widths=WIDTHS).fit(X[:60], noise[:60])
    assert abs(METRICS["pearson_r"](noise[60:], found.predict(X[60:])).mean()) < 0.05
    assert found.layer_scores_.max(axis=0).mean() > 0.02  # biased by the choice: never a result


def test_blocks_equal_a_matrix_with_widths(problem):
    X, Y, _ = problem
    X = X.astype(np.float32)
    layers = _layers(X)
    blocks = LayerBlocks(
        [str(row) for row in range(90)],
        names=["a", "b", "c"],
        shapes=[(width,) for width in WIDTHS],
        dims=[("channel",)] * 3,
        digests=["a", "b", "c"],
        read=lambda layer, ids: layers[layer][ids.astype(int)],
    )
    of_blocks, of_matrix = BestLayer(RIDGE).fit(blocks, Y), BestLayer(RIDGE, widths=WIDTHS).fit(X, Y)
    np.testing.assert_allclose(of_blocks.predict(blocks), of_matrix.predict(X), rtol=1e-5)
    assert of_blocks.layer_.tolist() == list("aabbbc")
    with pytest.raises(RequestError, match="was fitted to layers"):
        of_blocks.predict(blocks.select(["c"]))


def test_one_response_has_one_dimension(problem):
    X, Y, _ = problem
    found = BestLayer(RIDGE, widths=WIDTHS).fit(X, Y[:, 5])
    assert found.layer_ == "2"
    assert found.predict(X).shape == (90,)
    assert found.coef_.shape == (10,)
    assert found.layer_scores_.shape == (3,)


def test_penalties_given_per_target_follow_their_targets(problem):
    X, Y, _ = problem
    alpha = np.array([0.1, 1.0, 2.0, 30.0, 4.0, 5.0])
    found = BestLayer(RidgeEncoder(alpha), widths=WIDTHS).fit(X, Y)
    expected = Ridge(30.0).fit(_layers(X)[1], Y[:, 3])
    np.testing.assert_allclose(found.coef_[3, 3:8], expected.coef_, rtol=1e-6)


def test_searches_clone_and_pickle_it(problem):
    X, Y, _ = problem
    closed = RidgeEncoder(alphas=RIDGE.alphas, cv="gcv")
    search = GridSearchCV(
        BestLayer(closed, widths=WIDTHS, cv=3), {"per": ["all", "target"]}, error_score="raise"
    )
    found = search.fit(X, Y).best_estimator_
    assert found.per == "target"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).predict(X), found.predict(X))


def test_without_coefficients_there_are_none(problem):
    X, Y, _ = problem
    found = BestLayer(KNeighborsRegressor(), widths=WIDTHS).fit(X, Y)
    assert not hasattr(found, "coef_")
    assert found.predict(X).shape == Y.shape


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"per": "roi"}, "target, group, all, got 'roi'"),
        ({"per": "group"}, "needs rois"),
        ({"scoring": "mse"}, "pearson_r, r2, got 'mse'"),
        ({"cv": 100}, "100 folds need at least 100 stimuli"),
    ],
)
def test_wrong_requests_are_named(problem, params, message):
    X, Y, _ = problem
    with pytest.raises(RequestError, match=message):
        BestLayer(RIDGE, widths=WIDTHS, **params).fit(X, Y)
