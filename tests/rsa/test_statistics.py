"""Channel statistics: equal to float64 on any layer, computed once, grown by new stimuli."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.rsa.statistics import _held
from featpipe.rsa.statistics._held import STATISTICS
from featpipe.rsa.statistics._statistics import channel_statistics


@pytest.fixture(autouse=True)
def _nothing_held():
    STATISTICS.clear()
    yield
    STATISTICS.clear()


def blocks_of(layers, n_stimuli, name="s", dims=("channel", "height", "width"), images=None):
    """LayerBlocks of arrays in memory, with digests of their images where they are known."""
    ids = np.array([f"{name}/{number:03d}" for number in range(n_stimuli)])
    place = {label: row for row, label in enumerate(ids.tolist())}
    return LayerBlocks(
        ids,
        names=[f"layer{number}" for number in range(len(layers))],
        shapes=[layer.shape[1:] for layer in layers],
        dims=[dims[: layer.ndim - 1] for layer in layers],
        digests=[f"digest{number}" for number in range(len(layers))],
        read=lambda layer, asked: layers[layer][[place[label] for label in asked.tolist()]],
        images=images and (lambda layer, asked: [images[place[label]] for label in asked.tolist()]),
    )


def three_layers(rng, n_stimuli, offset=0.0):
    shapes = [(3, 50, 60), (5, 2, 2), (7,)]
    return [rng.standard_normal((n_stimuli, *s)).astype(np.float32) + np.float32(offset) for s in shapes]


def naive_products(layers):
    """Sums over positions of products, in float64: (n_stimuli, n_stimuli, n_channels)."""
    flat = [layer.reshape(*layer.shape[:2], -1).astype(np.float64) for layer in layers]
    return np.concatenate([np.einsum("icp,jcp->ijc", layer, layer) for layer in flat], axis=2)


def test_products_and_sums_equal_those_of_float64(rng):
    layers = three_layers(rng, 9)
    found = channel_statistics(blocks_of(layers, 9))
    first, second = rng.integers(0, 9, (2, 30))  # any order, also a stimulus with itself
    expected = naive_products(layers)
    np.testing.assert_allclose(found.pairs(first, second), expected[first, second], rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found.products, expected[np.tril_indices(9)], rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(
        found.sums[:, :3], layers[0].sum(axis=(2, 3), dtype=np.float64), rtol=1e-6, atol=1e-3
    )
    assert found.positions.tolist() == [3000] * 3 + [4] * 5 + [1] * 7
    assert found.layer.tolist() == [0] * 3 + [1] * 5 + [2] * 7
    assert found.n_features == 9000 + 20 + 7


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_an_early_layer_keeps_its_digits(rng, offset):
    """A million values, far from 0: float32 products of raw values would lose all of 1 - r."""
    layer = np.maximum(rng.standard_normal((6, 16, 250, 250)), 0).astype(np.float32) + np.float32(offset)
    found = channel_statistics(blocks_of([layer], 6))
    scaled = found.sums / found.positions
    between = (scaled - found.sums.sum(axis=1, keepdims=True) / found.n_features) * np.sqrt(found.positions)
    first, second = np.triu_indices(6)
    covariance = np.zeros((6, 6))
    covariance[first, second] = found.centred_pairs(first, second).sum(axis=1, dtype=np.float64)
    covariance = np.triu(covariance) + np.triu(covariance, 1).T + between @ between.T
    deviation = np.sqrt(np.diag(covariance))
    expected = np.corrcoef(layer.reshape(6, -1).astype(np.float64))
    np.testing.assert_allclose(covariance / np.outer(deviation, deviation), expected, rtol=0, atol=1e-5)


def test_channels_are_found_where_the_dims_say(rng):
    tokens = rng.standard_normal((5, 4, 3)).astype(np.float32)  # (n_stimuli, token, channel)
    found = channel_statistics(blocks_of([tokens], 5, dims=("token", "channel")))
    np.testing.assert_allclose(found.sums, tokens.sum(axis=1), rtol=1e-5, atol=1e-6)


def test_new_stimuli_are_added_and_known_ones_only_indexed(rng):
    layers = three_layers(rng, 9)
    blocks = blocks_of(layers, 9)
    alone = channel_statistics(blocks).products
    STATISTICS.clear()
    channel_statistics(blocks, blocks.ids[[7, 2, 5]])
    grown = channel_statistics(blocks)
    np.testing.assert_allclose(grown.products, alone, rtol=1e-5, atol=1e-3)
    computed = STATISTICS.n_computed
    subset = channel_statistics(blocks, blocks.ids[[3, 3, 8]])
    assert STATISTICS.n_computed == computed
    np.testing.assert_array_equal(subset.pairs([0, 1], [2, 2]), grown.pairs([3, 3], [8, 8]))


def test_taking_ids_is_computing_them(rng):
    blocks = blocks_of(three_layers(rng, 6), 6)
    taken = channel_statistics(blocks).take(blocks.ids[[4, 1]])
    np.testing.assert_array_equal(taken.products, channel_statistics(blocks[[4, 1]]).products)
    with pytest.raises(RequestError, match="1 of 1 stimuli have no statistics"):
        taken.take(["s/005"])


def test_other_images_under_the_same_ids_are_not_taken_for_known(rng):
    first, second = (three_layers(rng, 5) for _ in range(2))
    channel_statistics(blocks_of(first, 5))
    found = channel_statistics(blocks_of(second, 5))
    np.testing.assert_allclose(found.pairs([0], [3])[0], naive_products(second)[0, 3], rtol=1e-4, atol=1e-3)


def test_one_other_image_is_not_taken_for_the_known_one(rng):
    """Digests of images say so of each stimulus, sums only of a few."""
    layers = three_layers(rng, 9)
    changed = [layer.copy() for layer in layers]
    for layer in changed:
        layer[3] *= -1
    channel_statistics(blocks_of(layers, 9, images="abcdefghi"))
    found = channel_statistics(blocks_of(changed, 9, images="abcxefghi"))
    expected = naive_products(changed)[np.tril_indices(9)]
    np.testing.assert_allclose(found.products, expected, rtol=1e-5, atol=1e-3)


def test_what_another_source_holds_is_not_grown(rng):
    """It would have to be read again, here, where other stimuli go by those names or none."""
    layers = three_layers(rng, 9)
    channel_statistics(blocks_of(layers, 9, images="abcdefghi")[[0, 7, 8]])
    found = channel_statistics(blocks_of(layers, 7, images="abcdefg"))
    assert found.ids.tolist() == [f"s/{number:03d}" for number in range(7)]
    before = STATISTICS.n_computed
    channel_statistics(blocks_of(layers, 9, images="xxxdefghi")[3:7])  # what else is held does not matter
    assert STATISTICS.n_computed == before


def test_the_least_recently_used_are_dropped(rng):
    cache = _held.StatisticsCache(limit=3000)
    for name in "abc":
        layers = [rng.standard_normal((6, 5, 2)).astype(np.float32)]
        blocks = blocks_of(layers, 6, name)
        cache.layer(blocks, 0, name, blocks.ids.tolist())
    assert 0 < cache.nbytes <= 3000


def test_stimuli_of_two_sets_are_refused(rng):
    blocks = blocks_of(three_layers(rng, 4), 4)
    with pytest.raises(RequestError, match="of one stimulus set"):
        channel_statistics(blocks, ["s/000", "t/000"])


def test_products_that_do_not_fit_are_refused_before_reading(rng, monkeypatch):
    monkeypatch.setattr(_held, "available_memory", lambda: 10_000)
    with pytest.raises(RequestError, match=r"need \d+ bytes .* but 10000 are available. Use fewer stimuli"):
        channel_statistics(blocks_of(three_layers(rng, 9), 9))
