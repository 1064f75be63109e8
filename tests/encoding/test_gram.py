"""Statistics of folds, made by subtraction, equal those of an explicit refit."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.encoding.ridge._gram import GramStatistics
from featpipe.encoding.ridge._ridge import ridge

SHAPES = [(60, 12), (40, 40), (12, 60)]  # tall, square, wide


def _centred(X, rows, weight):
    return X[rows] - np.average(X[rows], axis=0, weights=weight[rows])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_a_fold_is_decomposed_as_if_its_features_were_read_again(rng, shape, offset):
    X, weight = rng.standard_normal(shape) + offset, rng.random(shape[0]) + 0.1
    rows = np.sort(rng.permutation(shape[0])[: shape[0] * 4 // 5])
    subset = GramStatistics(X, weight=weight).decompose(rows)
    weighted = np.sqrt(weight[rows])[:, None] * _centred(X, rows, weight)
    expected = np.linalg.svd(weighted, compute_uv=False) ** 2
    found = subset.decomposition.eigenvalues[::-1][: len(expected)]
    np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-6, atol=1e-9 * expected[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_multiply_to_the_features(rng, shape):
    X, weight = rng.standard_normal(shape) + 3, rng.random(shape[0]) + 0.1
    rows = np.arange(shape[0])[::-1]  # any order
    subset = GramStatistics(X, weight=weight).decompose(rows)
    factors = subset.decomposition
    expected = weight[rows, None] * _centred(X, rows, weight)
    np.testing.assert_allclose(factors.left * factors.scale @ subset.right().T, expected, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_projection_is_onto_the_right_factor(rng, shape):
    X, weight = rng.standard_normal(shape) + 3, rng.random(shape[0]) + 0.1
    train, test = np.arange(8), np.arange(8, shape[0])
    subset = GramStatistics(X, weight=weight).decompose(train)
    expected = (X[test] - np.average(X[train], axis=0, weights=weight[train])) @ subset.right()
    large = subset.decomposition.eigenvalues > 1e-6  # the others are scaled rounding
    np.testing.assert_allclose(subset.project(test)[:, large], expected[:, large], atol=1e-8)


def test_the_smaller_side_is_factorised():
    assert GramStatistics(np.ones((5, 3))).matrix.shape == (3, 3)
    assert GramStatistics(np.ones((3, 5))).matrix.shape == (3, 3)


@pytest.mark.parametrize("rows", [[0, 0, 1, 2, 3, 4, 5, 6, 7, 8], [1, 2], list(range(30))])
def test_feature_gram_of_any_rows_is_their_gram(rng, rows):
    X = rng.standard_normal((30, 4))
    gram = GramStatistics(X)
    chosen = (X - X.mean(axis=0))[rows]
    np.testing.assert_allclose(gram.feature_gram(np.array(rows)), chosen.T @ chosen, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_do_not_depend_on_the_chunks(rng, shape, monkeypatch):
    X = rng.standard_normal(shape)
    whole = GramStatistics(X).matrix
    monkeypatch.setattr("featpipe.encoding.ridge._gram._CHUNK_VALUES", 7 * max(shape))
    np.testing.assert_allclose(GramStatistics(X).matrix, whole, atol=1e-12)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("rows", [np.arange(30), np.arange(4, 25)])
def test_a_gram_matrix_accumulated_elsewhere_serves_as_well(rng, center, rows):
    X, Y = rng.standard_normal((30, 50)) + 2, rng.standard_normal((30, 4))
    weight, alpha = rng.random(30) + 0.1, np.array([0.1, 1.0, 10.0, 100.0])
    parts = [slice(0, 20), slice(20, 45), slice(45, 50)]
    matrix = sum(_centred_products(X[:, part], weight, center) for part in parts)
    streamed = GramStatistics.from_stimulus_products(
        matrix,
        lambda: ((part, X[:, part]) for part in parts),
        n_features=50,
        dtype=X.dtype,
        weight=weight,
        center=center,
    )
    found = ridge(streamed, Y, alpha, rows=rows)
    expected = ridge(GramStatistics(X, weight=weight, center=center), Y, alpha, rows=rows)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-11)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-11)


def _centred_products(block, weight, center):
    block = block - np.average(block, axis=0, weights=weight) if center else block
    return block @ block.T
