"""A remote file read by ranges: what is wanted next is fetched in few requests, and kept until it was read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from featpipe.errors import CacheCorrupt
from featpipe.store.location._location import StoredFile

GAP = 1 << 20  # bytes; nearer ranges are fetched in one request, with what lies between them
Span = tuple[int, int]  # start, stop


def coalesced(spans: Sequence[Span], gap: int = GAP) -> list[Span]:
    """Join ranges that are nearer than `gap`, in ascending order."""
    joined: list[Span] = []
    for start, stop in sorted(spans):
        if joined and start <= joined[-1][1] + gap:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined


class RangedFile(StoredFile):
    """A file somewhere else.

    Parameters
    ----------
    size : int
    fetch : callable (spans) -> list of bytes-like
        One for each (start, stop), each at its full length or less at the end of the file.
    receive : callable (out) -> bytes-like, optional
        Fill `out` with the beginning of the file, and return the rest of it.
    """

    def __init__(
        self,
        size: int,
        fetch: Callable[[list[Span]], list[Any]],
        receive: Callable[[memoryview], Any] | None = None,
    ) -> None:
        self.size = size
        self._fetch, self._receive = fetch, receive
        self._starts: list[int] = []
        self._held: list[memoryview] = []

    def fetch_into(self, out: memoryview) -> bool:
        """See `StoredFile`."""
        if self._receive is None or len(out) > self.size:
            return False
        self._starts, self._held = [len(out)], [memoryview(self._receive(out))]
        return True

    def prepare(self, spans: Sequence[Span]) -> None:
        """Fetch ranges, and keep them instead of those fetched before."""
        wanted = [(start, min(stop, self.size)) for start, stop in spans if start < min(stop, self.size)]
        if not wanted:
            return
        joined = coalesced(wanted)
        self._starts = [start for start, _ in joined]
        self._held = [memoryview(part) for part in self._fetch(joined)]
        for (start, stop), part in zip(joined, self._held, strict=True):
            if len(part) != stop - start:
                raise CacheCorrupt(
                    f"{stop - start} bytes were asked for, and {len(part)} came: the file is shorter."
                )

    def read_into(self, out: memoryview, offset: int) -> int:
        """See `StoredFile`."""
        part = self.read_at(len(out), offset)
        out[: len(part)] = part
        return len(part)

    def read_at(self, length: int, offset: int) -> bytes | memoryview:
        """See `StoredFile`."""
        length = max(0, min(length, self.size - offset))
        if not length:
            return b""
        if (part := self._found(offset, length)) is None:
            self.prepare([(offset, offset + length)])
            part = self._found(offset, length)
        assert part is not None
        return part

    def _found(self, offset: int, length: int) -> memoryview | None:
        place = bisect_right(self._starts, offset) - 1
        if place < 0:
            return None
        start = offset - self._starts[place]
        part = self._held[place][start : start + length]
        return part if len(part) == length else None
