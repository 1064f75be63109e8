"""One extraction under way: from what is missing to committed shards."""

from __future__ import annotations

import math
import platform
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain, tee
from typing import Any

import numpy as np
import torch

from featpipe.errors import SpecError, UnsupportedOutput
from featpipe.extraction._forward import Forward, choose_device
from featpipe.extraction._images import ImageBatches, default_workers, padded
from featpipe.extraction._order import LEAST_BATCH, Means, Order, Progress, Target
from featpipe.extraction._passes import forward_passes, in_batches, one_behind, put_parts
from featpipe.extraction._plan import Pool, ShardJob, known_shard_rows, missing_shards, shard_jobs
from featpipe.extraction._shards import ShardBuffer, ShardWriter
from featpipe.extraction._shares import Share
from featpipe.models import Backbone, ModelCard, describe, load
from featpipe.stimuli import StimulusSet
from featpipe.store import SHARD_ROWS, Claims, FeatureCache, claim_storage, work_of

_SHARD_BYTES = 1 << 29  # of all layers of one shard; two shards are held at a time
_LIBRARIES = ("featpipe", "torch", "torchvision", "timm", "open_clip_torch", "pillow", "numpy", "zarr")


class Run:
    """One extraction under way; its steps stand in the order in which they happen.

    Parameters
    ----------
    order, stimuli, cache, means, card
        See `extract`.
    targets : sequence of Target
        All of one view.
    progress : callable or None
    after : Run, optional
        One of another view, whose network and batch size serve again.
    """

    def __init__(
        self,
        order: Order,
        stimuli: StimulusSet,
        cache: FeatureCache,
        means: Means,
        card: ModelCard,
        targets: Sequence[Target],
        progress: Progress | None,
        after: Run | None = None,
    ) -> None:
        self.order, self.stimuli, self.cache, self.means, self.card = order, stimuli, cache, means, card
        self.targets = targets
        self.progress = progress or (lambda done, total: None)
        self.n_computed = self.n_reused = self.batch_size = 0
        self._done = self._total = 0  # images, of all runs that are at it
        self.device = ""
        self._backbone: Backbone | None = after._backbone if after else None
        self._found_size: int | None = (after.batch_size or None) if after else None
        self._forward: Forward | None = None

    def work(self, only: Collection[int] | None = None) -> None:
        """Do all that is missing, or only what these shards miss, beside others who do the same.

        A network is built only where rows cannot be copied.
        """
        pools = {target: Pool(self.cache, target, self.stimuli.manifest) for target in self.targets}
        known = known_shard_rows(self.cache, self.stimuli.digest)
        wanted = known or self.means.shard_rows or self.shard_rows(self.row_shapes(pools))
        # Another run may have added the set a moment ago, with shards of another size: the first one decides.
        shard_rows = self.cache.add_stimuli(self.stimuli.manifest, shard_rows=wanted).shard_rows
        lacks = missing_shards(self.cache, self.targets, math.ceil(len(self.stimuli) / shard_rows), only)
        jobs = list(shard_jobs(lacks, pools, n_stimuli=len(self.stimuli), shard_rows=shard_rows))
        jobs.sort(key=lambda job: len(job.computed) > 0)  # copies first: images are decoded ahead of them
        self._total = sum(job.stop - job.start for job in jobs)
        self.dims = {target: pool.arrays[0].dims for target, pool in pools.items() if pool.arrays}
        with self._claims() as claims, self._writer(claims) as writer:
            share = Share(jobs, self.cache, claims, self._count)
            if any(len(job.computed) for job in jobs):
                lacking = [t for t in self.targets if any(t in job.targets for job in jobs)]
                self._compute(share, lacking, pools, shard_rows, writer)
            else:
                for job in chain.from_iterable(share.rounds()):
                    self._finish(ShardBuffer(job, pools), writer, how={})

    def _claims(self) -> Claims:
        work = work_of(self.targets[0].spec, self.stimuli.digest)
        return Claims(claim_storage(self.cache.root, work), expiry=self.means.claim_expiry)

    def _writer(self, claims: Claims) -> ShardWriter:
        return ShardWriter(
            self.cache,
            self.stimuli.manifest,
            self.means,
            self.dims,
            committed=lambda job: claims.release(str(job.shard)),
        )

    def shard_rows(self, row_shapes: Sequence[tuple[int, ...]]) -> int:
        """Return the rows a shard of a new stimulus set: fewer the larger its layers are."""
        row = sum(shape_bytes(shape, target) for target, shape in zip(self.targets, row_shapes, strict=True))
        return int(np.clip(_SHARD_BYTES // max(row, 1) // LEAST_BATCH * LEAST_BATCH, LEAST_BATCH, SHARD_ROWS))

    def row_shapes(self, pools: Mapping[Target, Pool]) -> list[tuple[int, ...]]:
        """Return the shape of a row of every target, from cached rows or else from one image."""
        if all(pools[target].arrays for target in self.targets):
            return [pools[target].arrays[0].row_shape for target in self.targets]
        image = first_image(self.stimuli, self.card)[None]
        with self.forward(self.targets) as forward:
            shapes = forward.row_shapes(image)
        return [shapes[target] for target in self.targets]

    def forward(self, targets: Sequence[Target]) -> Forward:
        """Return the network on its device with the targets tapped; the same one for the same targets."""
        if self._forward is None or self._forward.targets != list(targets):
            recorded = recorded_means(self.cache, self.targets)
            usual = "channels_last" if self.card.channels_last else "contiguous_format"
            self._forward = Forward(
                self._network(),
                targets,
                device=choose_device(self.means.device),
                precision=self.order.precision,
                memory_format=recorded.get("memory_format", usual),
                batch_size=self.means.batch_size or recorded.get("batch_size") or self._found_size,
            )
        return self._forward

    def _network(self) -> Backbone:
        if self._backbone is None:
            self._backbone = load(self.order.model)
            if self._backbone.card.weights != self.card.weights:
                raise SpecError("The weights changed while they were read; run the command again.")
            refuse_missing(self._backbone, self.targets)
        return self._backbone

    def _compute(
        self,
        share: Share,
        lacking: Sequence[Target],
        pools: Mapping[Target, Pool],
        shard_rows: int,
        writer: ShardWriter,
    ) -> None:
        device = choose_device(self.means.device)
        with ExitStack() as stack:
            images = ImageBatches(
                self.stimuli,
                self.card.preprocessing,
                workers=self.means.workers or default_workers(),
                pin=device.type == "cuda",
                view=self.order.views[self.targets[0].spec.view],
            )
            stack.enter_context(images)
            forward = stack.enter_context(self.forward(lacking))
            self._say_other_batches(lacking)
            forward.settle_batch_size(first_image(self.stimuli, self.card)[None], shard_rows)
            self.device, self.batch_size = device_name(device), forward.batch_size
            for jobs in share.rounds():
                self._loop(jobs, pools, images, forward, writer)
                writer.flush()

    def _say_other_batches(self, lacking: Sequence[Target]) -> None:
        begun = recorded_means(self.cache, lacking).get("batch_size")
        if begun and self.means.batch_size not in (None, begun):
            warnings.warn(
                f"These arrays were begun with batches of {begun} images, and go on with --batch-size "
                f"{self.means.batch_size}: their rows may differ in the last bits. Leave it out to go on with {begun}.",
                stacklevel=2,
            )

    def _loop(
        self,
        jobs: Iterator[ShardJob],
        pools: Mapping[Target, Pool],
        images: ImageBatches,
        forward: Forward,
        writer: ShardWriter,
    ) -> None:
        size = forward.batch_size
        ahead, jobs = tee(jobs)  # claimed as they are drawn: when the first of their images are decoded
        batches = images.of(padded(rows, size) for job in ahead for rows in in_batches(job.computed, size))
        passes = forward_passes(jobs, batches, forward, size)
        buffer: ShardBuffer | None = None
        for job, rows, parts, last in one_behind(passes) if forward.device.type == "cuda" else passes:
            buffer = buffer or ShardBuffer(job, pools)
            put_parts(buffer, parts, rows)
            if last:
                self.dims.update(forward.dims if parts else {})
                self._finish(buffer, writer, how=how_computed(forward, self.device) if parts else {})
                buffer = None
            else:
                self.progress(self._done + int(rows[-1]) + 1 - job.start, self._total)

    def _count(self, job: ShardJob) -> None:
        """Count a shard that is done, by whomever."""
        self._done += job.stop - job.start
        self.progress(self._done, self._total)

    def _finish(self, buffer: ShardBuffer, writer: ShardWriter, how: Mapping[str, Any]) -> None:
        computed = len(buffer.job.computed)
        self.n_computed += computed
        self.n_reused += buffer.job.stop - buffer.job.start - computed
        asked = self.order.model.from_anywhere()
        common = {
            "model_asked": asked.model,
            "weights_asked": asked.weights,
            "weights_label": self.card.weights_label,
            "source": self.stimuli.manifest.source,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in _LIBRARIES},
            "python": platform.python_version(),
            **how,
        }
        job = buffer.job
        writer.put(buffer, {t: {"layer_order": t.layer_order, **common} for t in job.targets})
        self._count(job)


def recorded_means(cache: FeatureCache, targets: Sequence[Target]) -> dict[str, Any]:
    """Return batch size and memory format of shards that an earlier run computed, for equal bits."""
    there = set(cache.keys())
    arrays = [cache.array(target.key) for target in targets if target.key in there]
    for array in sorted(arrays, key=lambda array: array.complete):  # first those that go on
        for shard in sorted(array.committed):  # one that was copied or adopted does not say
            provenance = array.commit(shard)["provenance"]
            if "batch_size" in provenance:
                return {name: provenance[name] for name in ("batch_size", "memory_format")}
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
