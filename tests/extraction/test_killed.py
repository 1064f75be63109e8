"""A run that is killed at any moment and started again gives the rows of an undisturbed one, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from featpipe.extraction import Means, Order, extract
from featpipe.models import ModelRequest
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache

SCRIPT = """
import os, sys, time
from featpipe.extraction import Means, Order, extract
from featpipe.models import ModelRequest
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache

model, images, cache, pipe = sys.argv[1:]
stimuli = StimulusSet.from_source(images)
order = Order(ModelRequest(model, trust=True), (LayerRequest("stem"), LayerRequest.parse("head:mean")))
os.write(int(pipe), b"x")  # imported and ready: from here on, be killed
extract(order, stimuli, FeatureCache(cache), means=Means(batch_size=8, shard_rows=8, codec="none"),
        progress=lambda done, total: time.sleep(0.01))
"""


def start(model, images, cache):
    """Start an extraction in a process of its own; return it once it is about to begin."""
    read, write = os.pipe()
    command = [sys.executable, "-c", SCRIPT, model, str(images), str(cache), str(write)]
    process = subprocess.Popen(command, pass_fds=[write])
    os.close(write)
    with os.fdopen(read, "rb") as ready:
        assert ready.read(1) == b"x"
    return process


def order_of(model):
    return Order(ModelRequest(model, trust=True), (LayerRequest("stem"), LayerRequest.parse("head:mean")))


MEANS = Means(batch_size=8, shard_rows=8, codec="none")


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [False, True])  # whether the cache holds some rows, of another set
def test_killed_and_started_again(tmp_path, tiny_backbone, tiny_stimuli, mixed):
    cache, stimuli = tmp_path / "killed", StimulusSet.from_source(tiny_stimuli)
    if mixed:
        extract(order_of(tiny_backbone), stimuli.select(stimuli.ids[::3]), FeatureCache(cache), means=MEANS)
    delays = np.random.default_rng(0).uniform(0.02, 0.25, 6)
    outcomes = []
    for delay in delays:
        process = start(tiny_backbone, tiny_stimuli, cache)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        outcomes.append(process.wait())
    assert -signal.SIGKILL in outcomes
    assert start(tiny_backbone, tiny_stimuli, cache).wait() == 0
    killed, sound = FeatureCache(cache), FeatureCache(tmp_path / "sound")
    done = extract(order_of(tiny_backbone), stimuli, sound, means=MEANS)
    assert set(done.keys) <= set(killed.keys())
    assert killed.verify() == []
    for key in done.keys:
        np.testing.assert_array_equal(killed.array(key).read(), sound.array(key).read())
        assert mixed == any(record["reused"] for record in killed.array(key).commits())


@pytest.mark.slow
def test_two_at_once_share_the_work_without_harm(tmp_path, tiny_backbone, tiny_stimuli):
    cache = tmp_path / "shared"
    both = [start(tiny_backbone, tiny_stimuli, cache) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    shared = FeatureCache(cache)
    assert shared.verify() == []
    assert all(array.complete for array in shared.arrays())


SLOW_NET = """
import time
from torch import nn
class Slow(nn.Module):
    def forward(self, pixels):
        time.sleep(0.5)
        return pixels
def build():
    size = {"resize": 32, "crop": [32, 32], "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
    return nn.Sequential(Slow(), nn.Flatten()), size
"""


def test_a_scheduler_that_ends_a_run_leaves_no_claim(tmp_path, tiny_stimuli):
    (tmp_path / "slow.py").write_text(SLOW_NET)
    words = ["extract", "--model", f"python:{tmp_path}/slow.py:build", "--trust", "--layers", "1", "--images"]
    words += [str(tiny_stimuli), "--cache", str(tmp_path / "cache"), "--batch-size", "8"]
    command = [sys.executable, "-m", "featpipe", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not files_below(tmp_path / "cache/claims"):
            time.sleep(0.02)
        process.terminate()
        _, said = process.communicate()
    assert process.returncode == 143, said
    assert (
        said == "featpipe: interrupted; features that were committed are kept, and are not computed again.\n"
    )
    assert files_below(tmp_path / "cache/claims") == files_below(tmp_path / "cache/tmp") == []


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]
