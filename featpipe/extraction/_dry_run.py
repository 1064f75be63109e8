"""What an extraction would cost, from one batch of it."""

from __future__ import annotations

import math
import resource
import time

import numpy as np
import torch

from featpipe.extraction._allocator import keeping_freed_memory
from featpipe.extraction._forward import choose_device
from featpipe.extraction._images import ImageBatches, default_workers, padded
from featpipe.extraction._order import DryRun, Means, Order, by_view
from featpipe.extraction._plan import Pool, known_shard_rows, missing_shards, targets_of
from featpipe.extraction._run import Run, device_name, first_image, shape_bytes
from featpipe.models import resolve
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache


def dry_run(order: Order, stimuli: StimulusSet, cache: FeatureCache, *, means: Means | None = None) -> DryRun:
    """Run one batch and say what the whole would cost; nothing is written.

    Parameters and errors are those of `extract`. Bytes on disk are before compression; peak memory is this
    process's so far and the two shards that an extraction holds; time counts decoding and forward passes.
    Views of the images are taken to cost what the images themselves do.
    """
    means = means or Means()
    card = resolve(order.model)
    targets = targets_of(order, card, stimuli.digest)
    of_image = by_view(targets)[0]
    run = Run(order, stimuli, cache, means, card, of_image, None)
    pools = {target: Pool(cache, target, stimuli.manifest) for target in of_image}
    with keeping_freed_memory():
        shapes = run.row_shapes(pools)
        shard_rows = known_shard_rows(cache, stimuli.digest) or means.shard_rows or run.shard_rows(shapes)
        seconds, batch_size = _time_of_a_batch(run, shard_rows)
    lacks = missing_shards(cache, targets, math.ceil(len(stimuli) / shard_rows))
    per_row = [shape_bytes(shape, target) for shape, target in zip(shapes, of_image, strict=True)]
    shards = [max(len(lacks.get(target, ())) for target in part) for part in by_view(targets)]
    n_passes = sum(math.ceil(min(n * shard_rows, len(stimuli)) / batch_size) for n in shards)
    n_views = len(shards)
    return DryRun(
        card=card,
        targets=tuple(targets),
        row_shapes=tuple(shapes) * n_views,
        cached=tuple(target not in lacks for target in targets),
        bytes_per_row=tuple(per_row) * n_views,
        n_stimuli=len(stimuli),
        bytes_on_disk=sum(per_row) * len(stimuli) * n_views,
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 2 * shard_rows * sum(per_row),
        seconds=seconds * n_passes,
        device=device_name(choose_device(means.device)),
        batch_size=batch_size,
    )


def _time_of_a_batch(run: Run, shard_rows: int) -> tuple[float, int]:
    """Return the seconds of a batch, decoding included, and its size."""
    device = choose_device(run.means.device)
    with (
        ImageBatches(
            run.stimuli, run.card.preprocessing, workers=run.means.workers or default_workers(), pin=False
        ) as images,
        run.forward(run.targets) as forward,
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
