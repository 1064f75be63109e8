"""An epoch has every measured pair, or every stimulus, once; held-out pairs are scored as rdm_rho does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featpipe.errors import RequestError
from featpipe.rsa import RDMs, rdm, rdm_rho
from featpipe.tuning.rdms._pairs import PairBatches, StimulusBatches, held_out_rho, pairs_of, rdm_of_rows

SETS = np.array(["a"] * 9 + ["b"] * 14)
ROWS = np.array([0, 2, 3, 5, 8, 9, 10, 12, 15, 16, 17, 20, 22])


def _rdms(rng, n=3):
    values = rng.random((n, 23, 23))
    return RDMs(values + values.transpose(0, 2, 1), [f"{name}/{i}" for i, name in enumerate(SETS)])


def test_each_measured_pair_within_a_set_comes_once(rng):
    measured = rng.random((23, 23)) < 0.8
    measured &= measured.T
    batches = PairBatches(SETS, ROWS, 7, measured)(3)
    naive = {(i, j) for i in ROWS for j in ROWS if i < j and SETS[i] == SETS[j] and measured[i, j]}
    seen = [tuple(pair) for batch in batches for pair in batch.tolist()]
    assert len(seen) == len(set(seen))
    assert set(seen) == naive
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= 7
    assert max(sizes) - min(sizes) <= 1


def test_each_stimulus_comes_once_with_its_own_set():
    batches = StimulusBatches(SETS, ROWS, 4)(3)
    assert sorted(torch.cat(list(batches)).tolist()) == ROWS.tolist()
    assert all(len(set(SETS[batch])) == 1 for batch in batches)
    assert sorted(len(batch) for batch in batches) == [4, 4, 5]  # 5 are not divided: 2 stimuli are one pair


@pytest.mark.parametrize("batches", [PairBatches(SETS, ROWS, 7), StimulusBatches(SETS, ROWS, 4)])
def test_the_order_is_that_of_the_seed(batches):
    once, again, other = (torch.cat(list(batches(seed))).tolist() for seed in (1, 1, 2))
    assert once == again
    assert once != other


def test_each_image_goes_through_the_network_once_a_batch():
    batch = torch.tensor([[3, 9], [9, 4], [3, 4]])
    rows, first, second = pairs_of(batch)
    assert rows.tolist() == [3, 4, 9]
    torch.testing.assert_close(torch.stack([rows[first], rows[second]], 1), batch)
    rows, first, second = pairs_of(torch.tensor([7, 2, 5]))
    assert torch.stack([rows[first], rows[second]], 1).tolist() == [[7, 2], [7, 5], [2, 5]]


def test_held_out_pairs_are_scored_as_rdm_rho_does(rng):
    measured, predicted = _rdms(rng), _rdms(rng, 1).values[0]
    held_out = np.array([1, 4, 6, 7, 11, 13, 14, 18])
    score = held_out_rho(measured, held_out, lambda rows: predicted[np.ix_(rows, rows)])
    expected = rdm_rho(measured[held_out], RDMs(predicted, measured.ids)[held_out]).mean()
    np.testing.assert_allclose(score(), [-expected])


def test_what_is_not_held_out_does_not_change_the_score(rng):
    measured, predicted = _rdms(rng), _rdms(rng, 1).values[0]
    held_out = np.array([1, 4, 6, 7, 11, 13, 14, 18])
    others = np.setdiff1d(np.arange(23), held_out)
    values = measured.values.copy()
    values[:, others] = values[:, :, others] = 9
    one, two = (
        held_out_rho(y, held_out, lambda rows: predicted[np.ix_(rows, rows)])()
        for y in (measured, RDMs(values, measured.ids))
    )
    np.testing.assert_array_equal(one, two)


def test_a_prediction_that_is_no_number_scores_nan(rng):
    score = held_out_rho(_rdms(rng), ROWS, lambda rows: np.full((len(rows), len(rows)), np.inf))
    assert np.isnan(score()).tolist() == [True]


def test_rdm_of_rows_is_the_correlation_distance(rng):
    rows = rng.standard_normal((9, 4, 5, 2)).astype(np.float32)
    found = rdm_of_rows(torch.tensor(rows))
    np.testing.assert_allclose(found, rdm(rows.reshape(9, -1), "correlation").values[0], atol=1e-6)
    np.testing.assert_array_equal(found, found.T)
    assert not np.diag(found).any()


def test_too_few_stimuli_are_refused(rng):
    with pytest.raises(RequestError, match=r"'b' has 2 of 14 stimuli held out.*Raise validation_fraction"):
        held_out_rho(_rdms(rng), np.array([0, 1, 2, 9, 10]), lambda rows: None)
    with pytest.raises(RequestError, match=r"'b' has 2 stimuli to train on.*train on pairs"):
        StimulusBatches(SETS, np.array([0, 1, 2, 9, 10]), 8)
    with pytest.raises(RequestError, match="batch_size must be an int >= 3, got 2"):
        StimulusBatches(SETS, ROWS, 2)


def test_unmeasured_pairs_are_refused(rng):
    with pytest.raises(RequestError, match="no measured pair within a stimulus set among 2 stimuli"):
        PairBatches(SETS, np.array([0, 9]), 4)
    nothing = RDMs(np.full((1, 23, 23), np.nan), _rdms(rng).ids)
    with pytest.raises(RequestError, match=r"three measured pairs.*13 held-out stimuli"):
        held_out_rho(nothing, ROWS, lambda rows: None)
