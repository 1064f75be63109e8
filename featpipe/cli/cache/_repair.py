"""What ``featpipe cache verify`` needs to compute rows again: images and weights, checked to be the right ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from featpipe.cli._console import note, showing_progress
from featpipe.errors import CacheCorrupt

if TYPE_CHECKING:
    from featpipe.extraction import Again, Repair
    from featpipe.stimuli import StimulusSet
    from featpipe.store import CachedArray, FeatureCache, Problem


class Request(NamedTuple):
    """What the options say of images, network and means."""

    images: list[str]
    subject: str | None
    split: str | None
    weights: str | None
    model: str | None
    device: str
    workers: int | None
    trust: bool
    quiet: bool


def images_at_hand(request: Request) -> StimulusSet:
    """Open all sources that were named, as one set; which image is which shows by its digest."""
    from featpipe.cli._extract import open_stimuli
    from featpipe.stimuli import join_stimuli

    sets = {
        str(number): open_stimuli(
            source, request.subject, request.split, skip_broken=False, rehash=False, quiet=request.quiet
        )
        for number, source in enumerate(request.images)
    }
    return sets["0"] if len(sets) == 1 else join_stimuli(sets, name=", ".join(request.images))


def plans_for(arrays: Iterable[CachedArray], images: StimulusSet, request: Request) -> list[Again]:
    """Check images and weights of arrays."""
    from featpipe.extraction import plan_again

    return plan_again(arrays, images, model=request.model, weights=request.weights, trust=request.trust)


def repaired(store: FeatureCache, problems: Sequence[Problem], request: Request) -> Repair:
    """Check images and weights, and then make good what is damaged."""
    from featpipe.extraction import Means, repair

    images = images_at_hand(request) if request.images else None
    plans = [] if images is None else plans_for(_to_compute(store, problems, images), images, request)
    with showing_progress("repair", quiet=request.quiet) as progress:
        return repair(
            store,
            problems,
            plans,
            known=() if images is None else [images.manifest],
            means=Means(request.device, workers=request.workers),
            progress=progress,
        )


def _to_compute(store: FeatureCache, problems: Sequence[Problem], images: StimulusSet) -> list[CachedArray]:
    """Return the arrays with damaged shards that a network can make again, as far as they say what they are."""
    from featpipe.extraction import IMPORTED
    from featpipe.store import recovered_array

    arrays = []
    for key in sorted({problem.key for problem in problems if problem.shard is not None}):
        try:
            arrays.append(recovered_array(store.location, key, [images.manifest]))
        except CacheCorrupt as error:
            note(f"featpipe: array {key[:12]} cannot be computed again: {error}.")
    return [array for array in arrays if not array.spec.model.startswith(IMPORTED)]
