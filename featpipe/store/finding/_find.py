"""Which arrays of a cache are meant: by key, or by what they hold."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featpipe.errors import AmbiguousFeatures, FeatpipeError, FeaturesNotCached, RequestError
from featpipe.spec import Reduction, match_names
from featpipe.store._array import CachedArray
from featpipe.store._commits import COMMITS
from featpipe.store._names import begins, is_name

if TYPE_CHECKING:
    from featpipe.store._cache import FeatureCache

Unreadable = Callable[[str, FeatpipeError], None]
_KINDS = {
    **dict.fromkeys(("model", "stimuli", "reduce", "weights"), (str,)),
    **dict.fromkeys(("newer", "older"), (timedelta,)),
    **dict.fromkeys(("larger", "smaller"), (int,)),
    "layer": (str, list, tuple),
    "complete": (bool,),
}


@dataclass(frozen=True)
class ArrayFilter:
    """What arrays must have to be found; a field at None leaves them free.

    Parameters
    ----------
    model : str, optional
        ``ZOO:NAME``, with the tag of its weights or without, or a glob over such names.
    layer : str or list of str, optional
        A layer's name, or a glob as in ``featpipe extract --layers``; of several one has to match.
    stimuli : str, optional
        Name of the stimulus set or a glob over names, or its digest (four digits or more).
    reduce : str, optional
        ``none``, ``mean``, ``grid:4`` …
    weights : str, optional
        The label under which weights were asked for, or their digest (four digits or more).
    complete : bool, optional
        Whether all rows are there.
    newer, older : timedelta, optional
        Less, or at least, so long since the last shard was written.
    larger, smaller : int, optional
        At least, or fewer than, so many bytes on disk.
    """

    model: str | None = None
    layer: str | list[str] | tuple[str, ...] | None = None
    stimuli: str | None = None
    reduce: str | None = None
    weights: str | None = None
    complete: bool | None = None
    newer: timedelta | None = None
    older: timedelta | None = None
    larger: int | None = None
    smaller: int | None = None

    def __post_init__(self) -> None:
        for name, kinds in _KINDS.items():
            given = getattr(self, name)
            if given is not None and not isinstance(given, kinds):
                takes = " or ".join(kind.__name__ for kind in kinds)
                raise RequestError(f"find({name}=…) takes {takes}, got {given!r}.")
        if self.reduce is not None:
            Reduction.parse(self.reduce)

    def takes(self, array: CachedArray, now: datetime) -> bool:
        """Whether an array has all that is asked for; what needs no further file is looked at first."""
        return (
            self._takes_spec(array)
            and (self.model is None or _is_model(array, self.model))
            and (self.weights is None or _has_weights(array, self.weights))
            and (self.stimuli is None or _is_set(array, self.stimuli))
            and (self.complete is None or array.complete == self.complete)
            and self._takes_age(array, now)
            and self._takes_size(array)
        )

    def _takes_spec(self, array: CachedArray) -> bool:
        spec = array.spec
        patterns = [self.layer] if isinstance(self.layer, str) else self.layer
        return (
            patterns is None or any(match_names(pattern, [spec.layer_label]) for pattern in patterns)
        ) and (self.reduce is None or spec.reduction == Reduction.parse(self.reduce))

    def _takes_age(self, array: CachedArray, now: datetime) -> bool:
        if self.newer is None and self.older is None:
            return True
        written = last_written(array)
        if written is None:
            return False  # nothing was written yet, so it has no age
        age = now - written
        return (self.newer is None or age < self.newer) and (self.older is None or age >= self.older)

    def _takes_size(self, array: CachedArray) -> bool:
        if self.larger is None and self.smaller is None:
            return True
        size = array.nbytes
        return (self.larger is None or size >= self.larger) and (self.smaller is None or size < self.smaller)


def find_arrays(
    cache: FeatureCache, wanted: ArrayFilter, unreadable: Unreadable | None = None
) -> list[CachedArray]:
    """Open the arrays that have all that is asked for, ordered by model, weights, stimulus set and layer.

    Parameters
    ----------
    cache : FeatureCache
    wanted : ArrayFilter
    unreadable : callable (key, error), optional
        Is told of each array that is damaged or of another format, which is then left out.

    Raises
    ------
    CacheCorrupt, RequestError
        There is such an array and `unreadable` is not given.
    """
    now = datetime.now(UTC)
    found = []
    for key in cache.keys():
        try:
            if not cache.has(key):
                continue  # removed since the keys were listed, or not yet there as a whole
            array = cache.array(key)
            if wanted.takes(array, now):
                found.append((_order(array), array))
        except FeatpipeError as error:
            if unreadable is None:
                raise
            unreadable(key, error)
    return [array for _, array in sorted(found, key=lambda pair: pair[0])]


def array_named(cache: FeatureCache, key: str) -> CachedArray:
    """Open the one array whose key begins so; raises `FeaturesNotCached` or `AmbiguousFeatures`."""
    return cache.array(key_named(cache, key))


def key_named(cache: FeatureCache, key: str) -> str:
    """Return the one key that begins so, whether or not the array can be opened; raises as `array_named`."""
    found = [full for full in cache.keys() if full.startswith(key)]
    if not found:
        raise FeaturesNotCached(f"{cache.root} has no array {key!r}. `featpipe cache ls` lists the keys.")
    if len(found) > 1:
        raise AmbiguousFeatures(f"{len(found)} keys begin with {key!r}: give more digits.")
    return found[0]


def last_written(array: CachedArray) -> datetime | None:
    """When the last shard was written: by its commit record, or else by that file's time; None without one."""
    committed = array.committed
    if not committed:
        return None
    if array.location.remote:  # whose files have no time; shards are mostly written in their order
        return _recorded(array, max(committed))
    times = {shard: os.stat(_commit_path(array, shard)).st_mtime for shard in committed}
    shard = max(times, key=lambda shard: (times[shard], shard))
    return _recorded(array, shard) or datetime.fromtimestamp(times[shard], UTC)


def _commit_path(array: CachedArray, shard: int) -> Path:
    """Return the file of a commit record, in a cache that is a folder."""
    return array.folder / COMMITS / f"{shard}.json"


def _recorded(array: CachedArray, shard: int) -> datetime | None:
    first = shard == min(array.committed)  # whose provenance is mostly at hand
    said = (array.provenance if first else array.commit(shard)["provenance"]).get("written")
    try:
        written = datetime.fromisoformat(said) if isinstance(said, str) else None
    except ValueError:
        return None  # provenance is whatever its writer recorded
    return written if written is None or written.tzinfo else written.replace(tzinfo=UTC)


def _is_model(array: CachedArray, wanted: str) -> bool:
    if is_name(array.spec.model, wanted):
        return True
    if not re.search(r"[*?[]", wanted) and not wanted.startswith((array.spec.model, "local:", "python:")):
        return False  # without a look at its first commit record
    provenance = array.provenance
    names = [
        f"{array.spec.model}{mark}{provenance.get('weights_label')}" for mark in (".", "/")
    ]  # as zoos tag them
    return any(is_name(name, wanted) for name in (*names, str(provenance.get("model_asked", ""))))


def _has_weights(array: CachedArray, wanted: str) -> bool:
    provenance = array.provenance
    labels = (provenance.get("weights_label"), provenance.get("weights_asked"))
    return wanted in labels or begins(array.spec.weights, wanted)


def _is_set(array: CachedArray, wanted: str) -> bool:
    return begins(array.stimuli_digest, wanted) or is_name(array.manifest.name, wanted)


def _order(array: CachedArray) -> tuple[Any, ...]:
    spec, order = array.spec, array.provenance.get("layer_order", 0)
    seen = spec.augmentation, spec.view_seed, spec.view
    layer = order if isinstance(order, int) else 0, spec.layer_label, str(spec.reduction), array.key
    return spec.model, spec.weights, array.stimuli_digest, *seen, *layer
