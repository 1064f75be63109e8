"""Held-out scores of all folds come from one inverse, and their gradients are those of finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import KFold, ShuffleSplit, TimeSeriesSplit

from featpipe.encoding.banded._bands import DualBands, NotPositiveDefinite, PrimalBands, make_bands
from featpipe.encoding.banded._candidates import dirichlet_gammas, first_gammas
from featpipe.encoding.banded._folds import HeldOut, fold_sets


def _bands(rng, widths, *, center=True):
    layers = [rng.standard_normal((60, width)) + 1 for width in widths]
    weight = rng.random(60) + 0.3
    return layers, weight, *make_bands(layers, widths, weight, center=center)


@pytest.mark.parametrize(("widths", "kind"), [((5, 8), PrimalBands), ((50, 80), DualBands)])
def test_the_cheaper_form_is_taken(rng, widths, kind):
    assert isinstance(_bands(rng, widths)[2], kind)


@pytest.mark.parametrize("widths", [(5, 8), (50, 80)])
@pytest.mark.parametrize("center", [False, True])
def test_inverse_is_what_it_says(rng, widths, center):
    layers, weight, bands, origin = _bands(rng, widths, center=center)
    delta = np.array([-0.5, -np.inf])
    X = layers[0] - origin[: widths[0]]
    expected = np.linalg.inv(np.exp(-0.5) * X @ X.T + np.diag(1 / weight))
    if center:
        expected -= np.outer(expected.sum(0), expected.sum(0)) / expected.sum()
    inverse, rows, Y = bands.inverse(delta), np.array([3, 7, 20]), rng.standard_normal((60, 2))
    np.testing.assert_allclose(inverse.times(Y), expected @ Y, atol=1e-9)
    np.testing.assert_allclose(inverse.block(rows), expected[np.ix_(rows, rows)], atol=1e-9)
    np.testing.assert_allclose(inverse.columns(rows, Y[rows]), expected[:, rows] @ Y[rows], atol=1e-9)
    exact = np.linalg.eigvalsh(np.sqrt(weight)[:, None] * X @ X.T * np.sqrt(weight) * np.exp(-0.5)).max()
    assert exact <= bands.size(delta) * (1 + 1e-9)


@pytest.mark.parametrize("widths", [(5, 8), (50, 80)])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("scoring", ["r2", "pearson_r"])
def test_gradients_are_those_of_finite_differences(rng, widths, center, scoring):
    layers, _, bands, _ = _bands(rng, widths, center=center)
    Y = layers[0][:, :3] @ rng.standard_normal((3, 4)) + rng.standard_normal((60, 4)) + 2
    (folds,) = fold_sets(list(ShuffleSplit(2, test_size=0.3, random_state=0).split(Y)))
    held_out = HeldOut(bands, Y, folds.tests, scoring=scoring, dtype=np.float64, device="cpu")
    delta, targets, step = np.log([0.5, 0.02]), np.arange(1, 4), 1e-5

    def score(shift):
        return held_out.scores(bands.inverse(delta + shift), targets, 2)

    expected = [(score(shift) - score(-shift)) / 2 / step for shift in step * np.eye(2)]
    found = held_out.gradients(bands.inverse(delta), delta, targets, 2)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_two_folds_at_a_time_see_all_folds_in_turn(rng):
    layers, _, bands, _ = _bands(rng, (5, 8))
    Y = layers[0][:, :2] + rng.standard_normal((60, 2))
    (folds,) = fold_sets(list(KFold(4).split(Y)))
    held_out = HeldOut(bands, Y, folds.tests, scoring="r2", dtype=np.float64, device="cpu")
    delta = np.zeros(2)
    one, other, again = (
        held_out.gradients(bands.inverse(delta), delta, np.arange(2), 9, turn=turn) for turn in range(3)
    )
    assert not np.allclose(one, other)
    np.testing.assert_array_equal(one, again)


def test_folds_that_share_their_stimuli_share_an_inverse():
    X = np.zeros((30, 1))
    assert [len(one.tests) for one in fold_sets(list(KFold(5).split(X)))] == [5]
    assert [len(one.tests) for one in fold_sets(list(TimeSeriesSplit(4).split(X)))] == [1, 1, 1, 1]


def test_a_singular_problem_is_refused(rng):
    X = rng.standard_normal((20, 30))
    bands, _ = make_bands([np.vstack([X, X])], [30], np.ones(40))
    with pytest.raises(NotPositiveDefinite):
        bands.inverse(np.array([90.0]))


def test_first_mixtures_are_the_telling_ones():
    gammas = first_gammas(12, np.array([1.0, 3.0, 0.0, 1.0]), [0.1, 1.0], 0)
    np.testing.assert_allclose(gammas.sum(axis=1), 1)
    np.testing.assert_array_equal(gammas[:, 2], 0)  # no variance, no part
    np.testing.assert_allclose(gammas[:2, [0, 1, 3]], [[1 / 3, 1 / 3, 1 / 3], [3 / 7, 1 / 7, 3 / 7]])
    np.testing.assert_array_equal(gammas[2:5, [0, 1, 3]], np.eye(3))
    assert np.all(np.count_nonzero(gammas[5:8], axis=1) == 2)
    np.testing.assert_array_equal(first_gammas(4, np.ones(1), 1.0, 0), [[1]])


def test_concentrations_take_turns():
    drawn = dirichlet_gammas(400, 5, [0.01, 100.0], 0)
    assert np.median(drawn[::2].max(axis=1)) > 0.9
    assert np.all(drawn[1::2].max(axis=1) < 0.4)
