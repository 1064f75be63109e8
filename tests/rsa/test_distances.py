"""Distances are those of scipy and rsatoolbox, also where products of float32 would lose them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

from featpipe.errors import RequestError
from featpipe.rsa._distances import rdm

METRICS = ["correlation", "cosine", "euclidean", "sqeuclidean"]


@pytest.fixture
def precision(rng):
    """A noise precision of seven features."""
    root = rng.standard_normal((7, 7))
    return root @ root.T + np.eye(7)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("n_stimuli", "n_features"), [(2, 3), (40, 7), (7, 5000), (600, 20)])
def test_matches_scipy(rng, metric, n_stimuli, n_features):
    X = rng.standard_normal((n_stimuli, n_features)) + 3
    np.testing.assert_allclose(rdm(X, metric).upper()[0], pdist(X, metric), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_float32_is_as_good_as_float64(rng, metric):
    X = np.maximum(rng.standard_normal((80, 20_000)) + 0.5, 0).astype(np.float32)
    found, exact = rdm(X, metric).upper()[0], pdist(X.astype(np.float64), metric)
    np.testing.assert_allclose(found, exact, rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_what_all_stimuli_share_does_not_drown_their_differences(rng, metric):
    shared = 100 * rng.standard_normal(3000)
    X = (shared + 0.1 * rng.standard_normal((30, 3000))).astype(np.float32)
    exact = pdist(X.astype(np.float64), metric)  # 1e-6 for 1 − r: of the size of float32's rounding
    np.testing.assert_allclose(rdm(X, metric).upper()[0], exact, rtol=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_small_distances_keep_their_digits(rng, metric):
    X = rng.standard_normal((10, 1000)).astype(np.float32)
    X[3] = X[4]
    X[5] = X[6] * (1 + 1e-3 * rng.standard_normal(1000))
    found = rdm(X, metric).values[0]
    assert found[3, 4] == 0
    assert found[5, 6] == pytest.approx(
        cdist(X[[5]].astype(float), X[[6]].astype(float), metric)[0, 0], rel=1e-3
    )


def test_mahalanobis_is_scipys(rng, precision):
    X = rng.standard_normal((12, 7))
    found = rdm(X, "mahalanobis", noise=precision)
    np.testing.assert_allclose(found.upper()[0], pdist(X, "mahalanobis", VI=precision))
    squared = rdm(X, "sqmahalanobis", noise=precision)
    np.testing.assert_allclose(squared.values, found.values**2, atol=1e-10)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("correlation", {"metric": "correlation"}),
        ("euclidean", {"metric": "sqeuclidean", "per_feature": True}),
        ("mahalanobis", {"metric": "sqmahalanobis", "per_feature": True, "noise": True}),
    ],
)
def test_matches_rsatoolbox(rng, precision, theirs, ours):
    pytest.importorskip("rsatoolbox")
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm

    X = rng.standard_normal((12, 7))
    noise = precision if ours.pop("noise", False) else None
    expected = calc_rdm(Dataset(X.copy()), method=theirs, noise=noise).dissimilarities
    np.testing.assert_allclose(rdm(X, noise=noise, **ours).upper(), expected, rtol=1e-6)


def test_correlation_looks_past_scale_and_offset_of_a_row(rng):
    X = rng.standard_normal((20, 50))
    moved = X * rng.uniform(0.1, 10, (20, 1)) + rng.standard_normal((20, 1))
    np.testing.assert_allclose(rdm(moved).values, rdm(X).values, atol=1e-12)


@pytest.mark.parametrize(("metric", "value"), [("correlation", 0.1), ("cosine", 0.0)])
def test_a_row_without_direction_has_no_distance(rng, metric, value):
    X = rng.standard_normal((5, 300)).astype(np.float32)
    X[2] = value
    found = rdm(X, metric)
    assert np.isnan(found.values[0, 2, [0, 1, 3, 4]]).all()
    assert np.isnan(found.upper()).sum() == 4
    assert found.values[0, 2, 2] == 0


def test_the_number_of_threads_changes_no_bit(rng):
    from threadpoolctl import threadpool_limits

    X = rng.standard_normal((600, 300)).astype(np.float32)
    with threadpool_limits(1, user_api="blas"):
        alone = rdm(X)
    with threadpool_limits(2, user_api="blas"):
        assert rdm(X) == alone


def test_input_stays_and_labels_come_along(rng):
    X = rng.standard_normal((3, 4))
    given = X.copy()
    found = rdm(X, ids=["92/a", "92/b", "118/c"], dtype="float32")
    np.testing.assert_array_equal(X, given)
    assert found.ids.tolist() == ["92/a", "92/b", "118/c"]
    assert found.values.dtype == np.float32
    assert not found.values.flags.writeable
    assert rdm(X).ids.tolist() == ["0", "1", "2"]
    assert np.isnan(rdm(X, ids=["a", "b", "a"]).values[0, 0, 2])  # a stimulus with itself, as RDMs have it


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool, np.float16])
def test_numbers_of_any_kind(rng, dtype):
    X = rng.integers(0, 2, (6, 40)).astype(dtype)
    np.testing.assert_allclose(rdm(X).upper()[0], pdist(X.astype(float), "correlation"), rtol=1e-6)


GOOD = np.arange(12.0).reshape(3, 4) ** 2


@pytest.mark.parametrize(
    ("X", "arguments", "match"),
    [
        (np.where(GOOD == 25, np.nan, GOOD), {}, "stimulus '1' hold NaN"),
        (np.where(GOOD == 25, np.inf, GOOD), {"ids": list("abc")}, "stimulus 'b' hold NaN or infinity"),
        (GOOD[:1], {}, "no pairs among 1 stimuli"),
        (GOOD[:, :1], {}, "undefined over 1 features"),
        (GOOD, {"metric": "manhattan"}, "no metric 'manhattan'.*correlation, cosine"),
        (GOOD, {"metric": "mahalanobis"}, "needs noise=.*noise_precision"),
        (GOOD, {"noise": np.eye(4)}, "for the Mahalanobis distances, not for 'correlation'"),
        (GOOD, {"metric": "mahalanobis", "noise": np.eye(3)}, r"shape \(3, 3\).*\(4, 4\)"),
        (GOOD, {"metric": "mahalanobis", "noise": -np.eye(4)}, "not positive definite"),
        (GOOD, {"metric": "mahalanobis", "noise": np.triu(np.ones((4, 4)))}, "symmetric"),
        (GOOD, {"per_feature": True}, "has no scale to divide"),
        (GOOD, {"ids": ["a"]}, "1 ids for 3 stimuli"),
        (GOOD, {"dtype": "float16"}, "float32 or float64, not float16"),
        (GOOD[None], {}, r"shape \(1, 3, 4\).*crossnobis"),
        (np.array([["a", "b"]]), {}, "computed from numbers"),
        ((1e30 * GOOD).astype(np.float32), {"metric": "euclidean"}, "overflow"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_bad_input_is_named(X, arguments, match):
    with pytest.raises(RequestError, match=match):
        rdm(X, **arguments)
