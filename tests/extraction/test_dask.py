"""Extraction on workers of dask gives the rows of one process, whoever is lost on the way."""

from __future__ import annotations

import json
import logging
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from featpipe.cli import main
from featpipe.errors import NonFiniteFeatures, RequestError, SpecError, WorkError
from featpipe.extraction import DaskWorkers, Means, Order, extract
from featpipe.models import ModelRequest
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache

distributed = pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")  # which distributed needs
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),  # distributed's own
]

MEANS = Means(batch_size=8, shard_rows=8, codec="none")
LOCAL = {"threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}


@pytest.fixture(scope="module")
def cluster():
    """A scheduler in this process and two workers in processes of their own."""
    with distributed.LocalCluster(n_workers=2, **LOCAL, silence_logs=logging.CRITICAL) as cluster:
        yield cluster


@pytest.fixture
def workers(cluster):
    with DaskWorkers(cluster.scheduler_address) as workers:
        yield workers


@pytest.fixture
def stimuli(tmp_path):
    """60 images, which are 8 shards."""
    pixels = np.random.default_rng(3).integers(0, 256, (60, 36, 36, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    return StimulusSet.from_source(tmp_path / "images.npy")


def order_of(model, **fields):
    return Order(
        ModelRequest(model, trust=True), tuple(map(LayerRequest.parse, ("stem", "head:mean"))), **fields
    )


def assert_equal_rows(keys, found, expected):
    found, expected = FeatureCache(found), FeatureCache(expected)
    assert found.verify() == []
    for key in keys:
        assert found.array(key).complete
        np.testing.assert_array_equal(found.array(key).read(), expected.array(key).read())


def test_rows_are_those_of_one_process(tmp_path, tiny_backbone, stimuli, workers):
    order, shown = order_of(tiny_backbone, n_views=1), []
    serial = extract(order, stimuli, FeatureCache(tmp_path / "serial"), means=MEANS)
    how = {"means": MEANS, "workers": workers, "progress": lambda *counts: shown.append(counts)}
    done = extract(order, stimuli, FeatureCache(tmp_path / "dask"), **how)
    assert done.keys == serial.keys
    assert (done.n_computed, done.n_reused, done.n_workers) == (120, 0, 2)
    assert (done.device, done.batch_size) == (serial.device, serial.batch_size)
    assert_equal_rows(done.keys, tmp_path / "dask", tmp_path / "serial")
    assert len(shown) == 16
    assert shown == sorted(shown)
    assert shown[-1] == (120, 120)
    records = [FeatureCache(tmp_path / where).array(done.keys[0]).commit(1) for where in ("dask", "serial")]
    assert records[0]["provenance"].keys() == records[1]["provenance"].keys()


def test_workers_settle_alike_what_was_left_open(tmp_path, tiny_backbone, stimuli, workers):
    order, found = order_of(tiny_backbone), FeatureCache(tmp_path / "dask")
    serial = extract(order, stimuli, FeatureCache(tmp_path / "serial"))
    done = extract(order, stimuli, found, workers=workers)
    assert done.batch_size == serial.batch_size == 32
    assert (
        found.stimuli(done.stimuli).shard_rows
        == FeatureCache(tmp_path / "serial").stimuli(done.stimuli).shard_rows
    )
    assert_equal_rows(done.keys, tmp_path / "dask", tmp_path / "serial")


def test_rows_of_another_set_are_copied(tmp_path, tiny_backbone, stimuli, workers):
    order, cache = order_of(tiny_backbone), FeatureCache(tmp_path / "dask")
    extract(order, stimuli.select(stimuli.ids[::3]), cache, means=MEANS)
    extract(order, stimuli.select(stimuli.ids[:16]), cache, means=MEANS)
    extract(order, stimuli, FeatureCache(tmp_path / "serial"), means=MEANS)
    done = extract(order, stimuli, cache, means=MEANS, workers=workers)
    assert (done.n_computed, done.n_reused) == (30, 20 + 16 - 6)
    assert_equal_rows(done.keys, tmp_path / "dask", tmp_path / "serial")
    again = extract(order, stimuli.select(stimuli.ids[5:50]), cache, means=MEANS, workers=workers)
    assert (again.n_computed, again.n_reused, again.device, again.batch_size) == (0, 45, "", 0)


def test_nothing_to_do_needs_no_workers(tmp_path, tiny_backbone, stimuli):
    cache = FeatureCache(tmp_path / "cache")
    extract(order_of(tiny_backbone), stimuli, cache, means=MEANS)
    with DaskWorkers("tcp://127.0.0.1:9") as nowhere:
        done = extract(order_of(tiny_backbone), stimuli, cache, means=MEANS, workers=nowhere)
    assert (done.n_computed, done.n_reused, done.n_workers) == (0, 0, 0)


NET = """
import os, signal, time
from pathlib import Path
import torch
from torch import nn

HERE = Path(__file__).parent


class Marked(nn.Module):
    '''Shows that it ran, and ends its process where a file says so: once, or always.'''

    def forward(self, x):
        if len(x) >= 8:  # no probe
            (HERE / f"ran-{os.getpid()}").touch()
            time.sleep(0.05)
            if (HERE / "deadly").exists():
                (HERE / "deadly").rename(HERE / "died")
                os.kill(os.getpid(), signal.SIGKILL)
            if (HERE / "always").exists():
                os.kill(os.getpid(), signal.SIGKILL)
        return x / (0 if (HERE / "dividing").exists() else 1)


def build():
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), Marked()))
    net.add_module("head", nn.Conv2d(8, 16, 3, stride=2))
    size = {"resize": 32, "crop": [32, 32], "interpolation": "bilinear"}
    return net, {**size, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
"""


@pytest.fixture
def marked(tmp_path):
    """A network that leaves and reads files beside it, and the folder."""
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "net.py").write_text(NET)
    return f"python:{folder / 'net.py'}:build", folder


def test_a_worker_that_is_killed_is_replaced(tmp_path, marked, stimuli, workers):
    model, folder = marked
    serial = extract(order_of(model), stimuli, FeatureCache(tmp_path / "serial"), means=MEANS)
    deaths = []

    def kill_once(done, total):
        """Kill a worker in the middle of a shard, once the first shard is done."""
        if not deaths:
            deaths.append(folder / "deadly")
            deaths[0].touch()

    how = {"means": MEANS, "workers": workers, "progress": kill_once}
    done = extract(order_of(model), stimuli, FeatureCache(tmp_path / "dask"), **how)
    assert (folder / "died").exists()
    assert (done.n_computed, done.n_reused) == (60, 0)
    assert_equal_rows(serial.keys, tmp_path / "dask", tmp_path / "serial")
    assert len(list(folder.glob("ran-*"))) >= 3  # this process, and two workers at least


def test_a_shard_that_ends_every_worker_is_given_up(tmp_path, marked, stimuli, workers, cluster, monkeypatch):
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    model, folder = marked
    (folder / "always").touch()
    with pytest.raises(WorkError, match="given up because 1 workers died"):
        extract(order_of(model), stimuli, FeatureCache(tmp_path / "dask"), means=MEANS, workers=workers)


def test_an_error_of_a_worker_is_the_error_of_the_command(tmp_path, marked, stimuli, workers, capfd):
    model, folder = marked
    cache = FeatureCache(tmp_path / "cache")
    (folder / "dividing").touch()
    with pytest.raises(NonFiniteFeatures, match="values that are NaN"):
        extract(order_of(model), stimuli, cache, means=MEANS, workers=workers)
    (folder / "dividing").unlink()
    with pytest.raises(SpecError, match="'tpu' cannot be used"):
        extract(order_of(model), stimuli, cache, means=Means(device="tpu", shard_rows=8), workers=workers)
    done = extract(order_of(model), stimuli, cache, means=MEANS, workers=workers)  # and workers are sound
    assert done.n_computed == 60
    assert capfd.readouterr() == ("", "")


def test_a_worker_of_another_version_is_named(tmp_path, tiny_backbone, stimuli, workers, monkeypatch):
    monkeypatch.setattr("featpipe.extraction._distributed.version", lambda name: "0.0.0")
    with pytest.raises(
        RequestError, match=r"Worker tcp://\S+ cannot take part: it has featpipe .*, not 0\.0\.0"
    ):
        extract(order_of(tiny_backbone), stimuli, FeatureCache(tmp_path / "new"), workers=workers)


def test_no_scheduler_at_an_address_is_named(tmp_path, tiny_backbone, stimuli):
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.5s"}),
        pytest.raises(RequestError, match=r"no dask scheduler at tcp://127\.0\.0\.1:9"),
        DaskWorkers("tcp://127.0.0.1:9") as nowhere,
    ):
        extract(order_of(tiny_backbone), stimuli, FeatureCache(tmp_path / "new"), workers=nowhere)


def test_what_a_task_carries_does_not_grow_with_the_images(
    monkeypatch, tmp_path, tiny_backbone, stimuli, workers
):
    sizes, submit = [], distributed.Client.submit

    def counted(client, function, *arguments, **options):
        sizes.append(len(pickle.dumps((function, arguments))))
        return submit(client, function, *arguments, **options)

    monkeypatch.setattr(distributed.Client, "submit", counted)
    extract(order_of(tiny_backbone), stimuli, FeatureCache(tmp_path / "dask"), means=MEANS, workers=workers)
    assert len(sizes) == 1 + 8
    assert max(sizes) < 400


def words_of(model, images, cache, *more):
    return [
        *("extract", "--model", model, "--trust", "--layers", "stem", "--layers", "head:mean", "--images", str(images)),
        *("--cache", str(cache), "--shard-rows", "8", "--batch-size", "8", *more),
    ]  # fmt: skip


def test_the_command_starts_and_ends_workers_and_survives_its_own_death(tmp_path, marked, stimuli, capfd):
    """Also: what was killed goes on where it stopped, and leaves no process behind."""
    model, _ = marked
    words = words_of(model, tmp_path / "images.npy", tmp_path / "cache", "--dask", "2")
    killed = subprocess.Popen([sys.executable, "-m", "featpipe", *words], stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "cache").glob("arrays/*/commits/*.json")):
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.02)
    left = psutil.Process(killed.pid).children(recursive=True)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    _, alive = psutil.wait_procs(left, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    before = len(list((tmp_path / "cache").glob("arrays/*/commits/*.json")))
    assert 0 < before < 16
    with pytest.raises(SystemExit) as end:
        main([*words, "--json"])
    out, err = capfd.readouterr()
    assert (end.value.code, err) == (0, "")
    found = json.loads(out)
    assert found["workers"] == 2
    assert 0 < found["computed"] <= 60
    serial = extract(order_of(model), stimuli, FeatureCache(tmp_path / "serial"), means=MEANS)
    assert_equal_rows(serial.keys, tmp_path / "cache", tmp_path / "serial")
