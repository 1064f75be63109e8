"""`FeatureReweightedRSA`: equals its references, recovers planted weights, and leaks nothing between sets."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
import skops.io
from scipy.optimize import nnls
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import GridSearchCV, KFold

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.rsa import RDMs, channel_statistics, concat, rdm_rho
from featpipe.rsa.reweighted._feature_reweighted import FeatureReweightedRSA
from featpipe.rsa.reweighted._solver import non_negative_ridge, ridge_path
from featpipe.rsa.reweighted._target import inner_folds, pair_targets
from featpipe.rsa.statistics._held import STATISTICS

SHAPES = [(6, 4, 4), (5, 3, 3), (7,)]
ONE = {"alphas": 0.1, "balance": False, "floor": 0.0}


@pytest.fixture(autouse=True)
def _nothing_held():
    STATISTICS.clear()
    yield
    STATISTICS.clear()


def as_blocks(ids, layers, digest="net"):
    place = {label: row for row, label in enumerate(ids.tolist())}
    return LayerBlocks(
        ids,
        names=[f"stage{number}" for number in range(len(layers))],
        shapes=[layer.shape[1:] for layer in layers],
        dims=[("channel", "height", "width")[: layer.ndim - 1] for layer in layers],
        digests=[f"{digest}{number}" for number in range(len(layers))],
        read=lambda layer, asked: layers[layer][[place[label] for label in asked.tolist()]],
    )


def blocks_of(counts, seed=0):
    """LayerBlocks of smooth noise: stimulus sets a, b, … of so many stimuli."""
    rng = np.random.default_rng(seed)
    ids = np.array([f"{name}/{k:02d}" for name, n in zip("abc", counts, strict=False) for k in range(n)])
    layers = [
        (
            rng.standard_normal((len(ids), *shape))
            + rng.standard_normal((len(ids), shape[0], *[1] * (len(shape) - 1)))
        )
        for shape in SHAPES
    ]
    return as_blocks(ids, [layer.astype(np.float32) for layer in layers], f"seed{seed}")


def naive_columns(blocks, form="squared"):
    """Dissimilarities of each channel by loops: (n_stimuli, n_stimuli, n_channels)."""
    found = []
    for _, rows in blocks:
        rows = rows.reshape(len(rows), rows.shape[1], -1).astype(np.float64)
        if form == "correlation":
            flat = rows.reshape(len(rows), -1)
            rows = rows - flat.mean(axis=1)[:, None, None]
            rows /= np.sqrt((rows**2).sum(axis=(1, 2)))[:, None, None]
            found += [-rows[:, c] @ rows[:, c].T for c in range(rows.shape[1])]
        else:
            found += [
                ((rows[:, None, c] - rows[None, :, c]) ** 2).mean(axis=-1) for c in range(rows.shape[1])
            ]
    return np.stack(found, axis=-1)


def naive_metric(blocks, train):
    """The features of a full metric: products of differences, (n_stimuli, n_stimuli, n_channels²) per layer."""
    found = []
    upper = np.triu_indices(len(train), 1)
    for _, rows in blocks:
        means = rows.reshape(len(rows), rows.shape[1], -1).astype(np.float64).mean(axis=2)
        deviation = means[train].std(axis=0)
        rows = (means - means[train].mean(axis=0)) / deviation
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        gaps = rows[:, None] - rows[None]
        size = np.sqrt(np.mean((gaps**2).sum(axis=2)[np.ix_(train, train)][upper] ** 2))
        found.append((gaps[..., :, None] * gaps[..., None, :] / size).reshape(*gaps.shape[:2], -1))
    return np.concatenate(found, axis=-1) / np.sqrt(len(blocks.names))


def planted(blocks, weights, noise=0.0, seed=0, n_subjects=2, form="squared"):
    """RDMs of a weighted sum of the dissimilarities of channels; pairs across sets not measured."""
    rng = np.random.default_rng(seed)
    clean = naive_columns(blocks, form) @ weights
    sets = np.array([i[0] for i in blocks.ids])
    clean[sets[:, None] != sets] = np.nan
    bumps = rng.standard_normal((n_subjects, *clean.shape)) * noise * np.nanstd(clean)
    return RDMs(clean + bumps + bumps.swapaxes(1, 2), blocks.ids, targets=["V1"] * n_subjects)


def upper(values):
    return values[np.triu_indices(len(values), 1)]


@pytest.mark.parametrize(("n", "p"), [(40, 7), (7, 40)])  # tall, wide
def test_the_path_solves_every_penalty_as_ridge_does(rng, n, p):
    Z, y, penalties = rng.standard_normal((n, p)), rng.standard_normal(n), np.array([1e-3, 1.0, 1e3])
    weights = Z.T @ ridge_path(lambda v: Z @ (Z.T @ v), y, penalties, tol=1e-12)
    for place, penalty in enumerate(penalties):
        expected = SklearnRidge(alpha=penalty, fit_intercept=False).fit(Z, y).coef_
        np.testing.assert_allclose(weights[:, place], expected, rtol=1e-7, atol=1e-10)


def test_a_path_that_does_not_arrive_says_so(rng):
    K = np.diag(np.logspace(0, 8, 60))
    with pytest.warns(ConvergenceWarning, match="Leave out the smallest penalties"):
        ridge_path(lambda v: K @ v, rng.standard_normal(60), np.array([1e-6]), max_steps=10)


def test_nothing_to_explain_has_no_weights():
    assert not ridge_path(lambda v: v, np.zeros(5), np.array([1.0, 2.0])).any()


def test_non_negative_ridge_equals_nnls_on_the_augmented_system(rng):
    Z, y, penalties = rng.standard_normal((50, 12)), rng.standard_normal(50), np.array([0.5, 20.0])
    weights = non_negative_ridge(Z.T @ Z, Z.T @ y, penalties)
    for place, penalty in enumerate(penalties):
        augmented = np.vstack([Z, np.sqrt(penalty) * np.eye(12)])
        expected, _ = nnls(augmented, np.concatenate([y, np.zeros(12)]))
        np.testing.assert_allclose(weights[:, place], expected, atol=1e-10)


@pytest.mark.parametrize("form", ["squared", "correlation"])
@pytest.mark.parametrize("signed", [True, False])
def test_equals_ridge_on_predictors_standardised_within_sets(form, signed):
    blocks = blocks_of([12, 9])
    y = planted(blocks, np.random.default_rng(1).standard_normal(18), noise=1.0, form=form)
    model = FeatureReweightedRSA("channel", form, signed=signed, normalisation="zscore", **ONE).fit(blocks, y)
    Z, target = [], []
    for name in "ab":
        rows = np.flatnonzero(np.char.startswith(blocks.ids, name))
        own = naive_columns(blocks[rows], form)[np.triu_indices(len(rows), 1)]
        Z.append(own - own.mean(axis=0))
        target.append(pair_targets(y[rows], {"V1": 1.0}, "zscore"))
    Z, target = np.concatenate(Z), np.concatenate(target)
    deviation = np.sqrt((Z**2).mean(axis=0))
    Z = Z / deviation / np.sqrt(18)
    if signed:
        weights = SklearnRidge(alpha=0.1, fit_intercept=False).fit(Z, target).coef_
    else:
        weights, _ = nnls(np.vstack([Z, np.sqrt(0.1) * np.eye(18)]), np.append(target, np.zeros(18)))
    np.testing.assert_allclose(
        model.coef_, weights / deviation / np.sqrt(18), rtol=1e-3, atol=1e-4 * np.abs(model.coef_).max()
    )


def test_a_metric_equals_ridge_on_all_products_of_differences():
    blocks = blocks_of([10, 4])
    train = np.arange(10)
    y = planted(blocks[train], np.arange(18.0), noise=1.0)
    model = FeatureReweightedRSA("metric", normalisation="zscore", **ONE).fit(blocks[train], y)
    products = naive_metric(blocks, train)
    Z = products[:10, :10][np.triu_indices(10, 1)]
    target = pair_targets(y, {"V1": 1.0}, "zscore")
    ridge = SklearnRidge(alpha=0.1).fit(Z, target)
    np.testing.assert_allclose(
        upper(model.predict(blocks).values[0]), ridge.predict(products[np.triu_indices(14, 1)]), atol=1e-5
    )


@pytest.mark.parametrize("form", ["squared", "correlation"])
@pytest.mark.parametrize("kind", ["channel", "layer"])
def test_all_pairs_are_predicted_and_statistics_give_what_features_give(form, kind):
    blocks = blocks_of([9, 8])
    model = FeatureReweightedRSA(kind, form, **ONE).fit(blocks, planted(blocks, np.arange(18.0), form=form))
    both = model.predict(blocks).values[0]
    channels = naive_columns(blocks, form)
    if kind == "layer":
        bounds = np.cumsum([0, *(shape[0] for shape in SHAPES)])
        parts = [channels[..., start:stop] for start, stop in pairwise(bounds)]
        channels = np.stack([1 + p.sum(-1) if form == "correlation" else p.mean(-1) for p in parts], axis=-1)
    np.testing.assert_allclose(
        upper(both), model.intercept_ + upper(channels @ model.coef_), rtol=1e-4, atol=1e-4
    )
    rows = np.arange(9)
    channel_statistics(blocks[rows])
    np.testing.assert_allclose(upper(model.predict(blocks[rows]).values[0]), upper(both[:9, :9]), atol=1e-4)


@pytest.mark.parametrize("signed", [True, False])
def test_planted_weights_are_recovered(signed):
    blocks = blocks_of([30, 26])
    weights = np.random.default_rng(2).gamma(1.0, size=18)
    weights = weights * np.random.default_rng(3).choice([-1, 1], 18) if signed else weights
    model = FeatureReweightedRSA(signed=signed, normalisation="zscore", alphas=1e-4)
    fitted = model.fit(blocks, planted(blocks, weights))
    assert np.corrcoef(fitted.coef_, weights)[0, 1] > 0.99
    new = blocks_of([20], seed=5)
    assert rdm_rho(planted(new, weights, n_subjects=1), fitted.predict(new))[0] > 0.99


def test_a_planted_metric_is_found_where_channels_alone_cannot():
    blocks = blocks_of([40])
    new = blocks_of([25], seed=7)
    direction = np.random.default_rng(1).standard_normal(7)

    def along(one):
        projected = one.block(2) @ direction
        return RDMs((projected[:, None] - projected) ** 2, one.ids, targets=["V1"])

    found = {
        kind: rdm_rho(
            along(new),
            FeatureReweightedRSA(kind, layers="stage2", metric_layers="stage2", repeats=1)
            .fit(blocks, along(blocks))
            .predict(new),
        )[0]
        for kind in ("channel", "metric")
    }
    assert found["metric"] > found["channel"] + 0.1


def test_an_offset_of_one_set_changes_nothing():
    blocks = blocks_of([14, 12])
    y = planted(blocks, np.arange(18.0), noise=0.5)
    values = y.values.copy()
    values[:, :14, :14] = 3 * values[:, :14, :14] + 100
    moved = RDMs(values, y.ids, targets=y.targets)
    models = [FeatureReweightedRSA(normalisation="zscore", alphas=0.1).fit(blocks, one) for one in (y, moved)]
    np.testing.assert_allclose(models[0].coef_, models[1].coef_, rtol=1e-6)


def test_what_lies_outside_a_fold_does_not_reach_its_fit():
    blocks = blocks_of([20])
    y = planted(blocks, np.arange(18.0), noise=1.0)
    folds = [(np.arange(12), np.arange(12, 20))]
    first = FeatureReweightedRSA(cv=folds, alphas=[0.1, 10]).fit(blocks, y).cv_scores_
    values = y.values.copy()
    values[:, :12, 12:] = (
        values[:, 12:, :12].swapaxes(1, 2)[:, ::-1] if False else 0
    )  # pairs that cross the fold
    values[:, 12:, :12] = 0
    values[:, 12:, :12] = 0
    second = FeatureReweightedRSA(cv=folds, alphas=[0.1, 10]).fit(
        blocks, RDMs(values, y.ids, targets=y.targets)
    )
    np.testing.assert_array_equal(first, second.cv_scores_)


def test_order_of_rows_says_nothing():
    blocks = blocks_of([14, 12])
    y = planted(blocks, np.arange(18.0), noise=1.0)
    order = np.random.default_rng(0).permutation(26)
    straight = FeatureReweightedRSA(repeats=1).fit(blocks, y)
    shuffled = FeatureReweightedRSA(repeats=1).fit(blocks[order], y[order])
    np.testing.assert_array_equal(straight.coef_, shuffled.coef_)
    np.testing.assert_array_equal(shuffled.training_ids_, blocks.ids[order])


def test_main_effects_of_features_predict_those_of_new_stimuli():
    blocks, new = blocks_of([30]), blocks_of([20], seed=4)

    def effects(one):
        size = np.linalg.norm(one.block(2), axis=1)
        return RDMs(size[:, None] + size, one.ids, targets=["V1"])

    options = {"layers": "stage2", "alphas": 0.01}
    plain = FeatureReweightedRSA(**options).fit(blocks, effects(blocks)).predict(new)
    model = FeatureReweightedRSA(main_effects="features", **options).fit(blocks, effects(blocks))
    assert rdm_rho(effects(new), model.predict(new))[0] > max(0.9, rdm_rho(effects(new), plain)[0])
    assert model.feature_names_[-3:] == ["stage2 norm", "stage2 entropy", "stage2 distance to mean"]


def test_targets_are_averaged_with_their_weights_and_missing_pairs_left_out():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3, 6))
    vectors[0, 0] = np.nan
    y = RDMs.from_upper(vectors, targets=["EVC", "EVC", "IT"])
    z = RDMs.from_upper(vectors, targets=["EVC", "EVC", "IT"]).zscore().upper()
    found = pair_targets(y, {"EVC": 3.0, "IT": 1.0}, "zscore")
    np.testing.assert_allclose(found, (3 * np.nanmean(z[:2], axis=0) + z[2]) / 4)


def test_train_on_and_select_on_choose_targets():
    blocks = blocks_of([20])
    y = planted(blocks, np.arange(18.0), noise=0.3)
    noise = np.random.default_rng(0).standard_normal((1, 20, 20))
    joint = RDMs(
        np.concatenate([y.values, noise + noise.swapaxes(1, 2)]),
        y.ids,
        subjects=["0", "1", "0"],
        targets=["V1", "V1", "X"],
    )
    alone = FeatureReweightedRSA(train_on="V1", repeats=1).fit(blocks, joint)
    np.testing.assert_array_equal(alone.coef_, FeatureReweightedRSA(repeats=1).fit(blocks, y).coef_)
    weighted = FeatureReweightedRSA(train_on={"V1": 1, "X": 1e-9}, select_on="V1", repeats=1).fit(
        blocks, joint
    )
    np.testing.assert_allclose(weighted.coef_, alone.coef_, rtol=1e-5)
    assert alone.score(blocks, joint) == pytest.approx(rdm_rho(y, alone.predict(blocks)).mean())


def test_folds_deal_out_every_set():
    ids = blocks_of([12, 9]).ids
    folds = list(inner_folds(ids, 3, 2, 0))
    assert len(folds) == 6
    assert all([np.char.startswith(ids[test], name).sum() for name in "ab"] == [4, 3] for _, test in folds)
    assert [ids[test][0][0] for _, test in inner_folds(ids, "set", 1, 0)] == ["a", "b"]


def test_shares_choose_between_predictors():
    blocks = blocks_of([30, 24])
    y = planted(blocks, np.arange(18.0), noise=0.2)
    model = FeatureReweightedRSA(["channel", "metric"], repeats=1).fit(blocks, y)
    assert model.cv_scores_.shape == (3, 10)
    assert model.shares_["channel"] > 0
    both = FeatureReweightedRSA(["channel", "metric"], shares=[(3, 1)], alphas=1.0).fit(blocks, y)
    assert both.shares_ == {"channel": 0.75, "metric": 0.25}
    np.testing.assert_allclose(
        upper(both.predict(blocks[np.arange(30)]).values[0]),
        upper(both.predict(blocks).values[0][:30, :30]),
        atol=1e-4,
    )


def test_a_nearly_dead_channel_does_not_explode():
    blocks = blocks_of([16])
    layers = [blocks.block(k).copy() for k in range(3)]
    layers[2][:, 0] = 1e-6 * np.arange(16)
    dying = as_blocks(blocks.ids, layers, "dying")
    model = FeatureReweightedRSA(alphas=0.1).fit(dying, planted(blocks, np.arange(18.0), noise=1.0))
    prediction = model.predict(dying).values
    layers[2][0, 0] = 1.0  # it comes to life
    alive = FeatureReweightedRSA.predict(model, as_blocks(blocks.ids, layers, "alive")).values
    assert np.abs(alive - prediction).max() < 10 * np.ptp(prediction)


def test_is_a_scikit_learn_estimator(tmp_path):
    blocks = blocks_of([16, 15])
    y = planted(blocks, np.arange(18.0), noise=0.5)
    model = FeatureReweightedRSA(["channel", "metric"], main_effects="features", cv=2)
    grid = GridSearchCV(
        model,
        {"form": ["squared", "correlation"], "metric_layers": [None, "stage2"]},
        cv=KFold(2, shuffle=True, random_state=0),
        error_score="raise",
    ).fit(blocks, y)
    fitted = clone(model).fit(blocks, y)
    expected = fitted.predict(blocks).values
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict(blocks).values, expected)
    skops.io.dump(fitted, tmp_path / "model.skops")
    untrusted = skops.io.get_untrusted_types(file=tmp_path / "model.skops")
    assert [name for name in untrusted if not name.startswith("featpipe.")] == []
    loaded = skops.io.load(tmp_path / "model.skops", trusted=untrusted)
    np.testing.assert_array_equal(loaded.predict(blocks).values, expected)
    assert np.isfinite(grid.best_score_)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"predictors": "voxel"}, "predictors is 'voxel'"),
        ({"predictors": []}, r"predictors is \[\]"),
        ({"form": "cosine"}, "form is 'cosine'"),
        ({"main_effects": True}, "main_effects is True"),
        ({"normalisation": "none"}, "normalisation is 'none'"),
        ({"alphas": [0.0, 1.0]}, "alphas must be > 0"),
        ({"repeats": 0}, "repeats >= 1"),
        ({"predictors": "metric", "signed": False}, "need signed=True"),
        ({"shares": [(0.0,)]}, "shares must hold tuples of 1 numbers"),
        ({"layers": "stage9"}, "There is no layer 'stage9'"),
        ({"train_on": "IT"}, "names the target 'IT'"),
        ({"train_on": {"V1": -1.0}}, "weights > 0"),
        ({"cv": 9}, "a fold needs 3 of each"),
        ({"cv": "set"}, "only 'a'"),
    ],
)
def test_wrong_parameters_are_named(options, says):
    blocks = blocks_of([12])
    with pytest.raises(RequestError, match=says):
        FeatureReweightedRSA(**options).fit(blocks, planted(blocks, np.arange(18.0)))


def test_wrong_input_is_named():
    blocks = blocks_of([12])
    y = planted(blocks, np.arange(18.0))
    model = FeatureReweightedRSA(alphas=1.0)
    with pytest.raises(RequestError, match="needs LayerBlocks, got ndarray"):
        model.fit(np.zeros((12, 3)), y)
    with pytest.raises(RequestError, match="is fitted to RDMs, got ndarray"):
        model.fit(blocks, np.zeros(12))
    with pytest.raises(RequestError, match="same ids in the same order"):
        model.fit(blocks[::-1], y)
    with pytest.raises(RequestError, match="no pair of stimuli within a stimulus set"):
        model.fit(blocks[:1], y[:1])
    with pytest.raises(RequestError, match="somebody measured"):
        FeatureReweightedRSA(alphas=1.0).fit(blocks, RDMs(np.full((12, 12), np.nan), blocks.ids))
    other = as_blocks(blocks.ids, [blocks.block(0)], "other")
    with pytest.raises(RequestError, match="Use the features that they were fitted to"):
        model.fit(blocks, y).predict(other)


def test_joined_sets_predict_new_images_as_one_matrix():
    blocks = blocks_of([14, 12])
    weights = np.arange(18.0)
    new = blocks_of([10], seed=9)
    fresh = as_blocks(np.array([f"new{k}" for k in range(10)]), [new.block(k) for k in range(3)], "fresh")
    y = concat([planted(blocks[np.arange(14)], weights), planted(blocks[np.arange(14, 26)], weights)])
    predicted = FeatureReweightedRSA(repeats=1).fit(blocks, y).predict(fresh)
    truth = RDMs(naive_columns(fresh) @ weights, fresh.ids)
    assert predicted.values.shape == (1, 10, 10)
    assert rdm_rho(truth, predicted)[0] > 0.95
