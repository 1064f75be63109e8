"""Where a fit is computed: in this process, in others of this machine, or on the workers of dask."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

import featpipe
from featpipe.datasets import Responses, fingerprint
from featpipe.errors import RequestError, WorkError
from featpipe.workers import (
    LOST,
    PATIENCE,
    Tell,
    asked_workers,
    connected,
    dashboard,
    described,
    wait_for_workers,
    workers_are_gone,
)

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
        with _scratch(out) as scratch, connected(asked, per_task, scratch) as client:
            wait_for_workers(client, asked if isinstance(asked, int) else 1, tell, patience=PATIENCE)
            sent = _sent(y, scratch)
            _check_workers(client, scratch, cache, sent)
            workers = described(client)
            tell(f"dask: {workers['n_workers']} workers at {workers['address']}, {dashboard(client)}")
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


_FLEETING = ("tmp", "claims", "aside")  # of a cache that others write to meanwhile


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
    below = [path.relative_to(folder) for pattern in ("*", "*/*") for path in Path(folder).glob(pattern)]
    return sorted(str(path) for path in below if path.parts[0] not in _FLEETING)


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
            backend.fail(workers_are_gone(PATIENCE))


def _n_workers(client: Any) -> int:
    try:
        return len(client.nthreads())
    except (OSError, RuntimeError):  # no answer
        return 0
