"""Targets are means of what was measured, in units that held-out stimuli cannot move."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.errors import RequestError
from featpipe.rsa import RDMs
from featpipe.tuning.rdms._targets import RangeMap, mean_dissimilarities, range_of, to_range

IDS = [f"a/{i}" for i in range(7)] + [f"b/{i}" for i in range(5)]
ALL = np.arange(12)
ROWS = np.array([0, 1, 3, 6, 7, 8, 11])
WAYS = [{}, {"normalise": "zscore"}, {"normalise": "zscore", "rescale": (2, 5)}]


def _rdms(rng, n=3, times=None):
    values = rng.random((n, 12, 12)) * np.arange(1, n + 1)[:, None, None]
    values += values.transpose(0, 2, 1)
    subjects = None if times is None else [str(i // 2) for i in range(n)]
    return RDMs(values, IDS, subjects=subjects, times=times)


@pytest.fixture
def rdms(rng):
    return _rdms(rng)


def _with_gap(rdms, subject, i, j):
    values = rdms.values.copy()
    values[subject, [i, j], [j, i]] = np.nan
    return RDMs(values, rdms.ids)


def test_of_all_stimuli_it_is_the_mean_of_z_scores(rdms):
    rdms = _with_gap(rdms, 1, 0, 2)
    found = mean_dissimilarities(rdms, ALL, normalise="zscore")
    known = ~np.isnan(found)
    np.testing.assert_allclose(found[known], rdms.zscore().mean().values[0][known])
    assert known.sum() == 7 * 6 + 5 * 4  # pairs within sets, and no stimulus with itself


def test_without_normalisation_it_is_the_mean(rdms):
    found = mean_dissimilarities(rdms, ROWS)
    known = ~np.isnan(found)
    np.testing.assert_allclose(found[known], rdms.mean().values[0][known])


@pytest.mark.parametrize("ways", WAYS)
def test_no_dissimilarity_of_a_held_out_stimulus_changes_a_training_target(rdms, rng, ways):
    values = rdms.values.copy()
    held_out = np.setdiff1d(ALL, ROWS)
    noise = rng.random((3, 12, 12)) * 100
    values[:, held_out] += noise[:, held_out]
    values[:, :, held_out] += noise[:, held_out].transpose(0, 2, 1)
    inner = np.ix_(ROWS, ROWS)
    before, after = (mean_dissimilarities(y, ROWS, **ways) for y in (rdms, RDMs(values, IDS)))
    np.testing.assert_array_equal(before[inner], after[inner])
    assert to_range(before, ROWS)[1](0.5) == to_range(after, ROWS)[1](0.5)


def test_z_scores_of_training_pairs_have_mean_zero_and_deviation_one(rng):
    rdms = _rdms(rng, n=1)
    found = mean_dissimilarities(rdms, ROWS, normalise="zscore")
    for own in (ROWS[ROWS < 7], ROWS[ROWS >= 7]):
        pairs = found[np.ix_(own, own)]
        pairs = pairs[~np.isnan(pairs)]
        np.testing.assert_allclose([pairs.mean(), pairs.std()], [0, 1], atol=1e-12)


def test_times_are_averaged_before_anything_is_standardised(rng):
    rdms = _rdms(rng, n=4, times=[0, 1, 0, 1])
    np.testing.assert_array_equal(
        mean_dissimilarities(rdms, ROWS, normalise="zscore"),
        mean_dissimilarities(rdms.average_times(), ROWS, normalise="zscore"),
    )


def test_rescaling_is_the_reports_line(rdms):
    z = mean_dissimilarities(rdms, ROWS, normalise="zscore")
    np.testing.assert_allclose(
        mean_dissimilarities(rdms, ROWS, normalise="zscore", rescale=(2, 5)), (z + 2) / 5
    )


def test_a_subject_that_lacks_a_pair_leaves_it_to_the_others(rdms):
    found = mean_dissimilarities(_with_gap(rdms, 0, 1, 3), ROWS)
    np.testing.assert_allclose(found[1, 3], rdms.values[1:, 1, 3].mean())
    nobody = _with_gap(_with_gap(_with_gap(rdms, 0, 1, 3), 1, 1, 3), 2, 1, 3)
    assert np.isnan(mean_dissimilarities(nobody, ROWS)[1, 3])


def test_a_constant_rdm_becomes_zero(rdms):
    flat = RDMs(np.full((1, 12, 12), 0.1), IDS)
    found = mean_dissimilarities(flat, ROWS, normalise="zscore")
    assert not np.nan_to_num(found).any()


def test_the_range_is_that_of_training_pairs_and_goes_back(rdms):
    values = mean_dissimilarities(rdms, ROWS)
    mapped, inverse = to_range(values, ROWS)
    inner = mapped[np.ix_(ROWS, ROWS)]
    assert (np.nanmin(inner), np.nanmax(inner)) == (0, 1)
    np.testing.assert_allclose(inverse(mapped), values)
    assert range_of(values, ROWS).inverse(np.array([0.0, 1.0])).tolist() == pytest.approx(
        [np.nanmin(values[np.ix_(ROWS, ROWS)]), np.nanmax(values[np.ix_(ROWS, ROWS)])]
    )


def test_a_range_map_is_a_line():
    found = RangeMap(2, 6)
    np.testing.assert_allclose(found(np.array([2, 6, 8])), [0, 1, 1.5])
    np.testing.assert_allclose(found.inverse(np.array([0, 1, 1.5])), [2, 6, 8])


def test_nothing_to_learn_is_refused(rdms):
    with pytest.raises(RequestError, match=r"7 stimuli of the training there are 9 measured.*all of them 3"):
        range_of(np.where(np.isnan(mean_dissimilarities(rdms, ROWS)), np.nan, 3.0), ROWS)
    with pytest.raises(RequestError, match="0 measured pairs within stimulus sets, none"):
        range_of(np.full((12, 12), np.nan), ROWS)


def test_unknown_ways_are_refused(rdms):
    with pytest.raises(RequestError, match="normalise must be None or 'zscore', got 'rank'"):
        mean_dissimilarities(rdms, ROWS, normalise="rank")
    with pytest.raises(RequestError, match="divisor that is not 0"):
        mean_dissimilarities(rdms, ROWS, rescale=(2, 0))
