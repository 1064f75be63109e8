"""``--dask`` of ``featpipe extract``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from featpipe.cli._console import note
from featpipe.errors import SpecError
from featpipe.workers import asked_workers

if TYPE_CHECKING:
    from featpipe.extraction import DaskWorkers, Extraction


@contextmanager
def workers_of(dask: str | None, *, quiet: bool) -> Iterator[DaskWorkers | None]:
    """Hold the workers that are asked for; None without them."""
    if dask is None:
        yield None
        return
    from featpipe.extraction import DaskWorkers

    with DaskWorkers(dask, None if quiet else note) as workers:
        yield workers


def for_workers(source: str, dask: str | None, *, dry: bool) -> str:
    """Return a SOURCE or DATA with an absolute path, for workers that run in other folders.

    Raises
    ------
    RequestError
        ``--dask`` cannot be used as it was given.
    """
    from featpipe.datasets import is_data

    if dask is None:
        return source
    asked_workers(dask)
    if dry:
        raise SpecError(
            "--dry-run runs one batch in this process, so --dask cannot be given with it. Leave one of them out."
        )
    kind, place = source.split(":", 1) if is_data(source) else ("", source)
    if not kind:
        return os.path.abspath(place)
    return source if kind == "synthetic" else f"{kind}:{os.path.abspath(place)}"


def on_workers(done: Extraction) -> str:
    """Return the end of the line that says what was done."""
    return f", {done.n_workers} dask worker{'s' if done.n_workers > 1 else ''}" if done.n_workers else ""
