"""The script of docs/slurm.md: what it would submit, and that its workers extract."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featpipe.extraction import Means, Order, extract
from featpipe.models import ModelRequest
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache

pytest.importorskip("dask_jobqueue")
pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "docs" / "slurm_extract.py"


def run(*words, cwd, **environment):
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment)


def test_a_job_is_one_worker_with_cores_memory_and_a_gpu(tmp_path):
    asked = ["--cores", "6", "--memory", "24GB", "--time", "01:30:00", "--account", "lab", "--gpu"]
    done = run("--print-job", *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line in ("--cpus-per-task=6", "--mem=23G", "-t 01:30:00", "-A lab", "--gres=gpu:1"):
        assert f"#SBATCH {line}" in lines
    (command,) = [line for line in lines if "dask_worker" in line]
    assert "--nthreads 6" in command
    assert "--nworkers" not in command  # one network a job
    assert lines.index("export MALLOC_ARENA_MAX=1") < lines.index(command)
    assert "--gres" not in run("--print-job", cwd=tmp_path).stdout


def test_jobs_fill_the_cache(tmp_path, tiny_backbone, tiny_stimuli):
    """On a machine without sbatch: through dask-jobqueue's cluster of local jobs."""
    words = ["--model", tiny_backbone, "--trust", "--layers", "stem:mean", "--images", str(tiny_stimuli)]
    how = ["--cache", "cache", "--shard-rows", "8"]  # relative paths are of this folder, not of the workers'
    jobs = ["--jobs", "1", "--cores", "1", "--memory", "2GB"]
    done = run(*jobs, "--", *words, *how, cwd=tmp_path, PATH=str(Path(sys.executable).parent))
    assert done.returncode == 0, done.stderr
    assert "20 images computed and 0 copied" in done.stdout
    assert ", 1 dask worker." in done.stdout
    order = Order(ModelRequest(tiny_backbone, trust=True), (LayerRequest.parse("stem:mean"),))
    serial = FeatureCache(tmp_path / "serial")
    extracted = extract(order, StimulusSet.from_source(tiny_stimuli), serial, means=Means(shard_rows=8))
    (key,) = extracted.keys
    np.testing.assert_array_equal(
        FeatureCache(tmp_path / "cache").array(key).read(), serial.array(key).read()
    )
