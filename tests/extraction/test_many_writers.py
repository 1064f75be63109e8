"""Extractions at the same time divide the work, and stopped or killed ones do no harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from featpipe.extraction import Means, Order, extract
from featpipe.extraction._order import by_view
from featpipe.extraction._plan import targets_of
from featpipe.extraction._run import Run
from featpipe.models import ModelRequest, resolve
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import ClaimFiles, Claims, FeatureCache, work_of
from featpipe.testing import make_images

SCRIPT = """
import json, os, signal, sys
from featpipe.extraction import Means, Order, extract
from featpipe.models import ModelRequest
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache

model, images, cache, layers, expiry, stops = sys.argv[1:]
order = Order(ModelRequest(model, trust=True), tuple(map(LayerRequest.parse, layers.split(","))))
means = Means(batch_size=8, shard_rows=16, codec="none", claim_expiry=float(expiry))
stops = iter([int(stops)])  # whether to stop once at work, until somebody says to go on

def progress(done, total):
    if next(stops, 0):
        os.kill(os.getpid(), signal.SIGSTOP)

done = extract(order, StimulusSet.from_source(images), FeatureCache(cache), means=means, progress=progress)
print(json.dumps({"computed": done.n_computed, "reused": done.n_reused}))
"""
N_STIMULI = 140  # nine shards, the last one short: more than one run decodes ahead
LAYERS = "stem,head:mean"
FOREVER = 1e9


@pytest.fixture
def images(tmp_path):
    make_images(tmp_path / "images", [f"{number:03}.png" for number in range(N_STIMULI)], size=40)
    return tmp_path / "images"


@pytest.fixture
def start(tmp_path, tiny_backbone, images):
    """Start an extraction in a process of its own, that may stop itself once it is at work."""
    started = []

    def one(*, layers=LAYERS, expiry=FOREVER, stops=False):
        given = [tiny_backbone, images, tmp_path / "cache", layers, expiry, int(stops)]
        command = [sys.executable, "-c", SCRIPT, *map(str, given)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        if stops:
            _, status = os.waitpid(started[-1].pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
        return started[-1]

    yield one
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def counts(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out)


def order_of(model, layers=LAYERS):
    return Order(ModelRequest(model, trust=True), tuple(map(LayerRequest.parse, layers.split(","))))


def assert_undisturbed(tmp_path, model, images):
    """The cache holds what one run alone would have written, bit for bit, and no claim."""
    shared, alone = FeatureCache(tmp_path / "cache"), FeatureCache(tmp_path / "alone")
    means = Means(batch_size=8, shard_rows=16, codec="none")
    done = extract(order_of(model), StimulusSet.from_source(images), alone, means=means)
    assert shared.verify() == []
    assert shared.keys() == alone.keys()
    for key in done.keys:
        np.testing.assert_array_equal(shared.array(key).read(), alone.array(key).read())
    assert [path for path in (tmp_path / "cache" / "claims").rglob("*") if path.is_file()] == []


def wait_for_a_commit(tmp_path):
    while not any(array.committed for array in FeatureCache(tmp_path / "cache").arrays()):
        time.sleep(0.05)


@pytest.mark.slow
def test_two_runs_divide_the_shards_and_compute_nothing_twice(tmp_path, tiny_backbone, images, start):
    first, second = start(stops=True), start()
    wait_for_a_commit(tmp_path)  # of the second: the first one has claimed some, and stands still
    first.send_signal(signal.SIGCONT)
    parts = [counts(first)["computed"], counts(second)["computed"]]
    assert sum(parts) == N_STIMULI
    assert min(parts) > 0
    assert_undisturbed(tmp_path, tiny_backbone, images)


@pytest.mark.slow
def test_what_a_killed_run_had_claimed_is_taken_over(tmp_path, tiny_backbone, images, start):
    killed = start(stops=True)
    other = start()  # whose claims never expire: it sees that the other is dead
    wait_for_a_commit(tmp_path)
    killed.kill()
    assert counts(other)["computed"] == N_STIMULI
    assert_undisturbed(tmp_path, tiny_backbone, images)


@pytest.mark.slow
def test_a_run_that_stood_still_is_robbed_and_ends_without_harm(tmp_path, tiny_backbone, images, start):
    robbed, thief = start(stops=True), start(expiry=1.0)
    assert counts(thief)["computed"] == N_STIMULI
    robbed.send_signal(signal.SIGCONT)
    assert counts(robbed)["computed"] < N_STIMULI
    assert_undisturbed(tmp_path, tiny_backbone, images)


@pytest.mark.slow
def test_runs_of_other_layers_take_turns(tmp_path, tiny_backbone, images, start):
    first, second = start(layers="stem", stops=True), start(layers="head:mean")
    wait_for_a_commit(tmp_path)
    first.send_signal(signal.SIGCONT)
    assert counts(first)["computed"] == counts(second)["computed"] == N_STIMULI
    assert_undisturbed(tmp_path, tiny_backbone, images)


def run_of(cache, model, images, **means):
    """Return a run on a cache, and the claims of somebody else on its work."""
    stimuli, order = StimulusSet.from_source(images), order_of(model)
    card = resolve(order.model)
    (targets,) = by_view(targets_of(order, card, stimuli.digest))
    means = Means(batch_size=8, shard_rows=16, codec="none", **means)
    run = Run(order, stimuli, cache, means, card, targets, None)
    return run, Claims(ClaimFiles(cache.root, work_of(targets[0].spec, stimuli.digest)))


def test_a_run_of_some_shards_makes_only_those(tmp_path, tiny_backbone, images):
    cache = FeatureCache(tmp_path / "cache")
    run, _ = run_of(cache, tiny_backbone, images)
    run.work(only=[1, 8])
    assert [array.committed for array in cache.arrays()] == [{1, 8}] * 2
    assert run.n_computed == 16 + N_STIMULI % 16


def test_a_run_waits_for_claimed_shards_and_says_for_whom(tmp_path, tiny_backbone, images, monkeypatch):
    cache = FeatureCache(tmp_path / "cache")
    run, others = run_of(cache, tiny_backbone, images)
    pauses = []
    with others:
        assert others.take("2")

        def pause(seconds):
            pauses.append([array.missing for array in cache.arrays()])
            if len(pauses) == 6:
                others.release("2")

        monkeypatch.setattr("featpipe.extraction._shares.time.sleep", pause)
        with pytest.warns(UserWarning, match=rf"Waiting for shard 2: process {os.getpid()} on .*") as told:
            run.work()
    assert len(told) == 1
    assert pauses == [[[2]] * 2] * 6  # all else is committed before it waits
    assert run.n_computed == N_STIMULI
    assert all(array.complete for array in cache.arrays())


def test_what_others_commit_meanwhile_is_not_computed(tmp_path, tiny_backbone, images, monkeypatch):
    cache = FeatureCache(tmp_path / "cache")
    run, others = run_of(cache, tiny_backbone, images)
    other, _ = run_of(cache, tiny_backbone, images)
    seen = []
    run.progress = lambda done, total: seen.append((done, total))
    with others:
        others.take("2")

        def pause(_):
            others.release("2")
            if not other.n_computed:
                other.work(only=[2])

        monkeypatch.setattr("featpipe.extraction._shares.time.sleep", pause)
        run.work()
    assert (run.n_computed, other.n_computed) == (N_STIMULI - 16, 16)
    assert seen[-1] == (N_STIMULI, N_STIMULI)
