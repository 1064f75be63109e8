"""Stimuli of one group, and ids that show one image, are never divided: not by early stopping, not by folds."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from featpipe import SiameseTuner
from featpipe.rsa import RDMs
from featpipe.stimuli import StimulusSet
from featpipe.tuning._folds import dealt_out, held_out_of_each_set


def divided(groups, rows):
    return set(groups[rows]) & set(np.delete(groups, rows))


@pytest.mark.parametrize("seed", range(5))
def test_a_group_with_stimuli_in_two_sets_is_not_divided(seed):
    ids = np.array([f"{name}/{number}" for name in "ab" for number in range(12)])
    groups = np.tile(np.arange(12), 2)
    fitted, held_out = held_out_of_each_set(ids, 0.25, seed=seed, groups=groups)
    assert np.array_equal(np.sort([*fitted, *held_out]), np.arange(24))
    assert not divided(groups, held_out)
    assert not any(divided(groups, own) for _, own in dealt_out(ids, 3, seed=seed, groups=groups))


def test_each_set_holds_out_its_share_and_a_fraction_of_zero_nothing():
    ids = np.array([f"a/{number}" for number in range(30)] + [f"b/{number}" for number in range(10)])
    fitted, held_out = held_out_of_each_set(ids, 0.2, seed=0)
    assert (held_out < 30).sum() == 6
    assert (held_out >= 30).sum() == 2
    assert np.array_equal(fitted, np.setdiff1d(np.arange(40), held_out))
    assert held_out_of_each_set(ids, 0, seed=0)[1] is None


@pytest.fixture
def twins(tiny_stimuli, tmp_path):
    """20 images, each under two ids."""
    for file in sorted(tiny_stimuli.iterdir()):
        shutil.copy(file, tmp_path / file.name)
        shutil.copy(file, tmp_path / f"again_{file.name}")
    return StimulusSet.from_source(tmp_path)


def test_ids_of_one_image_stop_or_train_together(twins):
    digests = np.array(twins.sha256)
    y = RDMs(1 - np.eye(len(digests)), twins.ids)
    how = {"weights": "random:0", "image_size": 32, "stimuli": twins, "max_epochs": 0, "device": "cpu"}
    tuner = SiameseTuner("timm:test_resnet", "layer2:mean", validation_fraction=0.2, **how)
    tuner.fit(y.ids, y)
    assert not divided(digests, np.flatnonzero(np.isin(y.ids, tuner.validation_ids_)))
    groups = np.arange(len(digests)) // 4  # own groups are joined with them
    together = tuner._undivided(y.ids, groups)
    assert len(np.unique(together)) < 10
    for one in np.unique(together):
        assert not divided(digests, together == one)
        assert not divided(groups, together == one)
