"""Layers side by side behave as one array of stimuli, and read only what is asked for."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler

from featpipe import LayerBlocks
from featpipe.errors import RequestError


@pytest.fixture
def layers(rng):
    return {"one": rng.standard_normal((6, 3, 2, 2)), "two": rng.standard_normal((6, 5))}


@pytest.fixture
def blocks(layers):
    ids = np.array(list("abcdef"))
    row = {name: position for position, name in enumerate(ids)}
    return LayerBlocks(
        ids,
        names=list(layers),
        shapes=[(3, 2, 2), (5,)],
        dims=[("channel", "height", "width"), ("channel",)],
        digests=["x", "y"],
        read=lambda layer, ids: list(layers.values())[layer][[row[i] for i in ids]],
    )


def test_matrix_has_the_layers_side_by_side(blocks, layers):
    assert blocks.shape == (6, 17)
    matrix = blocks.to_matrix()
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix[:, blocks.slices["one"]], layers["one"].reshape(6, -1), rtol=1e-6)
    np.testing.assert_allclose(matrix[:, blocks.slices["two"]], layers["two"], rtol=1e-6)


@pytest.mark.parametrize("rows", [[3, 1, 1], np.array([True, False] * 3), slice(1, 4), ([2, 0], ...), 4])
def test_selecting_rows_selects_stimuli(blocks, layers, rows):
    plain = rows[0] if isinstance(rows, tuple) else rows
    selected = np.atleast_2d(layers["two"][plain])
    np.testing.assert_allclose(blocks[rows].block("two"), selected)
    assert len(blocks[rows]) == len(selected)


def test_selecting_reads_nothing(blocks):
    blind = LayerBlocks(
        blocks.ids, names=blocks.names, shapes=blocks.shapes, dims=blocks.dims, digests=blocks.digests,
        read=lambda layer, ids: pytest.fail("read"),
    )  # fmt: skip
    assert blind[2:5].shape == (3, 17)


def test_iteration_gives_names_and_natural_shapes(blocks):
    assert [(name, values.shape) for name, values in blocks] == [("one", (6, 3, 2, 2)), ("two", (6, 5))]


@pytest.mark.parametrize("make", [np.asarray, pd.DataFrame, StandardScaler().fit])
def test_whoever_needs_an_array_is_told_how_to_get_one(blocks, make):
    with pytest.raises(RequestError, match=r"no array or data frame.*output='matrix'"):
        make(blocks)


def test_an_unknown_layer_names_those_there(blocks):
    with pytest.raises(RequestError, match="no layer 'three' here, only one, two"):
        blocks.block("three")


def test_streamed_rows_are_those_of_the_block(blocks, layers):
    np.testing.assert_array_equal(blocks[[4, 2, 0]].stream("two", slice(1, 3)), layers["two"][[2, 0]])
    np.testing.assert_array_equal(blocks.stream(0, [5, 1]), layers["one"][[5, 1]])
    blocks.stream("two", slice(None))[:] = 0  # the caller's own
    assert layers["two"].all()
    with pytest.raises(RequestError, match="no layer 'three'"):
        blocks.stream("three", [0])


def _like(blocks, *, ids=None, views=(), scale=1.0):
    """The same layers with values of their own."""
    return LayerBlocks(
        blocks.ids if ids is None else ids, names=blocks.names, shapes=blocks.shapes, dims=blocks.dims,
        digests=[f"{digest}{scale}" for digest in blocks.digests], views=views,
        read=lambda layer, ids: scale * blocks._read(layer, ids),
    )  # fmt: skip


def test_selecting_rows_selects_them_in_the_views(blocks, layers):
    seen = _like(blocks, views=[_like(blocks, scale=2.0), _like(blocks, scale=3.0)])
    picked = seen[[4, 1]][1]
    assert blocks.views == ()
    assert [view.ids.tolist() for view in picked.views] == [["b"], ["b"]]
    for view, scale in zip(picked.views, (2.0, 3.0), strict=True):
        np.testing.assert_allclose(view.block("two"), scale * layers["two"][[1]])


def test_views_of_other_stimuli_are_refused(blocks):
    with pytest.raises(RequestError, match=r"View 1 has 6 stimuli .* must have the ids"):
        _like(blocks, views=[blocks[::-1]])


def test_a_join_is_a_concatenation(blocks):
    twice = _like(blocks, scale=2.0)
    joined = LayerBlocks.join([("plain", blocks), ("double", twice)])[[3, 0]]
    assert joined.names == ("plain:one", "plain:two", "double:one", "double:two")
    assert joined.digests == (*blocks.digests, *twice.digests)
    np.testing.assert_array_equal(
        joined.to_matrix(), np.hstack([blocks[[3, 0]].to_matrix(), twice[[3, 0]].to_matrix()])
    )
    np.testing.assert_array_equal(joined.stream("double:two", [1]), twice.stream("two", [0]))


def test_views_are_joined_by_number(blocks):
    seen = _like(blocks, views=[_like(blocks, scale=2.0), _like(blocks, scale=3.0)])
    joined = LayerBlocks.join([("a", seen), ("b", seen)])
    assert [view.names for view in joined.views] == [joined.names] * 2
    np.testing.assert_array_equal(joined.views[1].block("b:two"), seen.views[1].block("two"))


@pytest.mark.parametrize("change", ["order", "views"])
def test_blocks_that_do_not_fit_are_not_joined(blocks, change):
    other = blocks[::-1] if change == "order" else _like(blocks, views=[blocks])
    with pytest.raises(RequestError, match=r"'a' has 6 stimuli in 0 views and 'b' has 6 in [01].* same ids"):
        LayerBlocks.join([("a", blocks), ("b", other)])
    with pytest.raises(RequestError, match="nothing to join"):
        LayerBlocks.join([])


def test_selected_layers_keep_views_and_what_tells_their_images(blocks):
    told = LayerBlocks(
        blocks.ids, names=blocks.names, shapes=blocks.shapes, dims=blocks.dims, digests=blocks.digests,
        read=blocks.read, views=[blocks], images=lambda layer, ids: [f"{layer}{i}" for i in ids],
    )  # fmt: skip
    two = told.select(["t*"])
    assert two.names == two.views[0].names == ("two",)
    assert (two.shapes, two.digests) == (((5,),), ("y",))
    assert two.images(0, np.array(["c"])) == ["1c"]
    np.testing.assert_array_equal(two[[2, 0]].block(0), blocks[[2, 0]].block("two"))


def test_selected_layers_keep_their_order_and_must_exist(blocks):
    assert blocks.select(["two", "one"]).names == ("one", "two")
    with pytest.raises(RequestError, match=r"no layer 'three' here, only one, two"):
        blocks.select("three")
