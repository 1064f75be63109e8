"""Real refusals of the system: each is told with what to do, the cache stays sound, and a rerun finishes."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featpipe.cli import main
from featpipe.store import FeatureCache

NET = """
from torch import nn

def build():
    net = nn.Sequential()
    net.add_module("a", nn.ReLU())
    net.add_module("b", nn.Tanh())
    size = {"resize": 64, "crop": [64, 64], "interpolation": "bilinear"}
    return net, {**size, "mean": [0, 0, 0], "std": [1, 1, 1]}
"""  # 98 kB an image
N_STIMULI = 20


@pytest.fixture
def words(tmp_path, tiny_stimuli):
    (tmp_path / "net.py").write_text(NET)
    model = f"--model python:{tmp_path / 'net.py'}:build --trust --layers a --layers b"
    how = "--shard-rows 8 --codec none --device cpu --workers 1"
    return f"extract {model} --images {tiny_stimuli} {how}".split()


@pytest.fixture
def command(words, capfd):
    """Return a function that extracts to a cache here: (exit code, what was said about an error)."""

    def run(cache, *more):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*words, "--cache", str(cache), *more])
        return ended.value.code, capfd.readouterr().err

    return run


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one mebibyte, and a function that mounts it anew with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options, kind=("-t", "tmpfs", "tmpfs")):
        asked = ["mount", "-o", options, *kind, str(place)]
        return subprocess.run(asked, capture_output=True, text=True, check=False)

    if os.name != "posix" or sys.platform != "linux" or (made := mount("size=1m")).returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield place, lambda options: mount(f"remount,{options}", ()).check_returncode()
    subprocess.run(["umount", str(place)], check=True)


def check_interrupted(cache):
    """Some shards are there and right, and nothing is left over."""
    store = FeatureCache(cache)
    assert store.verify() == []
    assert 0 < sum(len(array.committed) for array in store.arrays()) < 6
    assert list((cache / "tmp").iterdir()) == []


def check_finished(cache, sound):
    """All is there, as on a disk with room."""
    assert FeatureCache(cache).verify() == []
    arrays = FeatureCache(cache).arrays()
    assert len(arrays) == 2
    for array in arrays:
        np.testing.assert_array_equal(array.read(), FeatureCache(sound).array(array.key).read())


def test_a_full_disk(tmp_path, small_disk, command):
    disk, remount = small_disk
    code, said = command(disk / "cache")
    assert code == 1
    assert "No space left on device. The disk is full. Free some space" in said
    check_interrupted(disk / "cache")
    remount("size=8m")
    assert command(disk / "cache")[0] == command(tmp_path / "sound")[0] == 0
    check_finished(disk / "cache", tmp_path / "sound")


def test_a_disk_that_is_read_only(tmp_path, small_disk, command):
    disk, remount = small_disk
    assert command(disk / "cache")[0] == 1  # full
    remount("ro,size=8m")
    code, said = command(disk / "cache")
    assert code == 1
    assert "Read-only file system. The file system is read-only. Choose another cache to write to" in said
    check_interrupted(disk / "cache")
    remount("rw,size=8m")
    assert command(disk / "cache")[0] == command(tmp_path / "sound")[0] == 0
    remount("ro,size=8m")
    check_finished(disk / "cache", tmp_path / "sound")
    assert command(disk / "cache")[0] == 0  # nothing to do, so nothing has to be written


def test_a_limit_on_the_size_of_files(tmp_path, command):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        code, said = command(tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    assert "File too large. Files may not become that large there" in said
    assert FeatureCache(tmp_path / "cache").verify() == []
    assert command(tmp_path / "cache")[0] == command(tmp_path / "sound")[0] == 0
    check_finished(tmp_path / "cache", tmp_path / "sound")


def without_privileges():
    """Take from root what lets it read and write the files of others."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def as_a_stranger(*words):
    """Run a command as somebody with no right to the files of others: (exit code, what was said)."""
    given = [sys.executable, "-m", "featpipe", *map(str, words)]
    done = subprocess.run(given, preexec_fn=without_privileges, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def closed(folder, mode):
    """Give a folder with all below it to somebody else, with these rights for all."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(mode)
        if os.geteuid() == 0:
            os.chown(path, 12345, 12345)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="gives files to somebody else")
def test_no_permission(tmp_path, words, command):
    assert command(tmp_path / "cache", "--layers", "a:mean")[0] == 0
    closed(tmp_path / "cache", 0o755)
    code, said = as_a_stranger(*words, "--cache", tmp_path / "cache", "--layers", "b:mean")
    assert code == 1
    assert "Permission denied. There is no permission to write there. Ask its owner" in said
    closed(tmp_path / "cache", 0o700)
    for asked in ("ls", "verify"):
        code, said = as_a_stranger("cache", asked, "--cache", tmp_path / "cache")
        assert code == 1
        assert (
            "could not be read: Permission denied. There is no permission to read it. Ask its owner" in said
        )
        assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits address space")
def test_memory_that_runs_out(tmp_path, words, command):
    """Below 16 MiB Python cannot start threads, which is not ours to mend."""
    script = Path(__file__).with_name("little_memory.py")
    given = [sys.executable, script, "16,48,128,4096", tmp_path / "warm", tmp_path / "cache", *words]
    done = subprocess.run(list(map(str, given)), capture_output=True, text=True, check=True, timeout=200)
    runs = [json.loads(line) for line in done.stdout.splitlines() if '"limit"' in line]
    assert [run["limit"] for run in runs] == [16, 48, 128, 4096]
    assert {run["code"] for run in runs} == {0, 1}
    for run in runs:
        cache = tmp_path / f"cache-{run['limit']}"
        assert "Traceback" not in run["said"]
        if run["code"]:
            assert "emory" in run["said"]
            assert FeatureCache(cache).verify() == []
        assert command(cache)[0] == 0
        check_finished(cache, tmp_path / "warm")
