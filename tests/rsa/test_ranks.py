"""Ranks equal scipy's for every kind of value, and rounding alone makes no rank."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from featpipe.rsa._ranks import ranks, unit_ranks


def values_of(kind, rng):
    if kind == "close":  # differ by less than the bits that give way to positions
        return 1 + rng.permuted(np.tile(np.arange(300), (4, 1)), axis=1) * 1e-13
    vectors = rng.standard_normal((4, 300))
    if kind == "tied":
        vectors = vectors.round(1)
        vectors[1, :20] = -0.0
        vectors[1, 20:40] = 0.0
    return {"positive": np.abs(vectors), "huge": vectors * 1e300, "tiny": vectors * 1e-310}.get(kind, vectors)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["positive", "signed", "tied"])
def test_ranks_are_those_of_scipy(rng, kind, dtype):
    vectors = values_of(kind, rng).astype(dtype)
    np.testing.assert_array_equal(ranks(vectors), rankdata(vectors, axis=1))


@pytest.mark.parametrize("kind", ["close", "huge", "tiny"])
def test_ranks_do_not_depend_on_the_size_of_values_or_differences(rng, kind):
    vectors = values_of(kind, rng)
    np.testing.assert_array_equal(ranks(vectors), rankdata(vectors, axis=1))


def test_ranks_of_more_values_than_positions_can_be_packed_with(rng, monkeypatch):
    vectors = rng.random((3, 200)).round(2)
    monkeypatch.setattr("featpipe.rsa._ranks._PACKED_BITS", 4)
    np.testing.assert_array_equal(ranks(vectors), rankdata(vectors, axis=1))


def test_rows_are_ranked_in_chunks(rng, monkeypatch):
    vectors = rng.random((7, 50))
    whole = ranks(vectors)
    monkeypatch.setattr("featpipe.rsa._ranks._CHUNK_VALUES", 100)
    np.testing.assert_array_equal(ranks(vectors), whole)


def test_unit_ranks_are_standardised(rng):
    vectors = np.stack([rng.random(60), rng.integers(0, 4, 60)])
    centred = rankdata(vectors, axis=1) - 30.5
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(unit_ranks(vectors), expected, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_no_order(dtype):
    vectors = np.full((1, 40), 0.1, dtype=dtype)
    vectors[0, ::2] = np.nextafter(dtype(0.1), dtype(1))
    np.testing.assert_array_equal(unit_ranks(vectors), 0)


def test_no_values_have_no_ranks():
    assert ranks(np.empty((0, 5))).shape == (0, 5)
    assert ranks(np.empty((2, 0))).shape == (2, 0)
