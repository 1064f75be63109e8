"""Crossnobis is unbiased, whatever repeats are missing; precisions are those of rsatoolbox."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from featpipe.errors import RequestError
from featpipe.rsa._crossnobis import crossnobis
from featpipe.rsa._distances import rdm
from featpipe.rsa._noise import noise_precision


def _by_pairs(X, P):
    """Mean over ordered pairs of repeats that both stimuli have, one pair of stimuli at a time."""
    out = np.zeros((len(X), len(X)))
    for i, j in permutations(range(len(X)), 2):
        d = [X[i, :, a] - X[j, :, a] for a in range(X.shape[2])]
        d = [x for x in d if not np.isnan(x).any()]
        products = [a @ P @ b for a, b in permutations(d, 2)]
        out[i, j] = np.mean(products) if products else np.nan
    return out


@pytest.fixture
def repeats(rng):
    return rng.standard_normal((6, 5, 1)) + 0.5 * rng.standard_normal((6, 5, 4)) + 10


@pytest.mark.parametrize("missing", [0, 8])
@pytest.mark.parametrize("whitened", [False, True])
def test_matches_the_definition(rng, repeats, missing, whitened):
    for place in rng.permutation(24)[:missing]:
        repeats[place % 6, :, place // 6] = np.nan
    P = noise_precision(repeats) if whitened else np.eye(5)
    found = crossnobis(repeats, noise=P if whitened else None)
    np.testing.assert_allclose(found.values[0], _by_pairs(repeats, P), rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # its own
def test_matches_rsatoolbox(repeats):
    pytest.importorskip("rsatoolbox")
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm

    P = noise_precision(repeats)
    rows = repeats.transpose(2, 0, 1).reshape(-1, 5)
    labels = {"stimulus": np.tile(np.arange(6), 4), "run": np.repeat(np.arange(4), 6)}
    expected = calc_rdm(
        Dataset(rows, obs_descriptors=labels),
        method="crossnobis",
        descriptor="stimulus",
        cv_descriptor="run",
        noise=P,
    )
    found = crossnobis(repeats, noise=P, per_feature=True)
    np.testing.assert_allclose(found.upper(), expected.dissimilarities, rtol=1e-6)


def test_noise_makes_no_distance(rng):
    """Equal patterns are at 0 on average; the distance of means is not."""
    noise = rng.standard_normal((60, 40, 4))
    assert abs(crossnobis(noise).upper().mean()) < 1
    assert rdm(noise.mean(axis=2), "sqeuclidean").upper().mean() == pytest.approx(20, rel=0.1)


def test_what_a_run_adds_to_all_stimuli_cancels(rng, repeats):
    repeats[2, :, 1] = np.nan
    shifted = repeats + 5 * rng.standard_normal((1, 5, 4))
    np.testing.assert_allclose(crossnobis(shifted).values, crossnobis(repeats).values, atol=1e-8)


def test_pairs_without_two_common_repeats_are_not_measured(repeats):
    repeats[0, :, :2], repeats[1, :, 2:] = np.nan, np.nan
    found = crossnobis(repeats, ids=list("abcdef"))
    assert np.isnan(found.values[0, 0, 1])
    assert np.isnan(found.upper()).sum() == 1


def test_real_repeats(real_data):
    repeats = np.load(real_data / "v4" / "210325" / "responses_repeats.npy")[:100]
    found = crossnobis(repeats, noise=noise_precision(repeats), per_feature=True)
    assert np.nanmean(found.upper()) > 0.1
    assert np.isnan(found.upper()).mean() < 0.01


@pytest.mark.parametrize("dof", [None, 20])
def test_precision_is_rsatoolboxs(rng, dof):
    pytest.importorskip("rsatoolbox")
    from rsatoolbox.data.noise import prec_from_residuals

    residuals = rng.standard_normal((30, 8)) @ rng.standard_normal((8, 8))
    expected = prec_from_residuals(residuals, dof=dof, method="shrinkage_eye")
    np.testing.assert_allclose(noise_precision(residuals, dof=dof), expected, rtol=1e-6)
    full = prec_from_residuals(residuals, dof=dof, method="full")
    np.testing.assert_allclose(noise_precision(residuals, dof=dof, shrinkage=0), full, rtol=1e-6)


def test_repeats_give_the_covariance_of_their_noise(rng):
    root = rng.standard_normal((4, 4))
    noise = np.einsum("fg,igr->ifr", root, rng.standard_normal((3000, 4, 3)))
    noise[:1000, :, 2] = np.nan
    found = noise_precision(noise + 10 * rng.standard_normal((3000, 4, 1)))
    np.testing.assert_allclose(np.linalg.inv(found), root @ root.T, atol=0.3)
    assert np.allclose(
        noise_precision(noise, shrinkage=1), noise_precision(noise, shrinkage=1)[0, 0] * np.eye(4)
    )


PART = np.ones((3, 2, 3))
PART[1, 0, 2] = np.nan


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: crossnobis(np.ones((3, 2))), r"shape \(3, 2\).*sqmahalanobis"),
        (lambda: crossnobis(np.ones((3, 2, 1))), "two repeats or more"),
        (lambda: crossnobis(np.ones((1, 2, 3))), "two stimuli"),
        (lambda: crossnobis(PART), "Repeat 2 of stimulus 1 .*NaN in some features only"),
        (lambda: crossnobis(np.full((3, 2, 3), np.inf)), "hold infinity"),
        (lambda: noise_precision(np.ones(4)), "Noise is estimated from"),
        (lambda: noise_precision(np.ones((1, 4))), "0 degrees of freedom"),
        (lambda: noise_precision(np.full((5, 4), np.nan)), "residuals hold NaN"),
        (lambda: noise_precision(np.eye(5), shrinkage=2), "shrinkage is 2"),
        (lambda: noise_precision(np.eye(5), shrinkage="oas"), "shrinkage is 'oas'"),
        (lambda: noise_precision(np.eye(3), shrinkage=0), "singular"),
    ],
)
def test_bad_input_is_named(make, match):
    with pytest.raises(RequestError, match=match):
        make()
