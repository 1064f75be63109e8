"""Rows gathered into whole shards and handed to the store in the background."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from featpipe.errors import UnsupportedOutput
from featpipe.extraction._non_finite import look, refusal
from featpipe.extraction._order import Means, NonFinite, Target
from featpipe.extraction._plan import Pool, ShardJob
from featpipe.stimuli import StimulusManifest
from featpipe.store import ArrayWriter, FeatureCache

_AT_ONCE = 2  # arrays that are written at a time: one is encoded while the other is forced to disk


class ShardBuffer:
    """The rows of one shard of every target, filled batch by batch.

    Parameters
    ----------
    job : ShardJob
    """

    def __init__(self, job: ShardJob, pools: Mapping[Target, Pool]) -> None:
        self.job = job
        self.sources: dict[Target, list[dict[str, object]]] = {}
        self.rows: dict[Target, np.ndarray] = {}
        for target, places in job.reused.items():
            self._allocate(target, pools[target].arrays[0].row_shape)
            self.sources[target] = pools[target].read(places, self.rows[target])

    def put(self, rows: np.ndarray, target: Target, values: torch.Tensor) -> None:
        """Store a batch of one target; `rows` may be fewer than `values`, which ends in padding."""
        if target not in self.job.targets:
            return
        kept = values[: len(rows)].cpu().numpy()
        if target not in self.rows:
            self._allocate(target, kept.shape[1:])
        buffer = self.rows[target]
        if kept.shape[1:] != buffer.shape[1:]:
            raise UnsupportedOutput(
                f"Layer {target.spec.layer_label!r} gives rows of {kept.shape[1:]} here and of {buffer.shape[1:]} "
                "before: its size varies with the image. Reduce it with mean, max or grid:K, or fix the image size."
            )
        places = rows - self.job.start
        if target in self.job.reused:  # rows that were copied stay as they are
            lacking = self.job.reused[target][places, 0] < 0
            places, kept = places[lacking], kept[lacking]
        with np.errstate(over="ignore"):  # an overflow is infinite, and refused below
            buffer[places] = kept

    def _allocate(self, target: Target, row_shape: Sequence[int]) -> None:
        shape = (self.job.stop - self.job.start, *row_shape)
        self.rows[target] = np.empty(shape, dtype=target.spec.store_dtype)


class ShardWriter:
    """A ``with`` that owns the writing thread; an error in it surfaces at the next shard or at the end.

    `committed`, a callable, is told of each job once all of it is committed.
    """

    def __init__(
        self,
        cache: FeatureCache,
        manifest: StimulusManifest,
        means: Means,
        dims: Mapping[Target, tuple[str, ...]],
        committed: Callable[[ShardJob], None],
    ) -> None:
        self._cache = cache
        self._manifest = manifest
        self._means = means
        self._dims = dims
        self._committed = committed
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._waiting: Future[None] | None = None
        self._writers: dict[Target, ArrayWriter] = {}

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._pool.shutdown()

    def put(self, buffer: ShardBuffer, provenance: Mapping[Target, Mapping[str, Any]]) -> None:
        """Write a full buffer; returns once the one before it is committed, so that at most two are held."""
        self.flush()
        self._waiting = self._pool.submit(self._write, buffer, provenance)

    def flush(self) -> None:
        """Wait until all that was put is committed."""
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.result()

    def _write(self, buffer: ShardBuffer, provenance: Mapping[Target, Mapping[str, Any]]) -> None:
        def write(target: Target) -> NonFinite | None:
            rows = buffer.rows.pop(target)
            if self._means.non_finite == "refuse" and (bad := look(target, rows, self._ids(buffer.job))):
                return bad
            reused = buffer.sources.get(target)
            self._writer(target, rows).publish(buffer.job.shard, rows, provenance[target], reused=reused)
            return None

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="write") as pool:
            refused = [bad for bad in pool.map(write, buffer.job.targets) if bad is not None]
        self._committed(buffer.job)
        if refused:  # sound layers of the shard are kept
            raise refusal(refused, buffer.job)

    def _ids(self, job: ShardJob) -> tuple[str, ...]:
        return self._manifest.ids[job.start : job.stop]

    def _writer(self, target: Target, rows: np.ndarray) -> ArrayWriter:
        if target not in self._writers:
            self._writers[target] = self._cache.writer(
                target.spec,
                self._manifest.digest,
                row_shape=rows.shape[1:],
                dims=self._dims[target],
                codec=self._means.codec,
                sample=rows[:32],
            )
        return self._writers[target]
