"""A client of dask: of workers that are started here, or of a scheduler somewhere."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featpipe.errors import MissingDependency, RecipeError, RequestError, WorkError
from featpipe.memory import available_memory
from featpipe.workers._outcome import PATIENCE, Tell


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
def connected(
    asked: int | str,
    threads: int,
    scratch: Path,
    *,
    slots: int = 1,
    environment: Mapping[str, object] | None = None,
) -> Iterator[Any]:
    """Connect to a scheduler, or start one with workers, and close all that was started, also on Ctrl-C.

    Parameters
    ----------
    asked : int or str
        See `asked_workers`. All that follows is of workers that are started here.
    threads : int
        BLAS and OpenMP threads of a worker.
    scratch : Path
        Where workers keep their files.
    slots : int
        Threads of a worker that run tasks.
    environment : mapping, optional
        More of the environment that a worker starts in.
    """
    from distributed import Client

    if isinstance(asked, int):
        with (
            _local_cluster(asked, threads, scratch, slots, environment or {}) as cluster,
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
def _local_cluster(
    n_workers: int, threads: int, scratch: Path, slots: int, environment: Mapping[str, object]
) -> Iterator[Any]:
    import dask
    from distributed import LocalCluster

    from featpipe.workers._gpus import NannyOfOneGPU, visible_gpus

    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    settings = {
        # Workers hold no data: beyond its share of memory one can but be ended. A paused one would be waited for.
        **{f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause")},
        "distributed.nanny.pre-spawn-environ": {**counts, "MALLOC_TRIM_THRESHOLD_": 65536, **environment},
    }
    options = {
        "n_workers": n_workers,
        "threads_per_worker": slots,
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


def wait_for_workers(client: Any, n_workers: int, tell: Tell, *, patience: float = PATIENCE) -> None:
    """Wait until there are workers: those of a cluster may stand in a queue.

    Raises
    ------
    WorkError
        None came in `patience` seconds.
    """
    if len(client.nthreads()) >= n_workers:
        return
    tell(f"dask: waiting for workers of {client.scheduler.address}")
    try:
        client.wait_for_workers(n_workers, timeout=patience)
    except TimeoutError as error:
        raise WorkError(
            f"{client.scheduler.address} had no worker for {patience:.0f} s. Start some with `dask worker ADDRESS`, or "
            "look into the queue that they wait in."
        ) from error


def described(client: Any) -> dict[str, Any]:
    """Return what is recorded of the workers: where they are, how many, with how many threads."""
    threads = client.nthreads()
    return {
        "address": client.scheduler.address,
        "n_workers": len(threads),
        "worker_threads": sorted(threads.values()),
        "distributed": importlib.metadata.version("distributed"),
    }


def dashboard(client: Any) -> str:
    """Return where to look at the workers, as text for people."""
    if client.cluster is not None and importlib.util.find_spec("bokeh") is None:
        return "without a dashboard, which needs bokeh"
    return f"dashboard {client.dashboard_link}"
