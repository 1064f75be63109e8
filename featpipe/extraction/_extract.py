"""`extract`: resolve, plan, run, and say what was done."""

from __future__ import annotations

import time

from featpipe.extraction._allocator import keeping_freed_memory
from featpipe.extraction._order import Extraction, Means, Order, Progress
from featpipe.extraction._plan import targets_of
from featpipe.extraction._run import Run
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
    run = Run(order, stimuli, cache, means, card, targets, progress)
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
