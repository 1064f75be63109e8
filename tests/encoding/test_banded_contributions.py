"""Contributions of bands add up to R², whatever the data; what only a band explains is what refitting loses."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.encoding import BandedRidge, band_contributions, unique_contributions
from featpipe.errors import RequestError
from featpipe.metrics import r2

WIDTHS = (6, 12, 5)


@pytest.fixture
def halves(rng):
    """Stimuli to fit and to score; targets hang on the first band, the second, both, or neither."""
    X = rng.standard_normal((200, 23))
    signal = np.stack([X[:, :6].sum(1), X[:, 6:18].sum(1), X[:, 3:12].sum(1), np.zeros(200)], axis=1)
    Y = signal + rng.standard_normal(signal.shape) + 2
    return X[:120], Y[:120], X[120:], Y[120:]


@pytest.fixture
def model(halves):
    return BandedRidge(WIDTHS, refine=2).fit(*halves[:2])


@pytest.mark.parametrize("weighted", [False, True])
def test_contributions_add_up_to_r2(rng, halves, model, weighted):
    _, _, X, Y = halves
    Y[::7, 1] = np.nan
    Y[:, 3] += 5  # an error of the mean prediction
    weight = rng.random(len(X)) if weighted else None
    found = band_contributions(model, X, Y, sample_weight=weight)
    assert found.shape == (3, 4)
    np.testing.assert_allclose(found.sum(axis=0), r2(Y, model.predict(X), sample_weight=weight))


def test_contributions_go_to_the_bands_that_predict(halves, model):
    found = band_contributions(model, *halves[2:])
    assert found[0, 0] > 0.7
    assert found[1, 1] > 0.7
    assert np.all(found[:2, 2] > 0.2)
    np.testing.assert_allclose(found[2], 0, atol=0.05)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_contributions_are_those_of_himalaya(halves, model):
    """Its product measure, for predictions without an error of the mean."""
    scoring = pytest.importorskip("himalaya.scoring")
    _, _, X, Y = halves
    X = X - X.mean(axis=0)
    model.intercept_ = 0 * model.intercept_
    Y = Y - Y.mean(axis=0)
    expected = scoring.r2_score_split(Y, model.predict(X, by_band=True))
    np.testing.assert_allclose(band_contributions(model, X, Y), expected, atol=1e-8)


def test_a_single_response_and_a_constant_one(halves):
    X_train, Y_train, X, Y = halves
    found = BandedRidge(WIDTHS, refine=0).fit(X_train, Y_train[:, 0])
    assert band_contributions(found, X, Y[:, 0]).shape == (3, 1)
    np.testing.assert_array_equal(band_contributions(found, X, np.ones(len(X))), 0)


def test_unique_is_what_a_model_without_the_band_loses(halves, model):
    X_train, Y_train, X, Y = halves
    found = unique_contributions(model, *halves)
    without = BandedRidge(WIDTHS[1:], refine=2).fit(X_train[:, 6:], Y_train)
    expected = r2(Y, model.predict(X)) - r2(Y, without.predict(X[:, 6:]))
    np.testing.assert_allclose(found[0], expected, atol=1e-12)


def test_a_band_that_stands_twice_explains_nothing_uniquely(halves):
    X_train, Y_train, X, Y = halves
    X_train, X = (np.hstack([Z[:, :6], Z[:, :6], Z[:, 6:]]) for Z in (X_train, X))
    model = BandedRidge((6, 6, 17), refine=3)
    found = unique_contributions(model, X_train, Y_train, X, Y)
    np.testing.assert_allclose(found[:2], 0, atol=0.02)
    assert found[2, 1] > 0.7


def test_unique_needs_bands_to_leave_out(halves):
    with pytest.raises(RequestError, match="A single band is all there is"):
        unique_contributions(BandedRidge(), *halves)
    with pytest.raises(RequestError, match="do not fit a model with one band less"):
        unique_contributions(BandedRidge(WIDTHS, deltas=[0.0, 0.0, 0.0]), *halves)
