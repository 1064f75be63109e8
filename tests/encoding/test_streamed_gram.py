"""Products of streamed rows equal those in memory, however rows are cut, and make the same ridge."""

from __future__ import annotations

import pickle

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline

from featpipe.blocks import LayerBlocks
from featpipe.encoding import (
    LayerScaler,
    PerROI,
    RidgeEncoder,
)
from featpipe.encoding.ridge import _encoder
from featpipe.encoding.ridge._gram import GramStatistics
from featpipe.encoding.ridge._ridge import missing_patterns, ridge
from featpipe.encoding.streamed import _products as _streamed
from featpipe.encoding.streamed import _ridge as _streamed_ridge
from featpipe.encoding.streamed import _tiles as _streamed_tiles
from featpipe.encoding.streamed._products import (
    cross_products,
    feature_columns,
    linear_predictions,
    stimulus_gram,
)
from featpipe.encoding.streamed._ridge import StreamedFeatures, fits_in_memory, predictions_from_stimuli
from featpipe.errors import RequestError
from featpipe.features import CachedFeatures
from featpipe.runs import RunFolder
from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache

SHAPES = {"a": (7,), "b": (3, 2, 5), "c": (301,)}


def _blocks(rng, n_stimuli, mean=2.0, start=0):
    layers = [
        (rng.standard_normal((n_stimuli, *shape)) + mean).astype(np.float32) for shape in SHAPES.values()
    ]
    return _as_blocks(layers, start)


def _as_blocks(layers, start=0):
    return LayerBlocks(
        [str(start + row) for row in range(len(layers[0]))],
        names=list(SHAPES),
        shapes=list(SHAPES.values()),
        dims=[("channel",), ("channel", "height", "width"), ("channel",)],
        digests=list(SHAPES),
        read=lambda layer, ids: layers[layer][ids.astype(int) - start],
    )


def _rows(n):
    """Bytes that hold about so many rows of all layers."""
    return 4 * n * sum(int(np.prod(shape)) for shape in SHAPES.values())


@pytest.mark.parametrize("memory", [1, _rows(5), _rows(11), _rows(40), None])
@pytest.mark.parametrize("center", [True, False])
def test_products_equal_those_in_memory(rng, monkeypatch, memory, center):
    monkeypatch.setattr(_streamed_tiles, "_COLUMNS", 50)
    blocks = _blocks(rng, 41, mean=100.0)
    gram, origin = stimulus_gram(blocks, memory=memory, center=center)
    X = blocks.to_matrix().astype(np.float64) - origin
    np.testing.assert_allclose(gram, X @ X.T, rtol=1e-5, atol=1e-6 * np.trace(X @ X.T) / 41)
    assert (gram == gram.T).all()
    assert center == origin.any()


def test_the_precision_of_products_can_be_asked_for(rng):
    blocks = _blocks(rng, 20, mean=1000.0)
    gram, origin = stimulus_gram(blocks, dtype=np.float64, memory=_rows(8))
    X = blocks.to_matrix().astype(np.float64) - origin
    np.testing.assert_allclose(gram, X @ X.T, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("memory", [1, _rows(9), None])
def test_products_of_two_sets_of_stimuli(rng, memory):
    old, new = _blocks(rng, 23), _blocks(rng, 14, start=100)
    _, origin = stimulus_gram(old)
    found = cross_products(new, old, origin, memory=memory)
    expected = (new.to_matrix() - origin) @ (old.to_matrix() - origin).T
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("memory", [1, 8 * 23 * 4, None])
def test_columns_make_up_the_features_in_order(rng, memory):
    blocks = _blocks(rng, 23)
    parts = list(feature_columns(blocks, memory=memory)())
    np.testing.assert_array_equal(np.hstack([block for _, block in parts]), blocks.to_matrix())
    np.testing.assert_array_equal(np.concatenate([np.arange(338)[part] for part, _ in parts]), np.arange(338))


def _fitted(blocks, Y, alpha, weight, rows, memory):
    gram, _ = stimulus_gram(blocks, memory=memory)
    columns = feature_columns(blocks, memory=memory)
    statistics = GramStatistics.from_stimulus_products(
        gram, columns, n_features=blocks.shape[1], weight=weight
    )
    return ridge(statistics, Y, alpha, rows=rows)


@pytest.mark.parametrize("memory", [_rows(7), None])
def test_ridge_from_them_equals_sklearn(rng, memory):
    blocks, Y = _blocks(rng, 40, mean=20.0), rng.standard_normal((40, 3))
    alpha, weight, rows = np.array([0.1, 10.0, 1e3]), rng.random(40) + 0.1, np.arange(3, 38)
    coef, intercept = _fitted(blocks, Y, alpha, weight, rows, memory)
    X = blocks.to_matrix()
    expected = Ridge(alpha, solver="svd").fit(X[rows], Y[rows], sample_weight=weight[rows])
    np.testing.assert_allclose(coef, expected.coef_, rtol=1e-4, atol=1e-5 * np.abs(expected.coef_).max())
    found = linear_predictions(blocks, coef, intercept, memory=memory)
    np.testing.assert_allclose(found, expected.predict(X), rtol=1e-5, atol=1e-5)


def test_predictions_without_coefficients_in_features(rng):
    blocks, new, Y = _blocks(rng, 30), _blocks(rng, 8, start=50), rng.standard_normal((30, 2))
    gram, origin = stimulus_gram(blocks, memory=_rows(7))
    centring = np.eye(30) - 1 / 30
    dual = centring @ np.linalg.solve(centring @ gram @ centring + 10 * np.eye(30), Y - Y.mean(axis=0))
    intercept = Y.mean(axis=0) - gram.mean(axis=0) @ dual  # the mean of the stimuli less the origin
    found = cross_products(new, blocks, origin) @ dual + intercept
    expected = RidgeEncoder(10.0).fit(blocks.to_matrix(), Y).predict(new.to_matrix())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_layers_that_are_scaled_when_read_are_streamed_scaled(rng):
    blocks = _blocks(rng, 20)
    scaled = LayerScaler(output="blocks").fit(blocks).transform(blocks)
    gram, origin = stimulus_gram(scaled, memory=_rows(6))
    X = scaled.to_matrix() - origin
    np.testing.assert_allclose(gram, X @ X.T, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_name_their_layer(rng, bad):
    blocks = _blocks(rng, 20)
    layers = [np.array(values) for _, values in blocks]
    layers[1][17, 2, 0, 3] = bad
    broken = _as_blocks(layers)
    with pytest.raises(RequestError, match="Layer 'b' contains NaN or infinity"):
        stimulus_gram(broken, memory=_rows(6))
    with pytest.raises(RequestError, match="Layer 'b' contains NaN or infinity"):
        cross_products(broken, blocks, np.zeros(338))
    with pytest.raises(RequestError, match="Layer 'b' contains NaN or infinity"):
        list(feature_columns(broken)())
    with pytest.raises(RequestError, match="Layer 'b' contains NaN or infinity"):
        linear_predictions(broken, np.zeros((1, 338)))


def test_what_cannot_be_is_refused(rng):
    blocks = _blocks(rng, 6)
    with pytest.raises(RequestError, match="overflow float32"):
        stimulus_gram(_as_blocks([1e30 * values for _, values in blocks]))
    with pytest.raises(RequestError, match=r"Layers have \[7\] features, but those fitted to \[7, 30, 301\]"):
        cross_products(blocks.select("a"), blocks, np.zeros(338))
    with pytest.raises(RequestError, match="Layers have 7 features, but coefficients 338"):
        linear_predictions(blocks.select("a"), np.zeros((1, 338)))


def test_a_result_larger_than_memory_is_refused(rng, monkeypatch):
    monkeypatch.setattr(_streamed, "available_memory", lambda: 1000)
    with pytest.raises(RequestError, match="Take fewer stimuli"):
        stimulus_gram(_blocks(rng, 20))


@pytest.fixture
def cached(tmp_path, rng):
    """Two layers of 24 stimuli, one in float16, in a cache, and the values that it gives."""
    cache, ids = FeatureCache(tmp_path / "cache"), tuple(f"image_{row}" for row in range(24))
    manifest = StimulusManifest(ids, tuple(f"{row:064x}" for row in range(24)))
    cache.add_stimuli(manifest)
    for layer, shape in (("wide", (90,)), ("maps", (4, 3, 3))):
        spec = FeatureSpec("imported:test", "0" * 64, layer, None, store_dtype="float16")
        dims = ("channel", "height", "width")[: len(shape)]
        writer = cache.writer(spec, manifest.digest, row_shape=shape, dims=dims)
        for shard in writer.array.missing:
            rows = writer.array.layout.rows_of(shard)
            writer.publish(shard, rng.standard_normal((len(rows), *shape)).astype(np.float16), {})
    return CachedFeatures(tmp_path / "cache", layers="*", output="blocks").fit(ids).transform(ids)


def test_workers_open_the_cache_themselves(cached):
    travels = pickle.dumps(cached)
    assert len(travels) < 5000 + cached.ids.nbytes
    expected, origin = stimulus_gram(cached)
    X = cached.to_matrix() - origin
    np.testing.assert_allclose(expected, X @ X.T, rtol=1e-6, atol=1e-5)
    with joblib.parallel_config("loky"):
        found, _ = stimulus_gram(pickle.loads(travels), memory=4 * 126 * 10, n_jobs=2)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dual", [True, False])
def test_ridge_of_streamed_layers_equals_that_of_a_matrix(rng, dual, center):
    mean = 2.0 if center else 0.0  # without an origin float32 has to hold what all stimuli share as well
    blocks, new = _blocks(rng, 30, mean), _blocks(rng, 8, mean, start=50)
    Y = rng.standard_normal((30, 3))
    Y[4:9, 1] = np.nan
    alpha, weight = np.array([1.0, 10.0, 100.0]), rng.random(30) + 0.1
    expected = RidgeEncoder(alpha, fit_intercept=center).fit(blocks.to_matrix(), Y, sample_weight=weight)
    features = StreamedFeatures.of(blocks, 3, weight=weight, center=center, dual=dual, memory=_rows(7))
    coef = np.empty((3, features.gram.n_features))
    for targets, rows in missing_patterns(Y):
        coef[targets], _ = ridge(features.gram, Y[:, targets], alpha[targets], rows=rows)
    if dual:
        intercept = features.intercepts(Y, coef)
        found = predictions_from_stimuli(new, blocks, features.origin, coef, intercept, memory=_rows(5))
    else:
        np.testing.assert_allclose(coef, expected.coef_, rtol=1e-4, atol=1e-6)
        found = linear_predictions(new, coef, expected.intercept_)
    np.testing.assert_allclose(found, expected.predict(new.to_matrix()), rtol=1e-5, atol=1e-5)


def test_coefficients_that_do_not_fit_are_those_of_stimuli(rng, monkeypatch):
    blocks = _blocks(rng, 20)
    monkeypatch.setattr(_streamed_ridge, "available_memory", lambda: 2 * 4 * 338 * 10)
    assert not StreamedFeatures.of(blocks, 10).dual
    assert StreamedFeatures.of(blocks, 11).dual
    assert fits_in_memory(blocks[:10])
    assert not fits_in_memory(blocks[:11])


@pytest.mark.parametrize("regions", [False, True])
def test_an_encoder_of_layers_that_do_not_fit_equals_that_of_a_matrix(cached, rng, monkeypatch, regions):
    Y, weight = rng.standard_normal((24, 4)), rng.random(24) + 0.1
    model = RidgeEncoder(alphas=[10.0, 1e3], cv=3)
    expected = clone(model).fit(cached.to_matrix(), Y, sample_weight=weight)
    monkeypatch.setattr(_encoder, "_is_streamed", lambda X: True)
    model = PerROI(model, {"a": [2, 0]}) if regions else model
    found = model.fit(cached, Y, sample_weight=weight)
    np.testing.assert_array_equal(found.alpha_, expected.alpha_)
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-5, atol=1e-7)
    some = cached[[3, 3, 20]]
    np.testing.assert_allclose(found.predict(some), expected.predict(some.to_matrix()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cv", [3, "gcv"])
def test_an_encoder_whose_coefficients_do_not_fit_predicts_by_its_stimuli(cached, rng, monkeypatch, cv):
    Y, weight = rng.standard_normal((24, 60)), rng.random(24) + 0.1
    Y[5, :7] = np.nan
    model = RidgeEncoder(alphas=[10.0, 1e3], cv=cv)
    expected = clone(model).fit(cached.to_matrix(), Y, sample_weight=weight)
    monkeypatch.setattr(_streamed_ridge, "available_memory", lambda: 2 * 4 * 126 * 20)
    found = clone(model).fit(cached, Y, sample_weight=weight)
    assert not hasattr(found, "coef_")
    assert found.dual_coef_.shape == (60, 24)
    some = cached[[3, 3, 20]]
    np.testing.assert_allclose(found.predict(some), expected.predict(some.to_matrix()), rtol=1e-5, atol=1e-5)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.predict(some), found.predict(some))


def test_an_encoder_that_reads_its_stimuli_again_can_be_saved(cached, rng, monkeypatch, tmp_path):
    monkeypatch.setattr(_streamed_ridge, "available_memory", lambda: 2 * 4 * 126 * 20)
    joined = LayerBlocks.join([("net", cached)])
    pipeline = Pipeline([("scale", LayerScaler(output="blocks")), ("ridge", RidgeEncoder(10.0))])
    pipeline.fit(joined, rng.standard_normal((24, 60)))
    folder = RunFolder(tmp_path / "run")
    folder.write_pipeline(pipeline)
    np.testing.assert_array_equal(folder.load_pipeline().predict(joined), pipeline.predict(joined))
