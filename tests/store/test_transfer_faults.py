"""Copying over bad lines, and killed in the middle: it finishes, or says so and goes on when run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from featpipe.store import FeatureCache
from featpipe.testing import file_server, proxy, s3_environment

obstore = pytest.importorskip("obstore")
pytestmark = pytest.mark.usefixtures("impatient_disk")


@pytest.fixture
def source(tmp_path, make_writer, fill):
    """Two arrays of three shards of 1.5 MiB."""
    for layer in ("layer1", "layer2"):
        fill(*make_writer(tmp_path / "source", shape=(3, 128, 128), layer=layer))
    return FeatureCache(tmp_path / "source")


@pytest.fixture
def command(tmp_path):
    """Start ``featpipe cache …`` as a process of its own."""

    def start(*words, endpoint=None):
        environment = os.environ | ({} if endpoint is None else s3_environment(endpoint))
        return subprocess.Popen(
            [sys.executable, "-m", "featpipe", "cache", *words],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def done(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def same_rows(source, other):
    there = FeatureCache(other)
    assert there.keys() == source.keys()
    for key in source.keys():
        assert there.array(key).complete
        assert there.array(key).commits() == source.array(key).commits()
        assert np.array_equal(there.array(key).read(), source.array(key).read())


BAD_LINES = {
    "slow": {"latency": 0.02, "bandwidth": 20e6},
    "answers cut": {"latency": 0.005, "drop_after": 300_000, "drop_every": 3},
    "requests cut": {"drop_upload_after": 500_000, "drop_every": 3},
    "answers lost": {"drop_after": 0, "drop_every": 4},
}


@pytest.mark.parametrize("weather", BAD_LINES)
def test_copies_over_a_bad_line_arrive(source, s3, s3_bucket, tmp_path, command, weather):
    with proxy(s3.url, **BAD_LINES[weather]) as line:
        for words in (["push", s3_bucket, "--cache", "source"], ["pull", s3_bucket, "--cache", "back"]):
            code, out, err = done(command(*words, endpoint=line.url))
            assert (code, err) == (0, ""), out
        assert weather == "slow" or line.counts()["dropped"] > 0
    assert FeatureCache(s3_bucket).verify() == []
    same_rows(source, s3_bucket)
    same_rows(source, tmp_path / "back")


@pytest.mark.parametrize("weather", ["slow", "answers cut"])
def test_pulls_by_http_over_a_bad_line_arrive(source, tmp_path, command, weather):
    assert done(command("push", "public", "--cache", "source"))[0] == 0
    with file_server(tmp_path / "public") as server, proxy(server.url, **BAD_LINES[weather]) as line:
        code, out, err = done(command("pull", line.url, "--cache", "back"))
        assert (code, err) == (0, ""), out
    same_rows(source, tmp_path / "back")
    assert FeatureCache(tmp_path / "back").verify() == []


@pytest.mark.slow
def test_a_line_that_stays_down_is_said_and_the_next_run_goes_on(source, s3, s3_bucket, tmp_path, command):
    with proxy(s3.url, drop_upload_after=1_000_000) as line:
        code, _, err = done(command("push", s3_bucket, "--cache", "source", endpoint=line.url))
        assert code == 1
        assert "cannot be reached" in err
        assert "Traceback" not in err
        for array in FeatureCache(s3_bucket).arrays():
            assert array.complete
        line.change()
        code, out, err = done(command("push", s3_bucket, "--cache", "source", endpoint=line.url))
        assert (code, err) == (0, ""), out
    same_rows(source, s3_bucket)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_a_push_that_is_killed_again_and_again_ends_equal(source, s3, s3_bucket, tmp_path, command, kind):
    """Killed at several times after it has begun to write, then left alone."""
    to = s3_bucket if kind == "s3" else str(tmp_path / "target")
    with proxy(s3.url, bandwidth=4e6) as line:
        killed = 0
        for pause in (0.1, 0.9, 0.3, 0.7, 0.5):
            start = line.counts()["up"]
            process = command("push", to, "--cache", "source", endpoint=line.url)
            while process.poll() is None and not (
                line.counts()["up"] > start or (tmp_path / "target").exists()
            ):
                time.sleep(0.01)
            time.sleep(pause if kind == "s3" else pause / 20)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += process.returncode == -signal.SIGKILL
            for array in FeatureCache(to).arrays():
                assert all(array.is_sound(shard) for shard in array.committed)
        assert killed
        line.change()
        code, out, err = done(command("push", to, "--cache", "source", endpoint=line.url))
        assert (code, err) == (0, ""), out
    same_rows(source, to)
    assert FeatureCache(to).verify() == source.verify() == []
