"""Planted unique and shared variance is found, and parts add up to the whole."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featpipe.blocks import LayerBlocks
from featpipe.encoding import RidgeEncoder
from featpipe.errors import RequestError
from featpipe.features import CachedFeatures
from featpipe.metrics import r2
from featpipe.model_selection import evaluate, partition_r2, partition_variance


@pytest.fixture
def planted(rng):
    """Three features of three spaces, one that two share, and responses in known shares of variance."""
    uncorrelated = np.linalg.qr(rng.standard_normal((3000, 6)))[0] * np.sqrt(3000)
    own, common, noise = np.split(uncorrelated, [3, 4], axis=1)
    X = np.hstack([own[:, :1], common, own[:, 1:2], common + 1e-9, own[:, 2:]])
    spaces = {"early": slice(0, 2), "late": [2, 3], "words": np.arange(5) == 4}
    shares = np.array([[0.3, 0.1, 0.0, 0.2], [0.0, 0.0, 0.5, 0.3]])  # early, late, words, common
    Y = np.hstack([own, common]) @ np.sqrt(shares).T + noise * np.sqrt(1 - shares.sum(axis=1))
    return spaces, X, Y, shares


def test_planted_parts_of_two_spaces(planted):
    spaces, X, Y, shares = planted
    two = {name: spaces[name] for name in ("early", "late")}
    found = partition_variance(two, X, Y, estimator=LinearRegression(), target_names=["a", "b"])
    assert list(found.parts) == ["early", "late", "early & late"]
    np.testing.assert_allclose(found.parts.to_numpy(), shares[:, [0, 1, 3]], atol=0.03)
    assert list(found.r2) == ["early", "late", "early + late"]
    np.testing.assert_allclose(found.r2.loc["a"], [0.5, 0.3, 0.6], atol=0.03)


def test_planted_parts_of_three_spaces(planted):
    spaces, X, Y, shares = planted
    found = partition_variance(spaces, X, Y, estimator=RidgeEncoder(alphas=[0.1, 10.0]))
    parts = found.parts
    np.testing.assert_allclose(
        parts[["early", "late", "words", "early & late"]].to_numpy(), shares, atol=0.03
    )
    rest = parts[["early & words", "late & words", "early & late & words"]]
    np.testing.assert_allclose(rest, 0, atol=0.02)
    np.testing.assert_allclose(parts.sum(axis=1), found.r2["early + late + words"])
    np.testing.assert_allclose(found.means({"b": np.array([False, True])}).loc["b"], parts.iloc[1])


def test_combinations_match_models_fitted_one_by_one(rng):
    X, Y = rng.standard_normal((60, 5)), rng.standard_normal((60, 3))
    folds = list(KFold(4).split(X))
    found = partition_variance({"a": [0, 3], "b": [1, 2]}, X, Y, estimator=LinearRegression(), cv=folds)
    for name, columns in (("a", [0, 3]), ("b", [1, 2]), ("a + b", [0, 3, 1, 2])):
        expected = evaluate(LinearRegression(), X[:, columns], Y, cv=folds, scoring="r2")
        np.testing.assert_allclose(found.r2[name], expected.mean()["r2"])


def test_parts_follow_inclusion_and_exclusion(rng):
    sets = [("a",), ("b",), ("c",), ("a", "b"), ("c", "a"), ("b", "c"), ("a", "b", "c")]
    f = {frozenset(names): value for names, value in zip(sets, rng.random((7, 4)), strict=True)}
    found = partition_r2({names: f[frozenset(names)] for names in sets})

    def of(names):
        return f[frozenset(names)]

    np.testing.assert_allclose(found["a",], of("abc") - of("bc"))
    np.testing.assert_allclose(found["a", "b"], of("bc") + of("ac") - of("abc") - of("c"))
    shared = of("abc") - of("ab") - of("ac") - of("bc") + of("a") + of("b") + of("c")
    np.testing.assert_allclose(found["a", "b", "c"], shared)
    np.testing.assert_allclose(sum(found.values()), of("abc"))


def test_layers_are_spaces(rng):
    values = [rng.standard_normal((40, 2)), rng.standard_normal((40, 3, 1))]
    ids = np.array([f"image_{number}" for number in range(40)])
    row = {name: position for position, name in enumerate(ids)}
    blocks = LayerBlocks(
        ids, names=["conv1", "conv2"], shapes=[(2,), (3, 1)], dims=[("channel",), ("channel", "width")],
        digests=["d1", "d2"], read=lambda layer, wanted: values[layer][[row[i] for i in wanted]].astype(np.float32),
    )  # fmt: skip
    Y = rng.standard_normal((40, 2))
    found = partition_variance(
        {"one": "conv1", "two": ["conv2"]}, blocks, Y, estimator=RidgeEncoder(alpha=1.0)
    )
    X = np.hstack([values[0], values[1][:, :, 0]]).astype(np.float32)
    expected = partition_variance({"one": [0, 1], "two": [2, 3, 4]}, X, Y, estimator=RidgeEncoder(alpha=1.0))
    np.testing.assert_allclose(found.parts, expected.parts, atol=1e-6)


def test_ids_are_read_and_scaled_inside_the_folds(tiny_cache, rng):
    ids = np.array([f"image_{number}" for number in range(20)])
    spaces = {
        layer: make_pipeline(CachedFeatures(cache=str(tiny_cache), layers=[layer]), StandardScaler())
        for layer in ("stem", "head")
    }
    Y = rng.standard_normal((20, 3))
    folds = list(KFold(4).split(ids))
    found = partition_variance(spaces, ids, Y, estimator=RidgeEncoder(alpha=10.0), cv=folds)
    predicted = np.empty_like(Y)
    for train, test in folds:
        parts = [spaces[layer].fit(ids[train]) for layer in spaces]
        features = [np.hstack([part.transform(ids[rows]) for part in parts]) for rows in (train, test)]
        predicted[test] = RidgeEncoder(alpha=10.0).fit(features[0], Y[train]).predict(features[1])
    expected = np.mean([r2(Y[test], predicted[test]) for _, test in folds], axis=0)
    np.testing.assert_allclose(found.r2["stem + head"], expected, atol=1e-5)


class Banded(LinearRegression):
    """Keeps what it was told."""

    told = None

    def __init__(self, widths=None):
        super().__init__()
        self.widths = widths

    def fit(self, X, y, sample_weight=None):
        type(self).told = [*(type(self).told or []), (self.widths, sample_weight)]
        return super().fit(X, y, sample_weight)


def test_an_estimator_of_bands_is_told_their_widths(rng, monkeypatch):
    monkeypatch.setattr(Banded, "told", None)
    X, Y = rng.standard_normal((30, 5)), rng.standard_normal((30, 1))
    partition_variance({"a": slice(0, 2), "b": [2, 3, 4]}, X, Y, estimator=Banded(), cv=2)
    assert [widths for widths, _ in Banded.told] == [(2,), (2,), (3,), (3,), (2, 3), (2, 3)]


def test_weights_and_groups_reach_the_estimator(rng):
    X, Y = rng.standard_normal((40, 4)), rng.standard_normal((40, 2))
    weight, groups = rng.random(40), np.repeat(np.arange(10), 4)
    spaces = {"a": [0, 1], "b": [2, 3]}
    encoder = RidgeEncoder(alphas=[1.0, 100.0], cv=3)
    found = partition_variance(spaces, X, Y, estimator=encoder, cv=4, groups=groups, sample_weight=weight)
    expected = evaluate(encoder, X, Y, cv=4, scoring="r2", groups=groups, sample_weight=weight)
    np.testing.assert_allclose(found.r2["a + b"], expected.mean()["r2"])
    plain = partition_variance(spaces, X, Y, estimator=encoder, cv=4, groups=groups)
    assert not np.allclose(plain.r2, found.r2)


@pytest.mark.parametrize(
    ("spaces", "X", "message"),
    [
        ({"a": [0]}, np.ones((20, 2)), "2 to 5 feature spaces, got 1"),
        ({"a + b": [0], "c": [1]}, np.ones((20, 2)), "named without"),
        ({"a": [0], "b": [7]}, np.ones((20, 2)), r"\[7\] names no columns of X, which has 2"),
        ({"a": [0], "b": []}, np.ones((20, 2)), r"\[\] names no columns"),
        ({"a": [0], "b": "layer2"}, np.ones((20, 2)), "'layer2' names no columns"),
        ({"a": [0], "b": [True]}, np.ones((20, 2)), r"\[True\] names no columns"),
        ([[0], [1]], np.ones((20, 2)), "map names to feature spaces, got list"),
        ({"a": ["x"], "b": ["y"]}, np.arange(20).astype(str), "Give a transformer of X"),
    ],
)
def test_bad_input_is_named(spaces, X, message):
    with pytest.raises(RequestError, match=message):
        partition_variance(spaces, X, np.ones((20, 1)), estimator=LinearRegression())


def test_missing_combination_is_named():
    with pytest.raises(RequestError, match=r"a \+ b is missing"):
        partition_r2({("a",): np.ones(2), ("b",): np.ones(2)})
