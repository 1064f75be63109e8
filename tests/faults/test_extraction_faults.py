"""An extraction that the disk lets down anywhere ends with advice, and the next one finishes with the same rows."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pytest

from featpipe.errors import CacheReadError, CacheWriteError
from featpipe.extraction import Means, Order, extract
from featpipe.models import ModelRequest
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache

NUMBERS = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT]
MEANS = Means(device="cpu", batch_size=8, shard_rows=8, workers=1, codec="none")


@pytest.fixture
def run(tiny_backbone, tiny_stimuli, monkeypatch):
    """Return a function that extracts all images, or a third of them, to a cache; a mixed one takes both."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    order = Order(
        ModelRequest(tiny_backbone, trust=True), (LayerRequest("stem"), LayerRequest.parse("head:mean"))
    )
    stimuli = StimulusSet.from_source(tiny_stimuli)
    third = stimuli.select(stimuli.ids[::3])

    def run(root, only_third=False):
        return extract(order, third if only_third else stimuli, FeatureCache(root), means=MEANS).keys

    return run


def error_of(run, root):
    """Extract; return the error with advice, if there was one. Any other one fails the test."""
    try:
        run(root)
    except (CacheReadError, CacheWriteError) as error:
        return error
    return None


def rows_of(root, keys):
    return [FeatureCache(root).array(key).read() for key in keys]


@pytest.mark.slow
def test_failures_all_over_an_extraction(tmp_path, run, failing_disk):
    """At every thirteenth operation; those of the store are all taken in ``test_store_faults.py``."""
    start = tmp_path / "start"
    run(start, only_third=True)  # shards will mix copied and computed rows
    shutil.copytree(start, tmp_path / "sound")
    with failing_disk(tmp_path / "sound", None).attached() as counting:
        keys = run(tmp_path / "sound")
    sound = rows_of(tmp_path / "sound", keys)
    for at in range(0, counting.count, 13):
        number = NUMBERS[at % 5]
        root = tmp_path / str(at)
        shutil.copytree(start, root)
        with failing_disk(
            root, lambda number=number: OSError(number, os.strerror(number)), at
        ).attached() as disk:
            error = error_of(run, root)
        if error is None:  # only where the work was done all the same
            assert all(FeatureCache(root).array(key).complete for key in keys), disk.hit
        else:
            assert os.strerror(number) in str(error), disk.hit
        check_readable(root, keys, sound)
        run(root)
        for found, wanted in zip(rows_of(root, keys), sound, strict=True):
            np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))
        shutil.rmtree(root)


def check_readable(root, keys, sound):
    """What was committed before the failure is right."""
    cache = FeatureCache(root)
    assert cache.verify() == []
    for key, wanted in zip(keys, sound, strict=True):
        if key in cache.keys():
            array = cache.array(key)
            rows = np.flatnonzero(np.isin(np.arange(len(wanted)) // 8, sorted(array.committed)))
            np.testing.assert_array_equal(array.read(rows), wanted[rows])
