"""Run ``featpipe extract`` on workers that are SLURM jobs.

    python docs/slurm_extract.py --jobs 8 --cores 8 --memory 32GB --time 04:00:00 --gpu -- \
        --model timm:resnet50 --layers 'layer*:mean' --images /shared/images --cache /shared/cache

What stands behind ``--`` goes to ``featpipe extract``. Each job is one worker with one network; jobs that are ended, or
reach their time, are replaced, and the shards that they had go to others. With --print-job nothing is submitted, and
the job's script is printed. Where there is no ``sbatch``, the jobs are processes of this machine.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from typing import Any

import dask
from dask_jobqueue import SLURMCluster
from dask_jobqueue.local import LocalCluster

# Workers hold no data, so that one over its share of memory is ended, not paused; and the end of a job is no fault
# of the shard that it had.
SETTINGS = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.scheduler.allowed-failures": 100,
}
# Batches are larger than what glibc keeps for threads other than the first.
PROLOGUE = ["export MALLOC_ARENA_MAX=1"]


def cluster_of(chosen: argparse.Namespace, *, here: bool) -> Any:
    """Return a cluster whose jobs are one worker each; ``here`` makes them processes of this machine."""
    common: dict[str, Any] = {
        "cores": chosen.cores,  # threads of a worker, which has them for torch and for decoding
        "processes": 1,
        "memory": chosen.memory,
        "log_directory": chosen.logs,
        "interface": chosen.interface,
        "scheduler_options": {"dashboard_address": ":0"},
    }
    if here:
        return LocalCluster(**common)
    return SLURMCluster(
        **common,
        queue=chosen.partition,
        account=chosen.account,
        walltime=chosen.time,
        job_script_prologue=PROLOGUE,
        job_extra_directives=["--gres=gpu:1"] if chosen.gpu else [],
    )


def parsed(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line at ``--``: what SLURM is asked for, and what goes to ``featpipe extract``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cores", type=int, default=8, help="of a job")
    parser.add_argument("--memory", default="32GB", help="of a job")
    parser.add_argument("--time", default="04:00:00", help="of a job")
    parser.add_argument("--gpu", action="store_true", help="ask for a GPU in every job")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--interface", help="network that jobs find this machine by, such as ib0")
    parser.add_argument("--logs", help="folder for what jobs print")
    parser.add_argument("--print-job", action="store_true")
    split = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:split]), words[split + 1 :]


def main(words: list[str]) -> int:
    chosen, extract = parsed(words)
    with dask.config.set(SETTINGS):
        if chosen.print_job:
            with cluster_of(chosen, here=False) as cluster:
                print(cluster.job_script())
            return 0
        with cluster_of(chosen, here=shutil.which("sbatch") is None) as cluster:
            cluster.adapt(minimum_jobs=chosen.jobs, maximum_jobs=chosen.jobs)  # one that ends is replaced
            command = ["featpipe", "extract", *extract, "--dask", cluster.scheduler_address]
            return subprocess.run([sys.executable, "-m", *command]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
