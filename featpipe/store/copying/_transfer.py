"""Copying arrays from one cache to another: what moves, then moving it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from featpipe.errors import CacheCorrupt, FeatpipeError, RequestError
from featpipe.stimuli import StimulusManifest
from featpipe.store._array import CachedArray
from featpipe.store._cache import FeatureCache
from featpipe.store._commits import committed_shards
from featpipe.store.copying._copy import STOPS, ArrayCopy, Budget, Copied, Stopped

NEW, GOES_ON, IS_THERE = "new", "goes on", "there"
_ARRAYS_AT_ONCE = 4
_IN_MEMORY = 256 << 20  # bytes of shards on their way to an object store


@dataclass(frozen=True)
class Move:
    """An array that a transfer is about.

    Parameters
    ----------
    array : CachedArray
        At the source.
    state : {"new", "goes on", "there"}
        What the target has of it: nothing, a part, or all that the source has.
    shards : int
        How many the target lacks.
    size : int
        Their bytes.
    """

    array: CachedArray
    state: str
    shards: int
    size: int


def plan_transfer(
    source: FeatureCache, target: FeatureCache, keys: Iterable[str]
) -> tuple[list[Move], dict[str, str]]:
    """Say what a transfer of arrays would move; nothing is written.

    Returns
    -------
    moves : list of Move
        By model, stimulus set and layer.
    problems : dict of str to str
        Arrays that cannot be opened, by key, and why.

    Raises
    ------
    RequestError
        Source and target are the same cache, or the target can only be read.
    CacheUnreachable
        A cache does not answer.
    """
    if source.location.identity == target.location.identity:
        raise RequestError(f"{source.root} would be copied to itself. Name another cache to copy from or to.")
    target.location.require_writable()
    problems: dict[str, str] = {}

    def planned(key: str) -> Move | None:
        try:
            return _move(source.array(key), target) if source.has(key) else None
        except STOPS:
            raise
        except FeatpipeError as error:
            problems[key] = str(error)
            return None

    with ThreadPoolExecutor(max(source.location.threads, target.location.threads)) as pool:
        moves = [move for move in pool.map(planned, keys) if move is not None]
    return sorted(moves, key=lambda move: _order(move.array)), problems


def _order(array: CachedArray) -> tuple[str, str, int, str, str]:
    spec = array.spec
    return spec.model, array.stimuli_digest, spec.view, spec.layer_label, array.key


def _move(array: CachedArray, target: FeatureCache) -> Move:
    there = committed_shards(target.location, array.base, array.layout.n_shards)
    lacking = sorted(array.committed - there)
    visible = target.has(array.key)
    state = IS_THERE if visible and not lacking else GOES_ON if visible or there else NEW
    size = sum(_size(array, shard) for shard in lacking)
    return Move(replace(array), state, len(lacking), size)  # without the commit records that were read for it


def _size(array: CachedArray, shard: int) -> int:
    if array.location.remote:
        return int(array.commit(shard)["size"])
    try:
        return array.location.size(array.shard_name(shard))
    except FileNotFoundError:
        return 0  # said when it is its turn


def transfer(
    source: FeatureCache,
    target: FeatureCache,
    moves: Sequence[Move],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Copied]:
    """Copy arrays that the target lacks or has in part.

    Every shard is checked against its commit record before it is published, and commit records are copied as they
    are. What the target has is never replaced. The transfer can be stopped at any point, and goes on when it is
    called again.

    Parameters
    ----------
    source, target : FeatureCache
    moves : sequence of Move
    progress : callable (bytes done, bytes in all), optional

    Returns
    -------
    copied : dict of str to Copied
        By key. Arrays of which something is damaged have problems; the others are copied all the same.

    Raises
    ------
    CacheUnreachable, CacheWriteError
        Nothing can be read or written any more.
    """
    sets = _Sets(source, target)
    stop, budget = threading.Event(), Budget(_IN_MEMORY)
    count = _Count(sum(move.size for move in moves), progress)
    threads = max(place.location.threads for place in (source, target))

    failed: list[Exception] = []

    def copy(move: Move) -> Copied:
        try:
            manifest = sets.brought(move.array)
            return ArrayCopy(move.array, target.location, manifest, budget, stop).run(shards, count.add)
        except FeatpipeError as error:
            if not isinstance(error, STOPS):
                return Copied(problems=[str(error)])
            failed.append(error)
            stop.set()
            raise

    with ThreadPoolExecutor(threads) as shards, ThreadPoolExecutor(_ARRAYS_AT_ONCE) as arrays:
        futures = {move.array.key: arrays.submit(copy, move) for move in moves}
        try:
            return {key: future.result() for key, future in futures.items()}
        except Stopped:
            raise failed[0] from None
        finally:
            stop.set()
            for future in futures.values():
                future.cancel()


class _Count:
    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._done, self._total, self._progress, self._lock = 0, total, progress, threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self._done += size
            if self._progress is not None:
                self._progress(self._done, self._total)


class _Sets:
    """Stimulus sets, each brought to the target once, before the first array that needs it."""

    def __init__(self, source: FeatureCache, target: FeatureCache) -> None:
        self._source, self._target, self._lock = source, target, threading.Lock()
        self._brought: dict[str, tuple[StimulusManifest, int]] = {}

    def brought(self, array: CachedArray) -> StimulusManifest:
        """Return the checked manifest of an array, which its rows must fit; raises `CacheCorrupt` or `RequestError`."""
        digest = array.stimuli_digest
        with self._lock:
            if digest not in self._brought:
                self._brought[digest] = self._bring(digest)
        manifest, shard_rows = self._brought[digest]
        if (len(manifest), shard_rows) != (array.n_stimuli, array.shard_rows):
            raise CacheCorrupt(
                f"Array {array.key} at {self._source.root} has {array.n_stimuli} rows in shards of {array.shard_rows}, "
                f"its stimulus set {len(manifest)} in shards of {shard_rows}. It was not copied."
            )
        return manifest

    def _bring(self, digest: str) -> tuple[StimulusManifest, int]:
        stored = self._source.checked_stimuli(digest)
        there = self._target.add_stimuli(stored.manifest, shard_rows=stored.shard_rows)
        if there.shard_rows != stored.shard_rows:
            raise RequestError(
                f"The stimulus set {stored.manifest.name!r} ({digest[:8]}) has {there.shard_rows} rows per shard at "
                f"{self._target.root} and {stored.shard_rows} at {self._source.root}, so shards of one do not fit the "
                "other. Copy to another cache, or extract there."
            )
        return stored.manifest, stored.shard_rows
