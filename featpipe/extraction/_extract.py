"""`extract`: resolve, plan, run, and say what was done."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from featpipe.extraction._allocator import keeping_freed_memory
from featpipe.extraction._order import Extraction, Means, Order, Progress
from featpipe.extraction._plan import known_shard_rows, missing_shards, targets_of
from featpipe.models import resolve
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache


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
    network is built, and torch is not imported.

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
    done = Extraction(
        card, stimuli.digest, tuple(targets), len(stimuli), n_computed=0, n_reused=0, seconds=0.0
    )
    shard_rows = known_shard_rows(cache, stimuli.digest)
    if shard_rows is None or missing_shards(cache, targets, math.ceil(len(stimuli) / shard_rows)):
        from featpipe.extraction._run import Run  # torch, only where something is missing

        run = Run(order, stimuli, cache, means, card, targets, progress)
        with keeping_freed_memory():
            run.work()
        done = replace(
            done,
            n_computed=run.n_computed,
            n_reused=run.n_reused,
            device=run.device,
            batch_size=run.batch_size,
        )
    return replace(done, seconds=time.perf_counter() - began)
