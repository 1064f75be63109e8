"""An array somewhere else as a zarr store, read through our own requests and with metadata that were checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from featpipe.errors import RequestError
from featpipe.spec import canonical_json
from featpipe.store._array import CachedArray
from featpipe.store._layout import FEATURES, GROUP

_METADATA = "zarr.json"


class ArrayView(Store):
    """The ``features`` of one array, read only.

    Parameters
    ----------
    array : CachedArray
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, array: CachedArray) -> None:
        super().__init__(read_only=True)
        self._array = array

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArrayView) and self._names() == other._names()

    def __hash__(self) -> int:
        return hash(self._names())

    def _names(self) -> tuple[str, str]:
        return self._array.location.identity, self._array.key

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the content of a file, or a part of it; None where there is none."""
        content = await asyncio.to_thread(self._read, key, byte_range)
        return None if content is None else prototype.buffer.from_bytes(content)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return several parts at once."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        return key == _METADATA or key in self._shards()

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse to write."""
        raise RequestError(f"{self._array.location.url} is opened to be read; nothing is written to {key}.")

    async def delete(self, key: str) -> None:
        """Refuse to delete."""
        raise RequestError(f"{self._array.location.url} is opened to be read; {key} is not deleted.")

    async def list(self) -> AsyncIterator[str]:
        """Yield all files."""
        for key in [_METADATA, *self._shards()]:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the files that begin so."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield what is directly in a folder."""
        below = prefix.rstrip("/") + "/" if prefix else ""
        for name in dict.fromkeys(
            [key[len(below) :].partition("/")[0] async for key in self.list_prefix(below)]
        ):
            yield name

    def _shards(self) -> dict[str, int]:
        """Return the number of each committed shard by its file below ``features``."""
        layout, top = self._array.layout, f"{GROUP}/{FEATURES}/"
        return {layout.shard_path(shard).removeprefix(top): shard for shard in sorted(self._array.committed)}

    def _read(self, key: str, part: ByteRequest | None) -> bytes | None:
        if key == _METADATA:
            content = canonical_json(self._array.layout.features_metadata())
            start, stop = _span(part, len(content))
            return content[start:stop]
        shard = self._shards().get(key)
        if shard is None:
            return None
        size = int(self._array.commit(shard)["size"])
        start, stop = _span(part, size)
        with self._array.location.open(self._array.shard_name(shard), size) as file:
            return bytes(file.read_at(stop - start, start))


def _span(part: Any, size: int) -> tuple[int, int]:
    """Return (first byte, behind the last) of what is asked of a file."""
    if isinstance(part, RangeByteRequest):
        return part.start, min(part.end, size)
    if isinstance(part, OffsetByteRequest):
        return part.offset, size
    if isinstance(part, SuffixByteRequest):
        return max(0, size - part.suffix), size
    return 0, size
