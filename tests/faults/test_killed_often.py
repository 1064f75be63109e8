"""Killed at 200 random moments, an extraction still gives the rows of an undisturbed one, bit for bit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from featpipe.store import FeatureCache

N_KILLS = 100  # that hit a running extraction, with and without rows to copy: 200 in all
CODECS = ("none", "zstd-fast")


@pytest.fixture
def extraction(tiny_backbone, tiny_stimuli):
    """Return a function that extracts in a process of its own, killed if so asked, and says how it ended."""
    command = [sys.executable, Path(__file__).with_name("forking.py"), tiny_backbone, tiny_stimuli]
    with subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:

        def extract(cache, **asked):
            server.stdin.write(json.dumps({"cache": str(cache), "codec": "none", **asked}) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield extract
        server.stdin.close()


def check(cache, sound, n_third):
    """Whatever counts is right; return how many shards of the whole set do."""
    count = 0
    for array in cache.arrays():
        if array.n_stimuli == n_third:
            continue
        shards = sorted(array.committed)
        rows = np.flatnonzero(np.isin(np.arange(array.n_stimuli) // array.shard_rows, shards))
        np.testing.assert_array_equal(
            array.read(rows).view(np.uint32), sound[array.key][rows].view(np.uint32)
        )
        count += len(shards)
    return count


def random_moment(rng, undisturbed, left):
    """Return when to kill: some time after the start, or some microseconds after a request to the system."""
    if rng.random() < 0.5:
        return {"after": rng.uniform(0, undisturbed["seconds"] * left)}
    return {
        "at": int(rng.integers(1, max(2, undisturbed["requests"] * left))),
        "after": rng.exponential(2e-4),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "mixed", [False, True]
)  # whether the cache holds a third of the images, of another set
def test_killed_at_random_moments(tmp_path, extraction, mixed):
    start, n_third, n_shards = tmp_path / "start", 7, 6
    if mixed:
        assert extraction(start, third=True)["code"] == 0
    undisturbed = [extraction(tmp_path / name) for name in ("first", "sound")][1]  # the first one warms up
    arrays = FeatureCache(tmp_path / "sound").arrays()
    sound = {array.key: array.read() for array in arrays}
    assert (undisturbed["code"], len(sound), sum(len(a.committed) for a in arrays)) == (0, 2, n_shards)
    rng, begun, codes, done = np.random.default_rng(mixed), Counter(), Counter(), 0
    while codes[-signal.SIGKILL] < N_KILLS:
        root, codec = tmp_path / str(done), CODECS[done % 2]
        if mixed and not root.exists():
            shutil.copytree(start, root)
        committed = check(FeatureCache(root), sound, n_third) if root.exists() else 0
        begun[committed] += 1
        moment = random_moment(rng, undisturbed, left=1 - committed / (n_shards + 1))
        codes[extraction(root, codec=codec, **moment)["code"]] += 1
        cache = FeatureCache(root)
        assert cache.verify() == []
        if check(cache, sound, n_third) == n_shards:
            assert mixed == any(record["reused"] for a in cache.arrays() for record in a.commits())
            shutil.rmtree(root)
            done += 1
    assert codes.keys() <= {0, -signal.SIGKILL}
    assert len(begun) > 3  # kills came early and late
