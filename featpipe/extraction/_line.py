"""Shards on their way through one process: one is prepared, one is in the network, one is written."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from threading import Lock

import torch

from featpipe.errors import RequestError
from featpipe.extraction._allocator import keeping_freed_memory
from featpipe.extraction._images import default_workers
from featpipe.extraction._parcel import LAG, Done, Parcel, Settled, ShardTask
from featpipe.extraction._shard_run import Computed, Prepared, ShardRun


class ShardLine:
    """Makes the shards of an extraction, each asked for by a thread of its own.

    Every stage takes one shard at a time, and a shard leaves its stage when the next one has room. So images
    are decoded and rows are written while the network computes, and two shards of rows are held at most.

    Parameters
    ----------
    parcel : Parcel
    threads : int
        That torch may use, and that decode images.
    """

    def __init__(self, parcel: Parcel, threads: int) -> None:
        self._parcel = parcel
        self._preparing, self._computing, self._writing = Lock(), Lock(), Lock()
        self._means = replace(parcel.means, workers=parcel.means.workers or min(default_workers(), threads))
        self._runs: list[ShardRun] = []
        self._seen = False
        # All passes come from one thread: torch's modes and its own threads belong to the thread that asks.
        self._network = ThreadPoolExecutor(
            1, "network", initializer=torch.set_num_threads, initargs=(threads,)
        )
        self._open = ExitStack()
        self._open.enter_context(keeping_freed_memory())

    def close(self) -> None:
        """Let go of the network, once it has done what it is doing; returns at once."""
        self._network.submit(self._close)
        self._network.shutdown(wait=False)

    def settle(self) -> Settled:
        """Return what all processes have to do alike."""
        with self._preparing, warnings.catch_warnings(record=True) as caught:
            shard_rows, sizes = self._network.submit(self._settle).result()
        return Settled(shard_rows, sizes, tuple(str(warning.message) for warning in caught))

    def make(self, task: ShardTask, begun: Callable[[], None]) -> Done:
        """Make a shard and commit it.

        Parameters
        ----------
        task : ShardTask
        begun : callable
            Called once the next shard may be asked for.
        """
        with self._preparing:
            run = self._run(task.part)
            prepared = run.prepared(task.shard, task.batch_size)
            if prepared is None:
                return Done(0, 0)
            self._computing.acquire()
        computed = self._compute(run, prepared, begun)
        try:
            run.write(computed)
        finally:
            self._writing.release()
        n_computed = len(prepared.job.computed)
        how = computed.how.get("device", "")
        return Done(n_computed, prepared.job.stop - prepared.job.start - n_computed, how)

    def _compute(self, run: ShardRun, prepared: Prepared, begun: Callable[[], None]) -> Computed:
        """Run the network, and leave with the right to write."""
        try:
            begun()
            computed = self._network.submit(run.computed, prepared).result()
            self._writing.acquire()
        finally:
            self._computing.release()
        return computed

    def _settle(self) -> tuple[int, tuple[int, ...]]:
        runs = self._all_runs()
        shard_rows = runs[0].wanted_shard_rows()
        return shard_rows, tuple(run.settled_batch_size(shard_rows) for run in runs)

    def _run(self, part: int) -> ShardRun:
        if not self._seen:
            self._wait_for_the_set()
            self._seen = True
        return self._all_runs()[part]

    def _all_runs(self) -> list[ShardRun]:
        """Return a run for each view."""
        parcel = self._parcel
        if not self._runs:
            common = (parcel.order, parcel.stimuli, parcel.cache, self._means, parcel.card)
            for targets in parcel.parts:
                self._runs.append(ShardRun(*common, targets, None, self._runs[-1] if self._runs else None))
        return self._runs

    def _wait_for_the_set(self) -> None:
        """Wait until the cache has the stimulus set, which was added where the run began."""
        cache, digest = self._parcel.cache, self._parcel.stimuli.digest
        began = time.monotonic()
        while digest not in cache.stimuli_digests():
            if time.monotonic() - began > LAG:
                raise RequestError(
                    f"A worker does not see in {cache.root} what was written there where the run began. Workers need "
                    "the cache and the images under the same paths as here."
                )
            time.sleep(1)

    def _close(self) -> None:
        for run in self._runs:
            run.close()
        self._runs = []
        self._open.close()
