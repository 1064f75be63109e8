"""Where a fit is computed: in this process, in others of this machine, or on the workers of dask."""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

import featpipe
from featpipe.datasets import Responses, fingerprint
from featpipe.errors import MissingDependency, RecipeError, RequestError, WorkError
from featpipe.memory import available_memory

Tell = Callable[[str], None]
PATIENCE = 300.0  # seconds that a run waits for a worker, as one in a cluster's queue
_LOOK = 1.0  # seconds between looks at whether there is one


@dataclass(frozen=True)
class Place:
    """Where folds are computed, and what they are given there.

    Parameters
    ----------
    y : array, Responses or RDMs
        The target in the form that travels there.
    n_jobs : int, optional
        Of joblib.
    threads : int, optional
        BLAS threads of a task.
    record : dict
        For ``run.json``: what decides the last digits.
    """

    y: Any
    n_jobs: int | None
    threads: int | None
    record: dict[str, Any] = field(default_factory=dict)


def asked_workers(text: str) -> int | str:
    """Read ``--dask``: a number of processes to start here, or the address of a scheduler.

    Raises
    ------
    RecipeError
        It is neither.
    MissingDependency
        dask is not installed.
    """
    if not (text.isdecimal() and int(text) > 0) and "://" not in text:
        raise RecipeError(
            f"--dask {text!r} is neither a number of workers nor the address of a scheduler, such as tcp://node1:8786."
        )
    if importlib.util.find_spec("distributed") is None:
        raise MissingDependency("--dask needs dask and distributed: pip install 'featpipe[dask]'.")
    return int(text) if text.isdecimal() else text


@contextmanager
def computing(
    y: Any, *, out: str, cache: str, dask: str | None, n_jobs: int, threads: int | None, tell: Tell
) -> Iterator[Place]:
    """Hold the place where folds, candidates and regions are computed.

    Parameters
    ----------
    y : array or RDMs
    out : str
        The run folder. Beside it lies what dask's workers are given, as long as they run.
    cache : str
        That they read.
    dask : str, optional
        See `asked_workers`.
    n_jobs : int
        Processes without dask.
    threads : int, optional
        BLAS threads of a task.
    tell : callable
        Gets a line on where the workers are.
    """
    with threadpool_limits(threads):
        if dask is None:
            share = max(1, joblib.cpu_count() // joblib.effective_n_jobs(n_jobs))
            per_task = share if threads is None and n_jobs != 1 else threads
            yield Place(y, n_jobs, per_task, _record(n_jobs, per_task))
            return
        asked = asked_workers(dask)
        share = max(1, joblib.cpu_count() // asked) if isinstance(asked, int) else 1
        per_task = share if threads is None else threads
        with _scratch(out) as scratch, _client(asked, per_task, scratch) as client:
            _wait_for(client, asked if isinstance(asked, int) else 1, tell)
            sent = _sent(y, scratch)
            _check_workers(client, scratch, cache, sent)
            workers = _described(client)
            tell(f"dask: {workers['n_workers']} workers at {workers['address']}, {_dashboard(client)}")
            with _backend(client, scratch, per_task):
                yield Place(sent, None, per_task, _record(None, per_task) | {"dask": workers})


def _record(n_jobs: int | None, per_task: int | None) -> dict[str, Any]:
    pools = {pool["user_api"]: pool["num_threads"] for pool in threadpool_info()}
    return {"jobs": n_jobs, "threads": pools, "task_threads": per_task or pools.get("blas")}


@contextmanager
def _scratch(out: str) -> Iterator[Path]:
    """Make a folder beside the run, on the file system that its results go to, for as long as the run lasts."""
    place = Path(out).absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(
        f".{glob.escape(place.name)}.dask-*"
    ):  # by a run that was killed: `fit` is alone here
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.dask-", dir=place.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a worker that is dying may still write there


@contextmanager
def _client(asked: int | str, threads: int, scratch: Path) -> Iterator[Any]:
    """Connect to a scheduler, or start one with workers, and close all that was started, also on Ctrl-C."""
    from distributed import Client

    if isinstance(asked, int):
        with (
            _local_cluster(asked, threads, scratch) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client
        return
    try:
        client = Client(asked, set_as_default=False)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"There is no dask scheduler at {asked} ({error}). Start one with `dask scheduler`, or use --dask N for "
            "workers on this machine."
        ) from error
    with client:
        yield client


@contextmanager
def _local_cluster(n_workers: int, threads: int, scratch: Path) -> Iterator[Any]:
    import dask
    from distributed import LocalCluster

    from featpipe.runs._gpus import NannyOfOneGPU, visible_gpus

    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    settings = {
        # Workers hold no data: beyond its share of memory one can but be ended. A paused one would be waited for.
        **{f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause")},
        "distributed.nanny.pre-spawn-environ": {**counts, "MALLOC_TRIM_THRESHOLD_": 65536},
    }
    options = {
        "n_workers": n_workers,
        "threads_per_worker": 1,
        **{"worker_class": NannyOfOneGPU, "gpus": visible_gpus()},
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0",
        "memory_limit": available_memory() // n_workers,
        "local_directory": str(scratch),
        "silence_logs": logging.CRITICAL,
    }
    with dask.config.set(settings), _same_environment():
        try:
            cluster = LocalCluster(**options)
        except RuntimeError as error:
            raise WorkError(f"{n_workers} dask workers could not be started here ({error}).") from error
        with cluster:
            yield cluster


@contextmanager
def _same_environment() -> Iterator[None]:
    """Undo what starting workers leaves in our own environment."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _wait_for(client: Any, n_workers: int, tell: Tell) -> None:
    """Wait until there are workers: those of a cluster may stand in a queue."""
    if len(client.nthreads()) >= n_workers:
        return
    tell(f"dask: waiting for workers of {client.scheduler.address}")
    try:
        client.wait_for_workers(n_workers, timeout=PATIENCE)
    except TimeoutError as error:
        raise WorkError(
            f"{client.scheduler.address} had no worker for {PATIENCE:.0f} s. Start some with `dask worker ADDRESS`, or "
            "look into the queue that they wait in."
        ) from error


def _sent(y: Any, scratch: Path) -> Any:
    """Return responses as rows of a file: the one that they lie in, or one that is written for the workers."""
    if not isinstance(y, np.ndarray):
        return y
    return Responses.of(y) or Responses.write(scratch / "responses.npy", y)


def _check_workers(client: Any, scratch: Path, cache: str, y: Any) -> None:
    """Refuse workers that would compute something else: of another version, or with other files under our paths."""
    seen = scratch / "seen.json"
    folders = {cache: _names(cache)} if os.path.isdir(cache) else {}
    files = {y.path: y.fingerprint} if isinstance(y, Responses) else {}
    seen.write_text(json.dumps({"version": featpipe.__version__, "folders": folders, "files": files}))
    for worker, problem in client.run(_look, str(seen), on_error="return").items():
        if problem is not None:
            raise RequestError(
                f"Worker {worker} cannot take part: {problem}. Workers need this version of featpipe, and the run's "
                "folder, the cache and the data under the same paths as here."
            )


def _look(path: str) -> str | None:
    """Say what a worker lacks of what was seen where the run began."""
    try:
        seen = json.loads(Path(path).read_text())
        if seen["version"] != featpipe.__version__:
            return f"it has featpipe {featpipe.__version__}, not {seen['version']}"
        other = [folder for folder, names in seen["folders"].items() if not set(names) <= set(_names(folder))]
        other += [file for file, expected in seen["files"].items() if fingerprint(file) != expected]
    except OSError as error:
        return f"it does not see a file ({error})"
    return f"{other[0]} is something else there" if other else None


def _names(folder: str) -> list[str]:
    """Return what is in a folder and in its folders: of a cache the keys, which tell the content."""
    return sorted(
        str(path.relative_to(folder)) for pattern in ("*", "*/*") for path in Path(folder).glob(pattern)
    )


def _described(client: Any) -> dict[str, Any]:
    threads = client.nthreads()
    return {
        "address": client.scheduler.address,
        "n_workers": len(threads),
        "worker_threads": sorted(threads.values()),
        "distributed": importlib.metadata.version("distributed"),
    }


def _dashboard(client: Any) -> str:
    if client.cluster is not None and importlib.util.find_spec("bokeh") is None:
        return "without a dashboard, which needs bokeh"
    return f"dashboard {client.dashboard_link}"


@contextmanager
def _backend(client: Any, scratch: Path, threads: int) -> Iterator[None]:
    """Let joblib use the workers, and end what waits for them once there are none."""
    from featpipe.runs._dask_backend import DaskBackend

    backend = DaskBackend(str(scratch), threads, client)
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(client, backend, done), daemon=True)
    watch.start()
    try:
        with joblib.parallel_config(backend=backend):
            yield
    finally:
        done.set()
        watch.join(timeout=5)  # a scheduler that hangs may not answer it


def _watch(client: Any, backend: Any, done: threading.Event) -> None:
    from featpipe.runs._dask_backend import LOST

    last = time.monotonic()  # that a worker was seen
    while not done.wait(_LOOK):
        if client.status != "running":
            if not done.wait(
                _LOOK
            ):  # an interrupt from the terminal ends workers too, and is to be told as one
                backend.fail(WorkError(LOST))
        elif _n_workers(client):
            last = time.monotonic()
        elif time.monotonic() - last > PATIENCE:
            backend.fail(
                WorkError(
                    f"All dask workers are gone, and none came back in {PATIENCE:.0f} s. Look into their logs."
                )
            )


def _n_workers(client: Any) -> int:
    try:
        return len(client.nthreads())
    except (OSError, RuntimeError):  # no answer
        return 0
