"""What lies beside a run while workers compute it, and which GPU each of them sees."""

from __future__ import annotations

import os
import time

import joblib
import numpy as np
import pytest

pytest.importorskip("distributed")

from featpipe.runs import _workers
from featpipe.runs._workers import _scratch
from featpipe.workers import _gpus


def test_what_a_killed_run_left_is_taken_away(tmp_path):
    for name in (".run[1].dask-abc", ".run1.dask-abc", ".run[1].dask"):
        (tmp_path / name / "samples").mkdir(parents=True)
    with _scratch(str(tmp_path / "run[1]")) as folder:
        assert folder.is_dir()
        assert not (tmp_path / ".run[1].dask-abc").exists()
    assert {path.name for path in tmp_path.iterdir()} == {".run1.dask-abc", ".run[1].dask"}


@pytest.mark.parametrize(
    ("given", "seen"),
    [("3,5", ["3", "5"]), ("0, -1, 2", ["0"]), ("", []), (None, ["GPU-a", "GPU-b"])],
)
def test_gpus_are_those_that_cuda_would_offer(gpus, monkeypatch, given, seen):
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert _gpus.visible_gpus() == seen


def test_without_a_driver_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _gpus.visible_gpus() == []


def test_workers_take_turns_at_the_gpus():
    found = [_gpus.one_gpu(worker, ["a", "b"]) for worker in range(3)]
    assert found == [{"CUDA_VISIBLE_DEVICES": name} for name in "aba"]
    assert _gpus.one_gpu(0, ["a"]) == _gpus.one_gpu(0, []) == {}  # nothing to choose


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # distributed's own
def test_each_worker_sees_one_gpu(gpus, tmp_path):
    how = {"cache": str(tmp_path), "dask": "2", "n_jobs": 1, "threads": 1, "tell": lambda text: None}
    with _workers.computing(np.zeros((4, 1)), out=str(tmp_path / "run"), **how):
        seen = joblib.Parallel(batch_size=1)(joblib.delayed(_own_gpu)() for _ in range(8))
    assert set(seen) == {"GPU-a", "GPU-b"}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def _own_gpu():
    time.sleep(0.1)  # so that both workers have some
    return os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """A machine with two GPUs, as far as the driver's tool says."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho GPU-a\necho GPU-b\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
