"""What is to be computed: the features asked for, less what the cache already holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from featpipe.extraction._order import Order, Target
from featpipe.models import ModelCard, match_layers
from featpipe.spec import REDUCTION_VERSIONS, FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache
from featpipe.views import spec_of_view


@dataclass(frozen=True)
class ShardJob:
    """One shard: which targets miss it, and which of its rows have to go through the network."""

    shard: int
    start: int
    stop: int
    targets: tuple[Target, ...]
    reused: dict[Target, np.ndarray] = field(default_factory=dict)  # (rows, 2): pool position and row, or -1

    @property
    def computed(self) -> np.ndarray:
        """Rows of the stimulus set that some target lacks, ascending."""
        lacking = np.zeros(self.stop - self.start, dtype=bool)
        for target in self.targets:
            lacking |= self.reused[target][:, 0] < 0 if target in self.reused else True
        return self.start + np.flatnonzero(lacking)


def targets_of(order: Order, card: ModelCard, stimuli_digest: str) -> list[Target]:
    """Return one target per view, matched layer and reduction, in network order per view, without repeats."""
    targets: dict[str, Target] = {}
    for request in order.layers:
        for layer, call, element in match_layers(request, card.layers):
            spec = FeatureSpec(
                model=card.architecture,
                weights=card.weights,
                layer=layer,
                preprocessing=card.preprocessing,
                model_args=card.model_args,
                code=card.code,
                call=call or 0,
                element=element,
                prefix_tokens=card.prefix_tokens_of(layer),
                layout=card.layout_of(layer),
                reduction=request.reduction,
                reduction_version=REDUCTION_VERSIONS[request.reduction.kind],
                store_dtype=order.store_dtype,
                precision=order.precision,
            )
            for seen in (spec_of_view(spec, view) for view in order.views):
                key = seen.key(stimuli_digest)
                targets[key] = Target(seen, key, card.layers.index(layer), call is not None)
    return sorted(targets.values(), key=lambda target: (target.spec.view, target.layer_order))


def known_shard_rows(cache: FeatureCache, stimuli_digest: str) -> int | None:
    """Return the rows a shard of a stimulus set if the cache has it: they hold once and for all."""
    if stimuli_digest in cache.stimuli_digests():
        return cache.stimuli(stimuli_digest).shard_rows
    return None


def missing_shards(
    cache: FeatureCache, targets: Sequence[Target], n_shards: int, only: Collection[int] | None = None
) -> dict[Target, list[int]]:
    """Return the shards that each target lacks, of these only; targets that lack none are left out."""
    there = set(cache.keys())
    lacks = {t: cache.array(t.key).missing if t.key in there else list(range(n_shards)) for t in targets}
    if only is not None:
        wanted = frozenset(only)
        lacks = {target: [shard for shard in shards if shard in wanted] for target, shards in lacks.items()}
    return {target: shards for target, shards in lacks.items() if shards}


class Pool:
    """Rows that the cache holds under the same features in other stimulus sets, found by image digest."""

    def __init__(self, cache: FeatureCache, target: Target, manifest: StimulusManifest) -> None:
        self.arrays = [a for a in cache.holding(target.spec) if a.key != target.key and a.committed]
        self.places = np.full((len(manifest), 2), -1)
        self._sound: dict[tuple[str, int], bool] = {}
        wanted: dict[str, list[int]] = {}
        for row, sha in enumerate(manifest.sha256):
            wanted.setdefault(sha, []).append(row)
        for position, array in enumerate(self.arrays):
            committed = array.committed
            for row, sha in enumerate(array.manifest.sha256):
                if sha in wanted and row // array.shard_rows in committed:
                    self.places[wanted[sha]] = position, row

    def sound(self, position: int, shard: int) -> bool:
        """Whether a shard's bytes are those that were committed; looked at once."""
        name = (self.arrays[position].key, shard)
        if name not in self._sound:
            self._sound[name] = self.arrays[position].is_sound(shard)
        return self._sound[name]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return (array position, row) per row of a shard, -1 where nothing sound is cached."""
        places = self.places[start:stop].copy()
        for position in np.unique(places[:, 0][places[:, 0] >= 0]):
            of_array = places[:, 0] == position
            shards = places[:, 1] // self.arrays[position].shard_rows
            for shard in np.unique(shards[of_array]):
                if not self.sound(int(position), int(shard)):
                    places[of_array & (shards == shard)] = -1
        return places

    def read(self, places: np.ndarray, out: np.ndarray) -> list[dict[str, object]]:
        """Copy cached rows into `out` (rows, *shape); return what came from where."""
        sources: list[dict[str, object]] = []
        for position in np.unique(places[:, 0][places[:, 0] >= 0]):
            here = np.flatnonzero(places[:, 0] == position)
            out[here] = self.arrays[position].read(places[here, 1])
            sources.append({"array": self.arrays[position].key, "rows": len(here)})
        return sources


def shard_jobs(
    lacks: dict[Target, list[int]],
    pools: dict[Target, Pool],
    *,
    n_stimuli: int,
    shard_rows: int,
) -> Iterator[ShardJob]:
    """Yield the shards to be made, in order, with what of them can be copied."""
    for shard in sorted({shard for shards in lacks.values() for shard in shards}):
        start, stop = shard * shard_rows, min((shard + 1) * shard_rows, n_stimuli)
        targets = tuple(target for target, shards in lacks.items() if shard in shards)
        reused = {t: pools[t].rows(start, stop) for t in targets if pools[t].arrays}
        yield ShardJob(shard, start, stop, targets, reused)
