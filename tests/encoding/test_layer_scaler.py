"""Scaling equals scikit-learn's, except that no feature is divided by almost nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from featpipe.blocks import LayerBlocks
from featpipe.encoding import LayerScaler
from featpipe.errors import RequestError


@parametrize_with_checks([LayerScaler(), LayerScaler(with_mean=False), LayerScaler(floor=0)])
def test_scikit_learn_is_at_home(estimator, check):
    check(estimator)


def _blocks(arrays, views=()):
    order = list(arrays)
    ids = [str(row) for row in range(len(arrays["a"]))]
    return LayerBlocks(
        ids,
        views=[_blocks(view) for view in views],
        images=lambda layer, wanted: [f"{order[layer]}{name}" for name in wanted],
        names=order,
        shapes=[arrays[name].shape[1:] for name in order],
        dims=[("channel", "y", "x")[: arrays[name].ndim - 1] for name in order],
        digests=order,
        read=lambda layer, wanted: arrays[order[layer]][wanted.astype(int)],
    )


@pytest.fixture
def layers(rng):
    wide = rng.standard_normal((20, 3, 2, 2)).astype(np.float32)
    return {"a": wide, "b": 100 * rng.standard_normal((20, 5)).astype(np.float32)}


@pytest.mark.parametrize(("with_mean", "with_std"), [(True, True), (False, True), (True, False)])
def test_without_a_floor_it_is_the_standard_scaler(rng, with_mean, with_std):
    X, weight = rng.standard_normal((30, 4)) * [1, 10, 0.1, 2] + 3, rng.random(30)
    expected = (
        StandardScaler(with_mean=with_mean, with_std=with_std).fit(X, sample_weight=weight).transform(X)
    )
    scaler = LayerScaler(with_mean, with_std, floor=0.0)
    np.testing.assert_allclose(scaler.fit(X, sample_weight=weight).transform(X), expected, atol=1e-12)


def test_a_nearly_dead_channel_does_not_explode(rng):
    X = rng.standard_normal((50, 9))
    X[:, 4] *= 1e-6
    woken = np.zeros((1, 9))
    woken[0, 4] = 1.0
    scaler = LayerScaler(floor=0.1).fit(X)
    assert np.flatnonzero(scaler.floored_).tolist() == [4]
    assert 5 < scaler.transform(woken)[0, 4] < 20  # a tenth of the layer's spread, not a millionth
    assert LayerScaler(floor=0).fit(X).transform(woken)[0, 4] > 1e5


def test_constant_features_become_zero(rng):
    X = np.full((30, 3), 0.1, dtype=np.float32)
    np.testing.assert_allclose(LayerScaler().fit_transform(X), 0, atol=1e-6)
    np.testing.assert_array_equal(LayerScaler().fit(X).scale_, 1)


def test_the_floor_holds_when_most_units_are_silent(rng):
    X = np.zeros((50, 10))
    X[:, :3] = rng.standard_normal((50, 3))
    X[0, 4] = 1e-7
    assert LayerScaler(floor=0.1).fit(X).scale_[4] > 0.01


def test_the_floor_scales_with_the_layer(rng):
    X = rng.standard_normal((30, 6)) * [1, 1, 1, 1, 1, 1e-4]
    small, large = LayerScaler().fit(X), LayerScaler().fit(1e5 * X)
    np.testing.assert_allclose(large.transform(1e5 * X), small.transform(X))


def test_blocks_are_scaled_layer_by_layer_and_come_out_side_by_side(layers):
    found = LayerScaler().fit_transform(_blocks(layers))
    expected = [LayerScaler().fit_transform(block.reshape(20, -1)) for block in layers.values()]
    np.testing.assert_allclose(found, np.hstack(expected), rtol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("part", [{}, {"with_mean": False}, {"with_std": False}])
def test_as_blocks_layers_are_scaled_when_read(layers, part):
    blocks = _blocks(layers, views=[{name: 2 * block for name, block in layers.items()}])
    expected = LayerScaler(**part).fit(blocks)
    found = LayerScaler(output="blocks", **part).fit(blocks).transform(blocks)
    np.testing.assert_array_equal(found.to_matrix(), expected.transform(blocks))
    np.testing.assert_array_equal(found.views[0].to_matrix(), expected.transform(blocks.views[0]))
    np.testing.assert_array_equal(found.stream("b", [4, 2]), found[[4, 2]].block("b"))
    assert (found.names, found.shapes, found.dims) == (blocks.names, blocks.shapes, blocks.dims)
    assert list(found.images(1, ["7"])) == ["b7"]


def test_as_blocks_what_others_hold_in_memory_stays(layers):
    before = {name: block.copy() for name, block in layers.items()}
    held = LayerBlocks(
        [str(row) for row in range(20)],
        names=["a"],
        shapes=[(3, 2, 2)],
        dims=[("channel", "y", "x")],
        digests=["a"],
        read=lambda layer, ids: layers["a"],
    )
    scaled = LayerScaler(output="blocks").fit_transform(held)
    scaled.block("a"), scaled.stream("a", slice(None))
    np.testing.assert_array_equal(layers["a"], before["a"])


def test_digests_tell_what_layers_are_scaled_by(layers):
    blocks = _blocks(layers)
    scalers = [LayerScaler(output="blocks"), LayerScaler(with_mean=False, output="blocks")]
    whole, uncentred = (scaler.fit(blocks).transform(blocks).digests for scaler in scalers)
    half = scalers[0].fit(blocks[:10]).transform(blocks).digests
    again = LayerScaler(output="blocks").fit(blocks).transform(blocks[:5]).digests
    assert again == whole
    assert len({*blocks.digests, *whole, *uncentred, *half}) == 8


def test_a_matrix_has_no_blocks(layers, rng):
    with pytest.raises(RequestError, match="blocks only for LayerBlocks, and got ndarray"):
        LayerScaler(output="blocks").fit(rng.standard_normal((4, 2)))
    with pytest.raises(RequestError, match="output is 'frame'"):
        LayerScaler(output="frame").fit(_blocks(layers))


def test_names_say_the_layer(layers, rng):
    names = LayerScaler().fit(_blocks(layers)).get_feature_names_out()
    assert names[0] == "a_0"
    assert names[-1] == "b_4"
    frame = pd.DataFrame(rng.standard_normal((9, 2)), columns=["x", "y"])
    scaled = LayerScaler().set_output(transform="pandas").fit_transform(frame)
    assert list(scaled.columns) == ["x", "y"]


def test_float32_statistics_are_accumulated_in_float64(rng):
    X = (rng.standard_normal((5000, 2)) + 1000).astype(np.float32)
    scaler = LayerScaler(floor=0).fit(X)
    np.testing.assert_allclose(scaler.std_, X.astype(np.float64).std(axis=0), rtol=1e-10)


def test_weights_count_like_repeats(rng):
    X, counts = rng.standard_normal((20, 3)), rng.integers(0, 3, 20)
    weighted, repeated = (
        LayerScaler().fit(X, sample_weight=counts),
        LayerScaler().fit(np.repeat(X, counts, 0)),
    )
    np.testing.assert_allclose(weighted.scale_, repeated.scale_)


def test_wrong_input_is_named(layers, rng):
    with pytest.raises(RequestError, match="floor must be >= 0"):
        LayerScaler(floor=-1).fit(rng.standard_normal((4, 2)))
    with pytest.raises(RequestError, match="fitted to layers"):
        LayerScaler().fit(_blocks(layers)).transform(_blocks({"a": layers["a"]}))
    layers["b"][3, 1] = np.nan
    with pytest.raises(RequestError, match="Layer 'b' contains NaN"):
        LayerScaler().fit(_blocks(layers))
    with pytest.raises(ValueError, match=r"non-zero number|not all 0"):  # the first is scikit-learn's
        LayerScaler().fit(rng.standard_normal((4, 2)), sample_weight=np.zeros(4))
