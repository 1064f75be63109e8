"""`extract`: resolve, plan, run, and say what was done."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featpipe.extraction._allocator import keeping_freed_memory
from featpipe.extraction._non_finite import kept
from featpipe.extraction._order import Extraction, Means, Order, Progress, Target, by_view
from featpipe.extraction._plan import known_shard_rows, missing_shards, targets_of
from featpipe.models import ModelCard, resolve
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache

if TYPE_CHECKING:
    from featpipe.extraction._distributed import DaskWorkers


def extract(
    order: Order,
    stimuli: StimulusSet,
    cache: FeatureCache,
    *,
    means: Means | None = None,
    progress: Progress | None = None,
    rehash: bool = False,
    workers: DaskWorkers | None = None,
) -> Extraction:
    """Write the features of a stimulus set to the cache, going on where an earlier run stopped.

    All layers come from one forward pass a view, which ends at the deepest one that is missing. Rows that
    the cache holds for the same image bytes under the same features are copied. When nothing is missing no
    network is built, and torch is not imported.

    Parameters
    ----------
    order : Order
        What: model, layers, stored dtype, precision, views.
    stimuli : StimulusSet
    cache : FeatureCache
    means : Means, optional
        How: device, batch size, workers, codec.
    progress : callable (images done, images in all), optional
        Of all views that lack something.
    rehash : bool
        Ignore remembered digests of weights.
    workers : DaskWorkers, optional
        Where shards are computed, instead of in this process. They need the images, the files of the network and
        the cache under the same paths as here.

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
    if lacking := _lacking(cache, targets, stimuli):
        cache.location.require_writable()
        compute = _compute_here if workers is None else workers.compute
        done = replace(done, **compute(order, stimuli, cache, means, card, lacking, progress))
    if means.non_finite == "keep":
        done = replace(done, non_finite=kept(cache, targets))
    return replace(done, seconds=time.perf_counter() - began)


def _compute_here(
    order: Order,
    stimuli: StimulusSet,
    cache: FeatureCache,
    means: Means,
    card: ModelCard,
    parts: Sequence[Sequence[Target]],
    progress: Progress | None,
) -> dict[str, Any]:
    """Fill the cache; return the fields of `Extraction` that say what was done."""
    from featpipe.extraction._run import Run  # torch, only where something is missing

    runs: list[Run] = []
    with keeping_freed_memory():
        for part in parts:
            shown = _part_of(progress, len(runs), len(parts))
            after = runs[-1] if runs else None
            runs.append(Run(order, stimuli, cache, means, card, part, shown, after))
            runs[-1].work()
    return {
        "n_computed": sum(run.n_computed for run in runs),
        "n_reused": sum(run.n_reused for run in runs),
        "device": next((run.device for run in runs if run.device), ""),
        "batch_size": next((run.batch_size for run in runs if run.batch_size), 0),
    }


def _lacking(cache: FeatureCache, targets: Sequence[Target], stimuli: StimulusSet) -> list[list[Target]]:
    """Return the targets of each view that lacks something."""
    shard_rows = known_shard_rows(cache, stimuli.digest)
    if shard_rows is None:
        return by_view(targets)
    lacks = missing_shards(cache, targets, math.ceil(len(stimuli) / shard_rows))
    return [part for part in by_view(targets) if any(target in lacks for target in part)]


def _part_of(progress: Progress | None, part: int, n_parts: int) -> Progress | None:
    """Return a callback for one of several parts of about the same size."""
    if progress is None:
        return None
    return lambda done, total: progress(part * total + done, n_parts * total)
