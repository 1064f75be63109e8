"""Main effects are those of least squares, with and without missing pairs, and nothing of them is left."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.errors import RequestError
from featpipe.rsa import RDMs, concat
from featpipe.rsa._main_effects import main_effects, remove_main_effects, without_main_effects


def design(n_stimuli):
    first, second = np.triu_indices(n_stimuli, 1)
    matrix = np.zeros((len(first), n_stimuli))
    matrix[np.arange(len(first)), first] = matrix[np.arange(len(first)), second] = 1
    return matrix


@pytest.mark.parametrize("missing", [0, 12])
def test_effects_are_those_of_least_squares(rng, missing):
    vectors = rng.random((3, 45))
    vectors[1, rng.choice(45, missing, replace=False)] = np.nan
    for row, effects in zip(vectors, main_effects(vectors, 10), strict=True):
        known = ~np.isnan(row)
        expected = np.linalg.lstsq(design(10)[known], row[known], rcond=None)[0]
        np.testing.assert_allclose(effects, expected, atol=1e-10)


def test_residuals_are_orthogonal_to_every_stimulus(rng):
    vectors = rng.random((4, 45))
    vectors[2, ::7] = np.nan
    left = remove_main_effects(vectors, 10)
    np.testing.assert_allclose(np.nan_to_num(left) @ design(10), 0, atol=1e-12)
    np.testing.assert_array_equal(np.isnan(left), np.isnan(vectors))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_is_left_of_a_main_effect_not_even_rounding(rng, dtype):
    vectors = (design(12) @ rng.standard_normal((12, 3))).T.astype(dtype)
    vectors[0, 5] = np.nan
    np.testing.assert_array_equal(np.nan_to_num(remove_main_effects(vectors, 12)), 0)


@pytest.mark.parametrize("n_stimuli", [1, 2])
def test_too_few_stimuli_for_effects_of_their_own_leave_nothing(rng, n_stimuli):
    vectors = rng.random((2, n_stimuli * (n_stimuli - 1) // 2))
    np.testing.assert_array_equal(remove_main_effects(vectors, n_stimuli), np.zeros_like(vectors))


def test_rdms_lose_main_effects_within_each_set(rng):
    parts = [
        RDMs.from_upper(rng.random((2, 15)), [f"{name}/{i}" for i in range(6)]) for name in ("one", "two")
    ]
    joined = without_main_effects(concat(parts))
    for part, (_, left) in zip(parts, joined.split_sets(), strict=True):
        np.testing.assert_allclose(left.upper(), remove_main_effects(part.upper(), 6))
    assert np.isnan(joined.values[:, :6, 6:]).all()


def test_vectors_of_another_length_are_refused(rng):
    with pytest.raises(RequestError, match=r"\(1, 9\); 5 stimuli need \(n_rdms, 10\)"):
        main_effects(rng.random((1, 9)), 5)
