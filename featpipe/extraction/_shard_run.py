"""Single shards of one view, made by a process that keeps its network from one to the next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any

import torch

from featpipe.extraction._forward import choose_device
from featpipe.extraction._images import ImageBatches, default_workers, padded
from featpipe.extraction._order import LEAST_BATCH, Target
from featpipe.extraction._passes import forward_passes, in_batches, one_behind, put_parts
from featpipe.extraction._plan import Pool, ShardJob, known_shard_rows, missing_shards, shard_jobs
from featpipe.extraction._run import Run, device_name, first_image, how_computed
from featpipe.extraction._shards import ShardBuffer, ShardWriter


@dataclass(frozen=True)
class Prepared:
    """A shard whose first images are being decoded."""

    job: ShardJob
    batches: Iterator[torch.Tensor]
    batch_size: int


@dataclass(frozen=True)
class Computed:
    """A shard that is ready to be written, and how its rows came about."""

    buffer: ShardBuffer
    how: Mapping[str, Any]


class ShardRun(Run):
    """Makes single shards, each step by a call of its own; parameters are those of `Run`."""

    def close(self) -> None:
        """End the threads that decode."""
        if "images" in vars(self):
            self.images.__exit__()

    @cached_property
    def pools(self) -> dict[Target, Pool]:
        """Rows that the cache holds in other stimulus sets; with them come names of axes."""
        pools = {target: Pool(self.cache, target, self.stimuli.manifest) for target in self.targets}
        self.dims = {target: pool.arrays[0].dims for target, pool in pools.items() if pool.arrays}
        return pools

    @cached_property
    def images(self) -> ImageBatches:
        """The threads that decode, for all shards."""
        images = ImageBatches(
            self.stimuli,
            self.card.preprocessing,
            workers=self.means.workers or default_workers(),
            pin=choose_device(self.means.device).type == "cuda",
            view=self.order.views[self.targets[0].spec.view],
        )
        return images.__enter__()

    @cached_property
    def writer(self) -> WriterAtOnce:
        """The writer of all shards."""
        return WriterAtOnce(
            self.cache, self.stimuli.manifest, self.means, self.dims, committed=lambda job: None
        )

    @cached_property
    def lacking(self) -> list[Target]:
        """Targets that lacked a shard when this process began, all of which one network gives."""
        known = known_shard_rows(self.cache, self.stimuli.digest)
        lacks = self._missing(known) if known else self.targets
        return [target for target in self.targets if target in lacks]

    def wanted_shard_rows(self) -> int:
        """Return the rows a shard that the set has in the cache, or would best have."""
        known = known_shard_rows(self.cache, self.stimuli.digest)
        return known or self.means.shard_rows or self.shard_rows(self.row_shapes(self.pools))

    def settled_batch_size(self, shard_rows: int) -> int:
        """Return the images a batch for all processes, 0 where all rows can be copied."""
        how = {"n_stimuli": len(self.stimuli), "shard_rows": shard_rows}
        if not any(len(job.computed) for job in shard_jobs(self._missing(shard_rows), self.pools, **how)):
            return 0
        with self.forward(self.lacking) as forward:
            self._say_other_batches(self.lacking)
            forward.settle_batch_size(first_image(self.stimuli, self.card)[None], shard_rows)
        self.batch_size = forward.batch_size  # of the views that come after this one
        return forward.batch_size

    def prepared(self, shard: int, batch_size: int) -> Prepared | None:
        """Look what a shard lacks and decode its first images; None if it is there already.

        `batch_size` is 0 where it seemed that nothing is to be computed.
        """
        self.lacking  # noqa: B018 - before the shard is looked at, so that it holds what the shard lacks
        shard_rows, size = self.cache.stimuli(self.stimuli.digest).shard_rows, batch_size or LEAST_BATCH
        lacks = {t: [shard] for t, shards in self._missing(shard_rows).items() if shard in shards}
        for job in shard_jobs(lacks, self.pools, n_stimuli=len(self.stimuli), shard_rows=shard_rows):
            batches = self.images.of(padded(rows, size) for rows in in_batches(job.computed, size))
            return Prepared(job, chain(list(islice(batches, 1)), batches), size)
        return None

    def computed(self, shard: Prepared) -> Computed:
        """Copy what is cached and run the network on the rest; calls of all views come from one thread."""
        buffer = ShardBuffer(shard.job, self.pools)
        if not len(shard.job.computed):
            return Computed(buffer, {})
        self._found_size = shard.batch_size
        device = choose_device(self.means.device)
        with self.forward(self.lacking) as forward:
            passes = forward_passes([shard.job], shard.batches, forward, shard.batch_size)
            for _, rows, parts, _ in one_behind(passes) if device.type == "cuda" else passes:
                put_parts(buffer, parts, rows)
            self.dims.update(forward.dims)
            return Computed(buffer, how_computed(forward, device_name(device)))

    def write(self, shard: Computed) -> None:
        """Write a shard; it is committed once this returns."""
        self._finish(shard.buffer, self.writer, shard.how)

    def _missing(self, shard_rows: int) -> dict[Target, list[int]]:
        return missing_shards(self.cache, self.targets, math.ceil(len(self.stimuli) / shard_rows))


class WriterAtOnce(ShardWriter):
    """A `ShardWriter` that returns once all is committed: whoever calls it has a thread to spare."""

    def put(self, buffer: ShardBuffer, provenance: Mapping[Target, Mapping[str, Any]]) -> None:
        """Write a full buffer."""
        self._write(buffer, provenance)
