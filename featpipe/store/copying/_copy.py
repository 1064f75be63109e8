"""Copying one array from cache to cache: data first, what makes it count last, nothing overwritten."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from featpipe.errors import CacheCorrupt, CacheUnreachable, CacheWriteError, FeatpipeError, RequestError
from featpipe.spec import canonical_json
from featpipe.stimuli import StimulusManifest
from featpipe.store._array import CachedArray
from featpipe.store._commits import commit_name
from featpipe.store._layout import ArrayLayout
from featpipe.store._shard import check_shard
from featpipe.store._static import FEATURES_METADATA, SPEC, static_files
from featpipe.store._writer import ADOPTED, ArrayWriter, seal_array
from featpipe.store.location import Location

STOPS = (CacheUnreachable, CacheWriteError)  # what would fail for every other shard as well
_LARGEST_OBJECT = 5 << 30  # bytes that object stores take at once
_ATTEMPTS = 5
_MOVED, _THERE, _KEPT = "moved", "there", "kept"
Record = dict[str, Any]


class Stopped(Exception):
    """The transfer ends, so this shard is left."""


class Budget:
    """Bytes that may be in memory at once; a file larger than all of it has it for itself.

    Parameters
    ----------
    most : int
    """

    def __init__(self, most: int) -> None:
        self._most = self._left = most
        self._changed = threading.Condition()

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Wait until so many bytes are free, and give them back at the end."""
        need = min(size, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= need)
            self._left -= need
        try:
            yield
        finally:
            with self._changed:
                self._left += need
                self._changed.notify_all()


@dataclass
class Copied:
    """What became of one array.

    Parameters
    ----------
    moved, there, kept : int
        Shards that were copied; that were there already; and that are there with other bytes, such as
        another machine computed, and stay.
    size : int
        Bytes of the shards that were copied.
    problems : list of str
        What was not copied, and why.
    """

    moved: int = 0
    there: int = 0
    kept: int = 0
    size: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ArrayCopy:
    """One array on its way.

    Parameters
    ----------
    source : CachedArray
    target : Location
    manifest : StimulusManifest
        Of its stimulus set, every byte of which was checked.
    budget : Budget
        For shards that have to be in memory as a whole.
    stop : Event
        Set once nothing more is to be copied.
    """

    source: CachedArray
    target: Location
    manifest: StimulusManifest
    budget: Budget
    stop: threading.Event

    def run(self, pool: Executor, moved: Callable[[int], None]) -> Copied:
        """Copy what the target lacks.

        Parameters
        ----------
        pool : Executor
            Copies shards side by side.
        moved : callable (bytes)
            Hears of each shard that was copied.

        Raises
        ------
        CacheUnreachable, CacheWriteError
            Nothing can be read or written any more.
        CacheCorrupt
            The target has a different array under this key, or the source one that is damaged as a whole.
        """
        visible = self.target.has_array(self.source.base)
        fresh = not visible and self._publish_static()
        if visible:
            self._require_same(FEATURES_METADATA)
        committed = frozenset() if fresh else self._there.committed
        wanted = sorted(self.source.committed)
        lacking = not committed.issuperset(wanted)
        if visible and lacking:
            self._require_all_same()
        futures = {s: pool.submit(self._shard, s, is_committed=s in committed, fresh=fresh) for s in wanted}
        copied, records = _collected(futures, moved)
        if lacking or not visible or not self.target.remote:
            seal_array(self._there, records)
        if not visible and self.target.remote:
            self._publish(SPEC)
        return copied

    @cached_property
    def _files(self) -> dict[str, bytes]:
        return static_files(self.source.spec, self.source.layout, self.manifest)

    @cached_property
    def _static(self) -> dict[str, str]:
        return {name: hashlib.sha256(content).hexdigest() for name, content in self._files.items()}

    @cached_property
    def _there(self) -> CachedArray:
        """The array at the target, which cannot be opened as long as its ``spec.json`` is not there."""
        return replace(self.source, location=self.target, _stimuli=lambda _: self.manifest)

    def _publish_static(self) -> bool:
        """Publish the files that never change, but the one that makes the array visible; tell if none was there."""
        if not self.target.remote:
            if self.target.create_folder(self.source.base, self._files, last=SPEC):
                return True
            self._require_all_same()
            return False
        published = [self._publish(name) for name in self._files if name != SPEC]
        return all(published)

    def _publish(self, name: str) -> bool:
        if self.target.create(f"{self.source.base}/{name}", [self._files[name]]):
            return True
        self._require_same(name)
        return False

    def _require_all_same(self) -> None:
        for name in self._files:
            self._require_same(name)

    def _require_same(self, name: str) -> None:
        place = f"{self.source.base}/{name}"
        try:
            found = self.target.read(place, len(self._files[name]))
        except FileNotFoundError:
            found = None
        if found != self._files[name]:
            raise self._different(
                f"{self.target.url}/{place} {'is not there' if found is None else 'differs'}"
            )

    def _different(self, what: str) -> CacheCorrupt:
        return CacheCorrupt(
            f"{self.target.url} has a different array under the key {self.source.key} "
            f"({self.source.spec.layer_label}): {what}. It stays as it is. `featpipe cache verify` there says whether "
            "it is damaged; `featpipe cache rm` removes it."
        )

    def _shard(self, shard: int, *, is_committed: bool, fresh: bool) -> tuple[str, Record]:
        """Copy one shard; return what became of it, and the commit record that the target has for it."""
        if self.stop.is_set():
            raise Stopped
        record = self.source.commit(shard)
        if record["static"] != self._static:
            raise self._damaged(shard, "its commit record is for other metadata, ids or image digests")
        if is_committed:
            return self._compared(shard, record)
        if not self.target.remote:
            return self._place(shard, record, fresh)
        if record["size"] > _LARGEST_OBJECT:
            raise RequestError(
                f"{self.source.label(shard)} has {record['size']} bytes, too many for one object."
            )
        with self.budget.of(record["size"]):
            return self._place(shard, record, fresh)

    def _compared(self, shard: int, record: Record) -> tuple[str, Record]:
        there = self._there.commit(shard)
        if there["static"] != self._static:
            raise self._different("its shards were written beside other files")
        return _THERE if there["sha256"] == record["sha256"] else _KEPT, there

    def _place(self, shard: int, record: Record, fresh: bool) -> tuple[str, Record]:
        name = commit_name(self.source.base, shard)
        for _ in range(_ATTEMPTS):
            if not fresh and self.target.exists(self.source.shard_name(shard)):
                if (settled := self._settle(shard, record)) is not None:
                    return settled
            elif self._send(shard, record):
                self.target.create(name, [canonical_json(record)])
                return _MOVED, record
            fresh = False
        raise CacheWriteError(
            f"{self._there.label(shard)} was damaged again at {self.target.url} each of {_ATTEMPTS} times that it "
            "was written. Check the disk, or choose another cache."
        )

    def _settle(self, shard: int, record: Record) -> tuple[str, Record] | None:
        """Commit a shard that is there without a commit record; None where it was damaged, and is moved aside.

        One that is whole but has other bytes may be committed by its writer at any moment, so it has to stay.
        """
        place = self.source.shard_name(shard)
        if self.target.exists(commit_name(self.source.base, shard)):  # by now
            return self._compared(shard, record)
        writer = ArrayWriter(self._there, self._static)
        version = self.target.version(place)
        try:
            if self.target.size(place) == record["size"] and self.target.digest(place) == record["sha256"]:
                self.target.create(commit_name(self.source.base, shard), [canonical_json(record)])
                return _THERE, record
            rows = check_shard(self.target, place, self.source.layout, shard, label=self._there.label)
        except CacheCorrupt:
            writer.clear(shard, version)
            return None
        except FileNotFoundError:
            return None
        writer.publish(shard, rows, ADOPTED)
        return _KEPT, self._there.commit(shard)

    def _send(self, shard: int, record: Record) -> bool:
        """Publish a shard, if its bytes are those that the source committed; tell whether none was there."""
        place, top = self.source.shard_name(shard), f"{self.source.base}/{ArrayLayout.shard_folder(shard)}"
        parts = self._checked(self._parts(shard, record["size"]), shard, record)
        buffers = _joined(parts, record["size"]) if self.target.remote else parts
        return self.target.create_shard(top, place.removeprefix(f"{top}/"), buffers)

    def _checked(
        self, parts: Iterator[bytes | memoryview], shard: int, record: Record
    ) -> Iterator[bytes | memoryview]:
        """Pass parts on; raises at the end, before they are published, unless they are what was committed."""
        digest, left = hashlib.sha256(), record["size"]
        for part in parts:
            if self.stop.is_set():
                raise Stopped
            left -= len(part)
            if left < 0:
                break
            digest.update(part)
            yield part
        if left:
            raise self._damaged(shard, f"it does not have the {record['size']} bytes that were written")
        if digest.hexdigest() != record["sha256"]:
            raise self._damaged(shard, "its bytes are not those that were written")

    def _parts(self, shard: int, size: int) -> Iterator[bytes | memoryview]:
        try:
            yield from self.source.location.stream(self.source.shard_name(shard), size)
        except FileNotFoundError as error:
            raise self._damaged(shard, "its file is gone") from error
        except FeatpipeError:
            raise
        except OSError as error:
            raise self._damaged(shard, f"it cannot be read ({error.strerror or error})") from error

    def _damaged(self, shard: int, what: str) -> CacheCorrupt:
        return CacheCorrupt(
            f"{self.source.label(shard)} is damaged at {self.source.root}: {what}. It was not copied. Run `featpipe "
            "cache verify` there: what is damaged can be computed again."
        )


def _collected(
    futures: Mapping[int, Future[tuple[str, Record]]], moved: Callable[[int], None]
) -> tuple[Copied, dict[int, Record]]:
    """Wait for shards; return what became of them, and the commit records that the target has for them."""
    copied, records = Copied(), {}
    try:
        for shard, future in futures.items():
            try:
                how, records[shard] = future.result()
            except STOPS:
                raise
            except FeatpipeError as error:
                copied.problems += [str(error)] if str(error) not in copied.problems else []
                continue
            setattr(copied, how, getattr(copied, how) + 1)
            if how == _MOVED:
                copied.size += records[shard]["size"]
                moved(records[shard]["size"])
    finally:
        for future in futures.values():
            future.cancel()
    return copied, records


def _joined(parts: Iterator[bytes | memoryview], size: int) -> Iterator[memoryview]:
    """Give parts as one buffer, for places that take a file at once."""
    whole, filled = memoryview(bytearray(size)), 0
    for part in parts:
        whole[filled : filled + len(part)] = part
        filled += len(part)
    yield whole
