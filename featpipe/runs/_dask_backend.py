"""dask as a backend of joblib, with nothing large on the way through its scheduler.

joblib's own dask backend scatters arguments through the scheduler or the memory of a worker, where they are
lost with it, returns results the same way, and waits for ever for a task that killed its workers. Here both go
through files (`featpipe.runs._parcels`), and a task that cannot be finished is an error. Searches and regions
inside a task run on all workers as well: the task steps aside while it waits for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import distributed
from distributed.utils import thread_state
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase
from threadpoolctl import threadpool_limits

from featpipe.errors import WorkError
from featpipe.runs._parcels import Parcel, Sender, pack_result
from featpipe.workers import LOST, outcome


class DaskBackend(AutoBatchingMixin, ParallelBackendBase):
    """Runs the tasks of `joblib.Parallel` on the workers of a dask cluster.

    Parameters
    ----------
    folder : str
        Scratch that every worker sees under this path.
    threads : int
        BLAS threads of a task.
    client : distributed.Client, optional
        That of the worker which runs us, by default.
    """

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(self, folder: str, threads: int, client: Any = None, *, nesting_level: int = 0) -> None:
        super().__init__(nesting_level=nesting_level)
        self.folder = folder
        self.threads = threads
        self._client = client
        self._sender = Sender(Path(folder))
        self._waiting: dict[Any, Callable] = {}  # what is to be told of each future
        self._lock = threading.Lock()

    def __reduce__(self):
        return partial(DaskBackend, nesting_level=self.nesting_level), (self.folder, self.threads)

    @property
    def client(self):
        """Client of the main process, or of the worker that runs us."""
        if self._client is None:
            self._client = distributed.get_client()
        return self._client

    def get_nested_backend(self):
        """Tasks inside a task run on all workers as well."""
        return DaskBackend(self.folder, self.threads, nesting_level=(self.nesting_level or 0) + 1), -1

    def configure(self, n_jobs=1, parallel=None, **_):
        """Return how many tasks run at a time."""
        self.parallel = parallel
        return self.effective_n_jobs(n_jobs)

    def effective_n_jobs(self, n_jobs):
        """Return the threads of all workers, unless 1 is asked for; never 1 outside of them, which would mean here."""
        if n_jobs == 1:
            return 1
        if self.client.status != "running":
            raise WorkError(LOST)
        slots = sum(self.client.nthreads().values())
        return slots if _on_worker() else max(2, slots)

    def submit(self, func, callback=None):
        """Send a batch of calls to whichever worker is free."""
        parcel = self._sender.pack(func)
        future = self.client.submit(
            _run,
            *(parcel, self.folder, self.threads),
            key=f"featpipe-{uuid4().hex}",
            pure=False,
            priority=self.nesting_level or 0,  # the candidates of a fold before the next fold
        )
        with self._lock:
            self._waiting[future] = callback
        future.add_done_callback(self._done)
        return future

    apply_async = submit  # its name before joblib 1.5

    def _done(self, future) -> None:
        with self._lock:
            callback = self._waiting.pop(future, None)
        if callback is not None:
            callback(outcome(future))

    def retrieve_result_callback(self, out):
        """Return what a task found, or raise what kept it from that."""
        if isinstance(out, BaseException):
            raise out
        return out.opened_once()

    def fail(self, error: Exception) -> None:
        """Tell whoever waits that nothing more will come."""
        with self._lock:
            callbacks, self._waiting = list(self._waiting.values()), {}
        for callback in callbacks:
            callback(error)

    def abort_everything(self, ensure_ready=True):
        """Cancel what was not finished: joblib will not look at it."""
        with self._lock:
            futures, self._waiting = list(self._waiting), {}
        if futures and self.client.status == "running":
            self.client.cancel(futures, force=True)

    def stop_call(self):
        """Delete the files of the call's arguments."""
        self._sender.forget()

    @contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Leave the place of the task that waits to those that it waits for."""
        if not _on_worker():
            yield
            return
        distributed.secede()
        yield
        distributed.rejoin()


def _on_worker() -> bool:
    return hasattr(thread_state, "execution_state")


def _run(parcel: Parcel, folder: str, threads: int) -> Parcel:
    """Do a batch of calls, on a worker."""
    threadpool_limits(threads)  # not undone: threads of one worker would undo each other's
    return pack_result(parcel.opened()(), Path(folder))
