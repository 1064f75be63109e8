"""Extraction end to end: resolve, plan, run, and say what was done."""

from __future__ import annotations

import math
import platform
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from featpipe.errors import SpecError, UnsupportedOutput
from featpipe.extraction._allocator import keeping_freed_memory
from featpipe.extraction._forward import Forward, choose_device
from featpipe.extraction._images import ImageBatches, default_workers, padded
from featpipe.extraction._order import LEAST_BATCH, DryRun, Extraction, Means, Order, Progress, Target
from featpipe.extraction._plan import Pool, ShardJob, missing_shards, shard_jobs, targets_of
from featpipe.extraction._shards import ShardBuffer, ShardWriter
from featpipe.models import Backbone, ModelCard, describe, load, resolve
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache

SHARD_ROWS = 256
_SHARD_BYTES = 1 << 29  # of all layers of one shard; two shards are held at a time
_LIBRARIES = ("featpipe", "torch", "torchvision", "timm", "open_clip_torch", "pillow", "numpy", "zarr")


def extract(
    order: Order,
    stimuli: StimulusSet,
    cache: FeatureCache,
    *,
    means: Means | None = None,
    progress: Progress | None = None,
    rehash: bool = False,
) -> Extraction:
    """Write the features of a stimulus set to the cache, going on where an earlier run stopped.

    All layers come from one forward pass, which ends at the deepest one that is missing. Rows that the
    cache holds for the same image bytes under the same features are copied. When nothing is missing no
    network is built.

    Parameters
    ----------
    order : Order
        What: model, layers, stored dtype, precision.
    stimuli : StimulusSet
    cache : FeatureCache
    means : Means, optional
        How: device, batch size, workers, codec.
    progress : callable (images done, images in all), optional
    rehash : bool
        Ignore remembered digests of weights.

    Raises
    ------
    RequestError
        A model, layer, reduction or image that cannot be used as asked.
    WorkError
        The work failed; committed shards stay.
    """
    began = time.perf_counter()
    means = means or Means()
    card = resolve(order.model, rehash=rehash)
    targets = targets_of(order, card, stimuli.digest)
    run = _Run(order, stimuli, cache, means, card, targets, progress)
    with keeping_freed_memory():
        run.work()
    return Extraction(
        card=card,
        stimuli=stimuli.digest,
        targets=tuple(targets),
        n_stimuli=len(stimuli),
        n_computed=run.n_computed,
        n_reused=run.n_reused,
        seconds=time.perf_counter() - began,
        device=run.device,
        batch_size=run.batch_size,
    )


class _Run:
    """One extraction under way; its steps stand in the order in which they happen."""

    def __init__(
        self,
        order: Order,
        stimuli: StimulusSet,
        cache: FeatureCache,
        means: Means,
        card: ModelCard,
        targets: Sequence[Target],
        progress: Progress | None,
    ) -> None:
        self.order, self.stimuli, self.cache, self.means, self.card = order, stimuli, cache, means, card
        self.targets = targets
        self.progress = progress or (lambda done, total: None)
        self.n_computed = self.n_reused = self.batch_size = 0
        self.device = ""
        self._backbone: Backbone | None = None

    def work(self) -> None:
        shard_rows = self._shard_rows()
        lacks = missing_shards(self.cache, self.targets, math.ceil(len(self.stimuli) / shard_rows))
        if not lacks:
            return
        pools = {target: Pool(self.cache, target, self.stimuli.manifest) for target in lacks}
        jobs = list(shard_jobs(lacks, pools, n_stimuli=len(self.stimuli), shard_rows=shard_rows))
        self.cache.add_stimuli(self.stimuli.manifest, shard_rows=shard_rows)
        self.dims = {t: pool.arrays[0].dims for t, pool in pools.items() if pool.arrays}
        with ShardWriter(self.cache, self.stimuli.manifest, self.means.codec, self.dims) as writer:
            if any(len(job.computed) for job in jobs):
                self._compute(jobs, pools, shard_rows, writer)
            else:
                for job in jobs:
                    self._finish(ShardBuffer(job, pools), writer, how={})

    def _shard_rows(self) -> int:
        """Return the rows a shard of this stimulus set, once and for all; large layers make it smaller."""
        if self.stimuli.digest in self.cache.stimuli_digests():
            return self.cache.stimuli(self.stimuli.digest).shard_rows
        if self.means.shard_rows is not None:
            return self.means.shard_rows
        row = sum(shape_bytes(shape, t) for t, shape in zip(self.targets, self._row_shapes(), strict=True))
        return int(np.clip(_SHARD_BYTES // max(row, 1) // LEAST_BATCH * LEAST_BATCH, LEAST_BATCH, SHARD_ROWS))

    def _row_shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of a row of every target, from one image."""
        batch = torch.stack([first_image(self.stimuli, self.card)] * LEAST_BATCH)
        with self._forward(self.targets, LEAST_BATCH) as forward:
            rows = next(iter(forward.in_parts(batch)))
        return [tuple(rows[target].shape[1:]) for target in self.targets]

    def _forward(
        self, targets: Sequence[Target], batch_size: int | None, how: Mapping[str, Any] | None = None
    ) -> Forward:
        device = choose_device(self.means.device)
        usual = "channels_last" if self.card.channels_last else "contiguous_format"
        return Forward(
            self._network(),
            targets,
            device=device,
            precision=self.order.precision,
            memory_format=(how or {}).get("memory_format", usual),
            batch_size=batch_size,
        )

    def _network(self) -> Backbone:
        if self._backbone is None:
            self._backbone = load(self.order.model)
            if self._backbone.card.weights != self.card.weights:
                raise SpecError("The weights changed while they were read; run the command again.")
            refuse_missing(self._backbone, self.targets)
        return self._backbone

    def _compute(
        self, jobs: Sequence[ShardJob], pools: Mapping[Target, Pool], shard_rows: int, writer: ShardWriter
    ) -> None:
        lacking = [t for t in self.targets if any(t in job.targets for job in jobs)]
        recorded = recorded_means(self.cache, self.targets)
        chosen = self.means.batch_size or recorded.get("batch_size")
        device = choose_device(self.means.device)
        with ExitStack() as stack:
            images = ImageBatches(
                self.stimuli,
                self.card.preprocessing,
                workers=self.means.workers or default_workers(),
                pin=device.type == "cuda",
            )
            stack.enter_context(images)
            forward = stack.enter_context(self._forward(lacking, chosen, recorded))
            forward.settle_batch_size(first_image(self.stimuli, self.card)[None], shard_rows)
            self.device, self.batch_size = device_name(device), forward.batch_size
            self._loop(jobs, pools, images, forward, writer)

    def _loop(
        self,
        jobs: Sequence[ShardJob],
        pools: Mapping[Target, Pool],
        images: ImageBatches,
        forward: Forward,
        writer: ShardWriter,
    ) -> None:
        size = forward.batch_size
        total = sum(job.stop - job.start for job in jobs)
        done = 0
        batches = images.of(padded(rows, size) for job in jobs for rows in in_batches(job.computed, size))
        passes = forward_passes(jobs, batches, forward, size)
        buffer: ShardBuffer | None = None
        for job, rows, parts, last in one_behind(passes) if forward.device.type == "cuda" else passes:
            buffer = buffer or ShardBuffer(job, pools)
            put_parts(buffer, parts, rows)
            if last:
                self.dims.update(forward.dims if parts else {})
                self._finish(buffer, writer, how=how_computed(forward, self.device))
                done += job.stop - job.start
                buffer = None
            self.progress(done if last else done + int(rows[-1]) + 1 - job.start, total)

    def _finish(self, buffer: ShardBuffer, writer: ShardWriter, how: Mapping[str, Any]) -> None:
        computed = len(buffer.job.computed)
        self.n_computed += computed
        self.n_reused += buffer.job.stop - buffer.job.start - computed
        common = {
            "weights_asked": self.order.model.weights,
            "weights_label": self.card.weights_label,
            "source": self.stimuli.manifest.source,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in _LIBRARIES},
            "python": platform.python_version(),
            **how,
        }
        writer.put(buffer, {t: {"layer_order": t.layer_order, **common} for t in buffer.job.targets})


Pass = tuple[ShardJob, np.ndarray, list[dict[Target, torch.Tensor]], bool]


def forward_passes(
    jobs: Sequence[ShardJob], batches: Iterator[torch.Tensor], forward: Forward, size: int
) -> Iterator[Pass]:
    """Yield (job, rows, results, whether the job ends here); a job with nothing to compute has no results."""
    for job in jobs:
        parts = list(in_batches(job.computed, size))
        for position, rows in enumerate(parts):
            yield job, rows, list(forward.in_parts(next(batches))), position == len(parts) - 1
        if not parts:
            yield job, job.computed, [], True


def one_behind(passes: Iterator[Pass]) -> Iterator[Pass]:
    """Yield each pass once the next one is under way: the device computes while the host copies."""
    before: Pass | None = None
    for current in passes:
        if before is not None:
            yield before
        before = current
    if before is not None:
        yield before


def put_parts(buffer: ShardBuffer, parts: Sequence[dict[Target, torch.Tensor]], rows: np.ndarray) -> None:
    """Store the rows of one batch, fewer than its results where the batch ends in padding."""
    at = 0
    for part in parts:
        length = len(next(iter(part.values())))
        for target, values in part.items():
            buffer.put(rows[at : at + length], target, values)
        at += length


def in_batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cut rows into batches, the last one short."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def recorded_means(cache: FeatureCache, targets: Sequence[Target]) -> dict[str, Any]:
    """Return batch size and memory format of shards that an earlier run committed, for equal bits."""
    there = set(cache.keys())
    for target in targets:
        if target.key in there and (provenance := cache.array(target.key).provenance):
            return {n: provenance[n] for n in ("batch_size", "memory_format") if n in provenance}
    return {}


def how_computed(forward: Forward, device: str) -> dict[str, Any]:
    """Return what the last bits of a row may depend on."""
    return {
        "device": device,
        "batch_size": forward.batch_size,
        "memory_format": forward.memory_format,
        "threads": torch.get_num_threads(),
        "mode": "eager",
    }


def device_name(device: torch.device) -> str:
    """Return the device as a person would call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def first_image(stimuli: StimulusSet, card: ModelCard) -> torch.Tensor:
    """Return the first image as the network gets it: uint8 tensor of shape (3, height, width)."""
    with ImageBatches(stimuli, card.preprocessing, workers=1, pin=False) as images:
        return next(images.of([np.array([0])]))[0]


def shape_bytes(shape: Sequence[int], target: Target) -> int:
    """Return the bytes of one stored row."""
    return math.prod(shape) * np.dtype(target.spec.store_dtype).itemsize


def refuse_missing(backbone: Backbone, targets: Sequence[Target]) -> None:
    """Refuse layers whose output depends on weights that the file lacks.

    Raises
    ------
    UnsupportedOutput
        Names the layers and the missing keys.
    """
    missing = backbone.card.missing
    if not missing:
        return
    dependent = {info.name for info in describe(backbone) if info.depends_on_missing}
    refused = sorted({t.spec.layer for t in targets} & dependent)
    if refused:
        raise UnsupportedOutput(
            f"The weights file lacks {len(missing)} weights, first {missing[0]!r}, and {', '.join(refused)} "
            "would depend on them. Leave out these layers, or give weights that hold them."
        )


def dry_run(order: Order, stimuli: StimulusSet, cache: FeatureCache, *, means: Means | None = None) -> DryRun:
    """Run one batch and say what the whole would cost; nothing is written.

    Parameters and errors are those of `extract`. Bytes on disk are before compression; peak memory is this
    process's so far and the two shards that an extraction holds; time counts decoding and forward passes.
    """
    means = means or Means()
    card = resolve(order.model)
    targets = targets_of(order, card, stimuli.digest)
    run = _Run(order, stimuli, cache, means, card, targets, None)
    with keeping_freed_memory():
        shapes = run._row_shapes()
        shard_rows = run._shard_rows()
        seconds, batch_size = _time_of_a_batch(run, shard_rows)
    lacks = missing_shards(cache, targets, math.ceil(len(stimuli) / shard_rows))
    per_row = tuple(shape_bytes(shape, target) for shape, target in zip(shapes, targets, strict=True))
    shards = max((len(missing) for missing in lacks.values()), default=0)
    return DryRun(
        card=card,
        targets=tuple(targets),
        row_shapes=tuple(shapes),
        cached=tuple(target not in lacks for target in targets),
        bytes_per_row=per_row,
        n_stimuli=len(stimuli),
        bytes_on_disk=sum(per_row) * len(stimuli),
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 2 * shard_rows * sum(per_row),
        seconds=seconds * math.ceil(min(shards * shard_rows, len(stimuli)) / batch_size),
        device=device_name(choose_device(means.device)),
        batch_size=batch_size,
    )


def _time_of_a_batch(run: _Run, shard_rows: int) -> tuple[float, int]:
    """Return the seconds of a batch, decoding included, and its size."""
    device = choose_device(run.means.device)
    with (
        ImageBatches(
            run.stimuli, run.card.preprocessing, workers=run.means.workers or default_workers(), pin=False
        ) as images,
        run._forward(run.targets, run.means.batch_size) as forward,
    ):
        forward.settle_batch_size(first_image(run.stimuli, run.card)[None], shard_rows)
        size = forward.batch_size
        rows = np.arange(min(size, len(run.stimuli)))
        for _ in range(2):  # the first one warms up
            began = time.perf_counter()
            for batch in images.of([padded(rows, size)]):
                list(forward.in_parts(batch))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - began
    return seconds, size
