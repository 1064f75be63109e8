"""One shard: inner chunks one after the other, then their index (offset, size) and its CRC-32C."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import TracebackType
from typing import Self

import numpy as np

from featpipe.errors import CacheCorrupt
from featpipe.store._aligned import aligned_empty
from featpipe.store._codec import CRC_BYTES, crc32c, decode_chunk, encode_chunk, largest_encoded
from featpipe.store._layout import ArrayLayout
from featpipe.store.location import Location
from featpipe.store.location._location import bytes_of

_ABSENT = np.uint64(2**64 - 1)  # offset and size of a chunk with no rows, behind the last stimulus
_ENTRY = np.dtype("<u8")
_ENCODERS = 2


def encode_shard(rows: np.ndarray, layout: ArrayLayout) -> Iterator[bytes | memoryview]:
    """Encode the rows of one shard as zarr's sharding codec does, byte for byte.

    Done here and not by zarr so that uncompressed rows are written without a copy, and that a chunk is hashed and
    written while those behind it are encoded.

    Parameters
    ----------
    rows : ndarray of shape (n_rows, *row_shape), in the stored dtype
        At most ``shard_rows``; a last chunk that they do not fill is filled with NaN.

    Yields
    ------
    buffer : bytes-like
        The next part of the file's content; a view of `rows` where nothing had to be encoded.
    """
    rows = np.ascontiguousarray(rows)
    chunks = [rows[at : at + layout.chunk_rows] for at in range(0, len(rows), layout.chunk_rows)]
    chunks[-1] = _filled(chunks[-1], layout.chunk_rows)
    # Off the main thread blosc compresses on one thread, so that the same rows give the same bytes.
    sizes = []
    with ThreadPoolExecutor(_ENCODERS) as pool:
        for encoded in pool.map(lambda chunk: encode_chunk(chunk, layout.codec), chunks):
            sizes.append(len(encoded))
            yield encoded
    yield _encode_index(tuple(sizes), layout.chunks_per_shard)


def _filled(rows: np.ndarray, n_rows: int) -> np.ndarray:
    if len(rows) == n_rows:
        return rows
    whole = np.full((n_rows, *rows.shape[1:]), np.nan, rows.dtype)
    whole[: len(rows)] = rows
    return whole


@lru_cache(maxsize=16)  # uncompressed, all shards but the last have the same
def _encode_index(sizes: tuple[int, ...], n_entries: int) -> bytes:
    index = np.full((n_entries, 2), _ABSENT, _ENTRY)
    index[: len(sizes), 0] = np.cumsum([0, *sizes[:-1]])
    index[: len(sizes), 1] = sizes
    content = index.tobytes()
    return content + crc32c(content)


class ShardFile:
    """An open shard whose index has been checked; used in a ``with``.

    Parameters
    ----------
    location : Location
    name : str
        The file below the cache's folder.
    layout : ArrayLayout
    shard : int
    label : callable (shard) -> str
        What to call the shard in errors.
    size, sha256 : int and str, optional
        Of the file, where they are known.

    Raises
    ------
    CacheCorrupt
        The file is missing, or its index does not describe it.
    """

    def __init__(
        self,
        location: Location,
        name: str,
        layout: ArrayLayout,
        shard: int,
        *,
        label: Callable[[int], str],
        size: int | None = None,
        sha256: str | None = None,
    ) -> None:
        self._layout, self._shard, self._label = layout, shard, label
        self._n_chunks = -(-len(layout.rows_of(shard)) // layout.chunk_rows)
        try:
            self._file = location.open(name, size, sha256)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self.corrupt("its file is gone") from error
        if self._file.size > self._largest_size():
            self._file.__exit__(None, None, None)
            raise self.corrupt("its file is larger than its rows can be")

    def _largest_size(self) -> int:
        """Return a bound on the size of the file, which somebody else may have recorded."""
        chunk_bytes = self._layout.chunk_bytes
        chunk = chunk_bytes if self._layout.codec == "none" else largest_encoded(chunk_bytes)
        return self._n_chunks * chunk + self._layout.chunks_per_shard * 2 * _ENTRY.itemsize + CRC_BYTES

    def __enter__(self) -> Self:
        self._file.__enter__()
        try:
            self.offsets, self.sizes = self._checked_index()
        except FileNotFoundError as error:  # a remote file is looked for when it is read
            raise self.corrupt("its file is gone") from error
        except BaseException:
            self._file.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def corrupt(self, what: str) -> CacheCorrupt:
        """Return the error that says what is wrong with this shard."""
        return CacheCorrupt(
            f"{self._label(self._shard)} is damaged: {what}. Run `featpipe cache verify` to see which rows are; "
            "they can be computed again from the images."
        )

    def read_chunk(self, chunk: int, out: np.ndarray) -> None:
        """Read and decode one whole inner chunk into a C-contiguous array of its size."""
        if self._layout.codec == "none":
            self._read_bytes(self.offsets[chunk], out)
            return
        stored = self._file.read_at(self.sizes[chunk], self.offsets[chunk])
        try:
            decode_chunk(stored, out, self._layout.codec)
        except ValueError as error:
            raise self.corrupt(f"chunk {chunk}: {error}") from error

    def read_rows(self, first: int, out: np.ndarray) -> None:
        """Read consecutive rows of an uncompressed shard, from row `first` of it on, into `out`."""
        self._read_bytes(first * self._layout.row_bytes, out)

    def _read_bytes(self, offset: int, out: np.ndarray) -> None:
        """Fill a C-contiguous array with the file's bytes from `offset` on."""
        wanted = bytes_of(out)
        if self._file.read_into(wanted, offset) < len(wanted):
            raise self.corrupt("its file is shorter than its index says")

    def fetch_into(self, out: np.ndarray) -> bool:
        """Fetch all of an uncompressed file, its rows straight into `out`; False where that is no gain."""
        try:
            return self._file.fetch_into(bytes_of(out))
        except FileNotFoundError as error:
            raise self.corrupt("its file is gone") from error

    def fetch_all(self) -> None:
        """Hear that all of the file will be read: a remote one comes in one request, index included."""
        self.prepare([(0, self._file.size)])

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._file.size

    @property
    def index_span(self) -> tuple[int, int]:
        """The bytes (start, stop) of the index."""
        n_bytes = self._layout.chunks_per_shard * 2 * _ENTRY.itemsize + CRC_BYTES
        return max(0, self._file.size - n_bytes), self._file.size

    def prepare(self, spans: Sequence[tuple[int, int]]) -> None:
        """Hear which bytes (start, stop) will be read next."""
        try:
            self._file.prepare(spans)
        except FileNotFoundError as error:
            raise self.corrupt("its file is gone") from error

    def span_of_chunk(self, chunk: int) -> tuple[int, int]:
        """Return the bytes (start, stop) of a chunk."""
        return self.offsets[chunk], self.offsets[chunk] + self.sizes[chunk]

    def _checked_index(self) -> tuple[list[int], list[int]]:
        """Read the index: chunks lie one behind the other from 0 on and fill the file up to the index."""
        n_entries = self._layout.chunks_per_shard
        index_bytes = n_entries * 2 * _ENTRY.itemsize
        start = self._file.size - index_bytes - CRC_BYTES
        if start < 0:
            raise self.corrupt("its file is shorter than an index")
        content = self._file.read_at(index_bytes + CRC_BYTES, start)
        if self._layout.codec == "none":
            sizes = [self._layout.chunk_bytes] * self._n_chunks
            if sum(sizes) == start and content == _encode_index(tuple(sizes), n_entries):
                return list(range(0, start, self._layout.chunk_bytes)), sizes
        packed = content[:index_bytes]
        if crc32c(packed) != content[index_bytes:]:
            raise self.corrupt("its index does not match its checksum")
        index = np.frombuffer(packed, _ENTRY).reshape(n_entries, 2)
        sizes = index[: self._n_chunks, 1].tolist()
        # Everything follows from the sizes, so an index that was made up passes only if it is right.
        if not all(map(self._is_size, sizes)) or sum(sizes) != start:
            raise self.corrupt("the sizes in its index do not add up to its file")
        if content != _encode_index(tuple(sizes), n_entries):
            raise self.corrupt("the offsets in its index are not those of its chunks")
        return index[: self._n_chunks, 0].tolist(), sizes

    def _is_size(self, size: int) -> bool:
        if self._layout.codec == "none":
            return size == self._layout.chunk_bytes
        return CRC_BYTES < size <= largest_encoded(self._layout.chunk_bytes)


def check_shard(
    location: Location, name: str, layout: ArrayLayout, shard: int, *, label: Callable[[int], str]
) -> np.ndarray:
    """Decode a whole shard: ndarray of shape (n_rows, *row_shape). Raises `CacheCorrupt`."""
    n_rows = len(layout.rows_of(shard))
    n_chunks = -(-n_rows // layout.chunk_rows)
    whole = aligned_empty((n_chunks * layout.chunk_rows, *layout.row_shape), layout.numpy_dtype)
    with ShardFile(location, name, layout, shard, label=label) as file:
        for chunk in range(n_chunks):
            first = chunk * layout.chunk_rows
            file.read_chunk(chunk, whole[first : first + layout.chunk_rows])
    return whole[:n_rows]
