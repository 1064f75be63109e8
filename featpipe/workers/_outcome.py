"""What a task on a worker came to, and how long one waits for workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from featpipe.errors import WorkError

Tell = Callable[[str], None]
PATIENCE = 300.0  # seconds that a run waits for a worker, as one in a cluster's queue
LOST = "The connection to dask's scheduler was lost. Look into its log, and run again."


def outcome(future: Any) -> Any:
    """Return what a task returned, or the error that stands for it."""
    from distributed.scheduler import KilledWorker

    if future.status == "finished":
        return future.result()
    if future.status != "error":
        return WorkError(LOST)
    error = future.exception()
    if isinstance(error, KilledWorker):
        return WorkError(
            f"A task was given up because {error.allowed_failures + 1} workers died while they ran it, most likely "
            "of too little memory. Use fewer workers, or give them more memory."
        )
    return error


def workers_are_gone(patience: float) -> WorkError:
    """Return the error of a run that has had no worker for some seconds."""
    return WorkError(
        f"All dask workers are gone, and none came back in {patience:.0f} s. Look into their logs."
    )
