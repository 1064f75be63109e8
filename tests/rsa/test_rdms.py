"""Laws of `RDMs`: what slicing, joining and standardising must keep."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import squareform
from scipy.stats import rankdata, zscore

from featpipe.errors import RequestError
from featpipe.rsa import RDMs, concat, stack, stimulus_sets

hypothesis = settings(max_examples=25, deadline=None)


def make(n, n_rdms=2, *, seed=0, prefix="", missing=0.0, **labels):
    """Random RDMs, a share of whose pairs is not measured."""
    rng = np.random.default_rng(seed)
    vectors = rng.random((n_rdms, n * (n - 1) // 2))
    vectors[rng.random(vectors.shape) < missing] = np.nan
    return RDMs.from_upper(vectors, [f"{prefix}{k}" for k in range(n)], **labels)


sizes, seeds = st.integers(2, 9), st.integers(0, 99)


@hypothesis
@given(n=sizes, n_rdms=st.integers(1, 3), seed=seeds)
def test_upper_and_from_upper_are_inverse(n, n_rdms, seed):
    rdms = make(n, n_rdms, seed=seed, missing=0.2)
    assert RDMs.from_upper(rdms.upper(), rdms.ids) == rdms
    assert rdms.with_upper(rdms.upper()) == rdms
    np.testing.assert_array_equal(rdms.upper()[0], squareform(rdms.values[0], checks=False))  # row by row


@hypothesis
@given(n=sizes, m=sizes, seed=seeds, data=st.data())
def test_taking_from_a_join_gives_the_parts(n, m, seed, data):
    a, b = make(n, seed=seed, prefix="a/"), make(m, seed=seed + 1, prefix="b/")
    joined = concat([a, b])
    assert joined.take(a.ids) == a
    assert joined.take(b.ids) == b
    assert dict(joined.split_sets()) == {"a": a, "b": b}
    order = data.draw(st.permutations(range(n + m)))
    shuffled = joined[order]
    assert shuffled.take(joined.ids) == joined
    assert np.isnan(joined.upper()).sum() == 2 * n * m  # two RDMs


@hypothesis
@given(n=sizes, seed=seeds, data=st.data())
def test_slicing_is_slicing_both_axes(n, seed, data):
    rdms = make(n, seed=seed)
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True)))
    mask = np.isin(np.arange(n), rows)
    np.testing.assert_array_equal(rdms[rows].values, rdms.values[:, rows][:, :, rows])
    assert rdms[rows, ...] == rdms[(rows, slice(None))] == rdms[rows.tolist()] == rdms[rows]
    assert rdms[mask] == rdms[mask.tolist()] == rdms[np.flatnonzero(mask)]
    assert rdms[1:] == rdms[np.arange(1, n)]
    assert rdms[rows - n] == rdms[rows]  # counted from the end


@pytest.mark.parametrize("index", [3, np.int64(3), -2])
def test_a_scalar_gives_one_stimulus(index):
    one = make(5)[index]
    assert (len(one), one.shape, one.n_pairs) == (1, (1,), 0)
    assert one.ids.tolist() == ["3"]
    assert one.values.shape == (2, 1, 1)


@hypothesis
@given(n=sizes, seed=seeds)
def test_a_bootstrap_leaves_out_pairs_of_one_stimulus_with_itself(n, seed):
    rdms = make(n, seed=seed)
    rows = np.random.default_rng(seed).integers(0, n, n)
    drawn = rdms[rows]
    same = (rows[:, None] == rows) & ~np.eye(n, dtype=bool)
    np.testing.assert_array_equal(np.isnan(drawn.values[0]), same)
    np.testing.assert_array_equal(drawn.values[:, ~same], rdms.values[:, rows[:, None], rows][:, ~same])
    np.testing.assert_array_equal(np.diagonal(drawn.values, axis1=1, axis2=2), 0)


@hypothesis
@given(n=st.integers(3, 8), m=st.integers(3, 8), seed=seeds, missing=st.sampled_from([0.0, 0.3]))
def test_zscore_and_rank_see_one_set_at_a_time(n, m, seed, missing):
    a, b = (
        make(n, seed=seed, prefix="a/", missing=missing),
        make(m, seed=seed + 1, prefix="b/", missing=missing),
    )
    shifted = b.with_upper(5 + 3 * b.upper())
    for change in (RDMs.zscore, RDMs.rank):
        joined = change(concat([a, shifted]))
        for found, alone in ((joined.take(a.ids), change(a)), (joined.take(b.ids), change(b))):
            np.testing.assert_allclose(found.values, alone.values, atol=1e-9)
        assert np.isnan(joined.values[0, : len(a), len(a) :]).all()


@pytest.mark.parametrize("missing", [0, 0.3])
def test_zscore_and_rank_are_scipys(missing):
    rdms = make(8, 3, missing=missing).with_upper(np.round(make(8, 3, missing=missing).upper(), 1))  # ties
    expected = zscore(rdms.upper(), axis=1, nan_policy="omit")
    np.testing.assert_allclose(rdms.zscore().upper(), expected, atol=1e-12)
    ranks = rankdata(rdms.upper(), axis=1, nan_policy="omit")
    np.testing.assert_array_equal(rdms.rank().upper(), ranks)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9])
def test_a_constant_rdm_becomes_zero(value):
    rdms = RDMs.from_upper(np.full((1, 10), value))
    np.testing.assert_array_equal(rdms.zscore().upper(), 0)
    np.testing.assert_array_equal(rdms.rank().upper(), 5.5)


@hypothesis
@given(n=sizes, n_rdms=st.integers(1, 4), seed=seeds, missing=st.sampled_from([0.0, 0.4]))
def test_mean_leaves_out_what_was_not_measured(n, n_rdms, seed, missing):
    rdms = make(n, n_rdms, seed=seed, missing=missing)
    vectors = rdms.upper()
    measured = [column[~np.isnan(column)] for column in vectors.T]
    expected = [column.mean() if column.size else np.nan for column in measured]
    np.testing.assert_allclose(rdms.mean().upper()[0], expected)
    assert (rdms.mean().n_rdms, rdms.mean().subjects) == (1, ("mean",))


def test_average_over_times_keeps_subjects_and_targets_apart():
    labels = {
        "subjects": list("aabbab"),
        "targets": ["early"] * 4 + ["late"] * 2,
        "times": [0, 1, 0, 1, 0, 0],
    }
    rdms = make(4, 6, **labels)
    means = rdms.average_times()
    assert list(zip(means.targets, means.subjects, strict=True)) == [
        ("early", "a"), ("early", "b"), ("late", "a"), ("late", "b"),
    ]  # fmt: skip
    np.testing.assert_allclose(means.values[1], rdms.values[2:4].mean(axis=0))
    assert means.times is None
    assert means.average_times() is means


def test_select_by_target_and_subject():
    rdms = make(4, 4, subjects=list("abab"), targets=["EVC", "EVC", "IT", "IT"])
    assert rdms.target_names == ("EVC", "IT")
    assert (rdms.n_subjects, rdms.n_rdms, rdms.n_stimuli) == (2, 4, 4)
    np.testing.assert_array_equal(rdms.select(targets=["IT"], subjects=["b"]).values, rdms.values[3:])
    np.testing.assert_array_equal(rdms.select(targets="IT", subjects="b").values, rdms.values[3:])
    with pytest.raises(RequestError, match="no target 'V4' among these RDMs, only EVC, IT"):
        rdms.select(targets=["V4"])
    with pytest.raises(RequestError, match="no subject 'c'"):
        rdms.select(subjects=["c"])


def test_concat_aligns_subjects():
    a = make(3, subjects=["x", "y"], prefix="a/")
    b = make(4, subjects=["x", "y"], prefix="b/")
    assert concat([a, b.rows(np.array([1, 0]))]) == concat([a, b])
    with pytest.raises(RequestError, match=r"not measured in the same subjects.*differ in \[\('y'"):
        concat([a, b.rows(np.array([0]))])
    with pytest.raises(RequestError, match="stimulus id in common; write ids as SET/NAME"):
        concat([a, a])
    with pytest.raises(RequestError, match="same subject, target and time"):
        concat([make(4, subjects=["x", "x"], prefix=prefix) for prefix in ("a/", "b/")])


def test_stack_puts_measurements_of_the_same_stimuli_together():
    fmri = make(4, targets=["EVC"] * 2)
    meg = make(4, 3, targets=["early"] * 3, times=[0, 1, 2])
    both = stack([fmri, meg])
    assert both.times == (0, 0, 0, 1, 2)
    np.testing.assert_array_equal(both.select(targets=["early"]).values, meg.values)
    with pytest.raises(RequestError, match="different stimuli cannot be put under one another"):
        stack([fmri, meg[[1, 0, 2, 3]]])


def test_sets_are_what_stands_before_the_slash():
    assert stimulus_sets(["92/image_01", "a/b/c", "plain"]).tolist() == ["92", "a", ""]


def test_values_and_labels_do_not_change(rng):
    given_values = squareform(rng.random(6))
    rdms = RDMs(given_values, list("abcd"))
    given_values[:] = 9
    assert rdms.values.max() < 1
    with pytest.raises(ValueError, match="read-only"):
        rdms.values[0, 0, 1] = 3
    with pytest.raises(ValueError, match="read-only"):
        pickle.loads(pickle.dumps(rdms)).values[:] = 0


def test_precision_is_kept(rng):
    square = squareform(rng.random(6))
    assert RDMs(square.astype(np.float32)).values.dtype == np.float32
    assert RDMs((square * 10).astype(int)).values.dtype == np.float64
    assert RDMs(square.astype(np.float32))[[0, 2]].zscore().values.dtype == np.float64


def test_equality_looks_at_values_and_labels():
    rdms = make(4)
    assert rdms == make(4)
    assert rdms != make(4, seed=1)
    assert rdms != make(4, prefix="a/")
    assert rdms != make(4, targets=["IT", "IT"])
    assert rdms != make(4, times=[0, 1])
    assert rdms != "RDMs"


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (np.zeros((3, 4)), {}, r"have shape \(3, 4\)"),
        (np.zeros(6), {}, "RDMs.from_upper"),
        (np.zeros((0, 4, 4)), {}, r"shape \(0, 4, 4\)"),
        ([["a", "b"], ["c", "d"]], {}, "of type <U1; real numbers"),
        (np.zeros((2, 2), complex), {}, "of type complex128"),
        ([[0, np.inf], [np.inf, 0]], {}, "hold infinity"),
        ([[0, 1], [2, 0]], {}, "not symmetric"),
        ([[0, np.nan], [2, 0]], {}, "not symmetric"),
        (np.zeros((2, 2)), {"ids": ["a"]}, "1 ids for 2"),
        (np.zeros((2, 2)), {"subjects": ["a", "b"]}, "2 subjects for 1"),
        (np.zeros((2, 2)), {"targets": []}, "0 targets for 1"),
        (np.zeros((2, 2)), {"times": [1, 2]}, "2 times for 1"),
    ],
)
def test_what_is_no_rdm_is_refused(values, labels, message):
    with pytest.raises(RequestError, match=message):
        RDMs(values, **labels)


def test_wrong_selections_are_named():
    rdms = make(4)
    with pytest.raises(RequestError, match="5 dissimilarities are no upper triangle"):
        RDMs.from_upper(np.zeros(5))
    with pytest.raises(RequestError, match="1 of 2 stimuli are not in these RDMs, first 'x'"):
        rdms.take(["0", "x"])
    with pytest.raises(RequestError, match="hold a stimulus twice"):
        rdms[[0, 0]].take(["0"])
    with pytest.raises(RequestError, match="one axis, the stimuli; the index"):
        rdms[0, 1]
    with pytest.raises(IndexError, match="out of bounds"):
        rdms[[4]]
    with pytest.raises(IndexError, match="boolean"):
        rdms[np.ones(3, dtype=bool)]
    with pytest.raises(TypeError, match="not iterable"):
        iter(rdms)


def test_size_is_that_of_the_values():
    """Or dask embeds the target in every task."""
    rdms = make(100, 3)
    assert sys.getsizeof(rdms) >= rdms.values.nbytes == 3 * 100 * 100 * 8
