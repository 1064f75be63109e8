"""An extraction on the workers of dask: they compute and write shards, and this process hands them out."""

from __future__ import annotations

import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from featpipe.errors import WorkError
from featpipe.extraction._order import Means, Order, Progress, Target
from featpipe.extraction._parcel import LAG, Done, Parcel, Settled, ShardTask
from featpipe.extraction._plan import ShardJob, missing_shards
from featpipe.extraction._shares import Share
from featpipe.models import ModelCard
from featpipe.stimuli import StimulusSet
from featpipe.store import Claims, FeatureCache, absolute, claim_storage, require_shared, work_of
from featpipe.workers import Tell, asked_workers, connected, dashboard, described, hand_out, wait_for_workers

# Batches are larger than what glibc gives to threads other than the first from memory that it keeps.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": 1}


class DaskWorkers:
    """A ``with`` that holds the workers of extractions; they are started or looked for when something is missing.

    Parameters
    ----------
    asked : str
        A number of processes on this machine, which share its cores and have a GPU each, or the address of a
        scheduler. A worker makes one shard at a time, with as many threads as dask gave it.
    tell : callable, optional
        Gets a line on where the workers are.

    Raises
    ------
    RecipeError
        `asked` is neither.
    MissingDependency
        dask is not installed.
    """

    def __init__(self, asked: str, tell: Tell | None = None) -> None:
        self._asked = asked_workers(asked)
        self._tell: Tell = tell or (lambda line: None)
        self._open = ExitStack()
        self._client: Any = None

    def __enter__(self) -> DaskWorkers:
        return self

    def __exit__(self, *details: Any) -> None:
        self._client = None
        self._open.__exit__(*details)

    @property
    def client(self) -> Any:
        """The client, connected to workers."""
        if self._client is None:
            scratch = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="featpipe-dask-")))
            n_workers = self._asked if isinstance(self._asked, int) else 1
            threads = max(1, len(os.sched_getaffinity(0)) // n_workers)
            cluster = connected(self._asked, threads, scratch, slots=threads, environment=_ENVIRONMENT)
            client = self._open.enter_context(cluster)
            wait_for_workers(client, n_workers, self._tell)
            there = described(client)
            self._tell(f"dask: {there['n_workers']} workers at {there['address']}, {dashboard(client)}")
            self._client = client
        return self._client

    def compute(
        self,
        order: Order,
        stimuli: StimulusSet,
        cache: FeatureCache,
        means: Means,
        card: ModelCard,
        parts: Sequence[Sequence[Target]],
        progress: Progress | None,
    ) -> dict[str, Any]:
        """Fill the cache; return the fields of `Extraction` that say what was done. Parameters as of `Run`."""
        require_shared(cache.root, "--dask")
        parcel = Parcel(
            version("featpipe"),
            replace(order, model=order.model.from_anywhere()),
            stimuli,
            FeatureCache(absolute(cache.root)),
            means,
            card,
            tuple(map(tuple, parts)),
        )
        with _told(self.client, parcel) as name:
            return _made(self.client, name, parcel, progress or (lambda done, total: None))


@contextmanager
def _told(client: Any, parcel: Parcel) -> Iterator[str]:
    """Tell every worker what is extracted, and at the end to let go of it."""
    from featpipe.extraction._on_worker import ExtractionPlugin

    name = f"featpipe-{uuid4().hex}"
    client.register_plugin(ExtractionPlugin(parcel), name=name)
    try:
        yield name
    finally:
        if client.status == "running":
            with suppress(OSError):  # of a worker that is dying, with what it was told
                client.unregister_worker_plugin(name)


def _made(client: Any, name: str, parcel: Parcel, progress: Progress) -> dict[str, Any]:
    """Settle what is to be alike, hand out the shards, and say what came of them."""
    from featpipe.extraction._on_worker import make_shard, settle

    settled: Settled = next(iter(hand_out(client, settle, [(name,)])))[1]
    for text in settled.warnings:
        warnings.warn(text, stacklevel=2)
    manifest = parcel.stimuli.manifest
    shard_rows = parcel.cache.add_stimuli(manifest, shard_rows=settled.shard_rows).shard_rows
    found = _Found(parcel, shard_rows, progress)
    for part, size in enumerate(settled.batch_sizes):
        found.make(part, lambda tasks: hand_out(client, make_shard, ((name, task) for task in tasks)), size)
    _require_committed(parcel, shard_rows)
    return {
        "n_computed": sum(done.n_computed for done in found.done),
        "n_reused": sum(done.n_reused for done in found.done),
        "device": next((done.device for done in found.done if done.device), ""),
        "batch_size": next((size for size in settled.batch_sizes if size), 0),
        "n_workers": len(client.nthreads()),
    }


class _Found:
    """What became of the shards, counted as they are done; each is claimed before it is handed out.

    Parameters
    ----------
    parcel : Parcel
    shard_rows : int
    progress : callable (images done, images in all)
    """

    def __init__(self, parcel: Parcel, shard_rows: int, progress: Progress) -> None:
        self.done: list[Done] = []
        self._parcel, self._progress = parcel, progress
        self._jobs = [_jobs(parcel, targets, shard_rows) for targets in parcel.parts]
        self._total = sum(job.stop - job.start for jobs in self._jobs for job in jobs)
        self._shown = 0

    def make(self, part: int, given: Callable[[Iterator[ShardTask]], Iterator[Any]], batch_size: int) -> None:
        """Have the shards of a part made that nobody else is at; wait for the others."""
        jobs = {job.shard: job for job in self._jobs[part]}
        work = work_of(self._parcel.parts[part][0].spec, self._parcel.stimuli.digest)
        storage = claim_storage(self._parcel.cache.root, work)
        with Claims(storage, expiry=self._parcel.means.claim_expiry) as claims:
            for drawn in Share(self._jobs[part], self._parcel.cache, claims, self._count).rounds():
                for (_, task), done in given(ShardTask(part, job.shard, batch_size) for job in drawn):
                    claims.release(str(task.shard))
                    self.done.append(done)
                    self._count(jobs[task.shard])

    def _count(self, job: ShardJob) -> None:
        self._shown += job.stop - job.start
        self._progress(self._shown, self._total)


def _jobs(parcel: Parcel, targets: Sequence[Target], shard_rows: int) -> list[ShardJob]:
    """Return the shards that some target of a part lacks."""
    n_stimuli = len(parcel.stimuli)
    return [
        ShardJob(shard, shard * shard_rows, min((shard + 1) * shard_rows, n_stimuli), tuple(targets))
        for shard in _missing(parcel, targets, shard_rows)
    ]


def _missing(parcel: Parcel, targets: Sequence[Target], shard_rows: int) -> list[int]:
    lacks = missing_shards(parcel.cache, targets, math.ceil(len(parcel.stimuli) / shard_rows))
    return sorted({shard for shards in lacks.values() for shard in shards})


def _require_committed(parcel: Parcel, shard_rows: int) -> None:
    """Wait until the cache shows all shards here, as a network file system does after a while."""
    began = time.monotonic()
    while left := sum(len(_missing(parcel, targets, shard_rows)) for targets in parcel.parts):
        if time.monotonic() - began > LAG:
            raise WorkError(
                f"Workers say that all is done, and {left} shards are not in {parcel.cache.root}: they see another "
                "folder under this path. Give a cache that all machines see."
            )
        time.sleep(1)
