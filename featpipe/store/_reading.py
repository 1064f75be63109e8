"""Rows of an array into memory: only the chunks that are needed, straight into the result where they fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from featpipe.errors import RequestError
from featpipe.store._layout import ArrayLayout
from featpipe.store._shard import ShardFile

_SMALL_READ = 4 << 20  # bytes; below it threads cost more than they save
_DIRECT_ROW = 16 << 10  # bytes; from it on a read per row beats a read of the chunk and a copy
_CHUNKS_AT_ONCE = 4  # a shard is opened once per so many chunks, if that keeps all threads busy
MOST_THREADS = 4


@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """Rows wanted from one inner chunk.

    Parameters
    ----------
    shard, chunk : int
        The chunk's number is that within its shard.
    rows : ndarray of shape (n_rows,)
        Ascending rows within the chunk, with repeats.
    places : ndarray of shape (n_rows,)
        Where each goes in the result.
    """

    shard: int
    chunk: int
    rows: np.ndarray
    places: np.ndarray


def default_threads() -> int:
    """Return how many threads read by default: the processors of this process, at most four."""
    return min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)


def checked_rows(rows: np.ndarray | None, n_stimuli: int) -> np.ndarray:
    """Return rows as int64 of shape (n_rows,); None means all. Raises `RequestError`."""
    if rows is None:
        return np.arange(n_stimuli)
    wanted = np.asarray(rows)
    if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
        raise RequestError(
            f"Rows are a one-dimensional array of integers, got shape {wanted.shape} of {wanted.dtype}."
        )
    wanted = wanted.astype(np.int64)
    if wanted.size and not (wanted.min() >= 0 and wanted.max() < n_stimuli):
        raise RequestError(
            f"Rows lie between 0 and {n_stimuli - 1}, got {int(wanted.min())} to {int(wanted.max())}."
        )
    return wanted


def checked_out(out: np.ndarray | None, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return the array to read into, a new one if none is given. Raises `RequestError`."""
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous or not out.flags.writeable:
        raise RequestError(
            f"`out` must be a writeable, C-contiguous {dtype} array of shape {shape}, got {out.dtype} of "
            f"shape {out.shape}."
        )
    return out


def requests_of(rows: np.ndarray, layout: ArrayLayout) -> list[ChunkRequest]:
    """Group wanted rows by the chunk that holds them, in the order on disk."""
    if not rows.size:
        return []
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    chunks = ascending // layout.chunk_rows  # counted through the whole array: chunks never cross shards
    starts = np.flatnonzero(np.diff(chunks, prepend=-1))
    stops = np.append(starts[1:], len(rows))
    within = ascending - chunks * layout.chunk_rows
    per_shard = layout.chunks_per_shard
    return [
        ChunkRequest(chunk // per_shard, chunk % per_shard, within[start:stop], order[start:stop])
        for chunk, start, stop in zip(chunks[starts].tolist(), starts.tolist(), stops.tolist(), strict=True)
    ]


def read_requests(
    requests: Sequence[ChunkRequest],
    layout: ArrayLayout,
    open_shard: Callable[[int], ShardFile],
    out: np.ndarray,
    *,
    threads: int,
) -> None:
    """Carry out requests, several at once where there is enough to read."""
    pieces = list(_pieces(requests, threads))

    def read(piece: Sequence[ChunkRequest]) -> None:
        scratch = np.empty((layout.chunk_rows, *layout.row_shape), out.dtype)
        with open_shard(piece[0].shard) as file:
            for request in piece:
                _read_chunk(file, request, layout, out, scratch)

    if threads == 1 or len(pieces) == 1 or len(requests) * layout.chunk_bytes <= _SMALL_READ:
        for piece in pieces:
            read(piece)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(read, pieces):
            pass


def _pieces(requests: Sequence[ChunkRequest], threads: int) -> Iterator[Sequence[ChunkRequest]]:
    """Cut requests into runs within one shard, short enough to go round."""
    longest = max(_CHUNKS_AT_ONCE, len(requests) // (4 * threads))
    start = 0
    for stop in range(1, len(requests) + 1):
        full = stop - start == longest
        if stop == len(requests) or full or requests[stop].shard != requests[start].shard:
            yield requests[start:stop]
            start = stop


def _read_chunk(
    file: ShardFile, request: ChunkRequest, layout: ArrayLayout, out: np.ndarray, scratch: np.ndarray
) -> None:
    rows, places = request.rows, request.places
    plain = layout.codec == "none"
    if _consecutive(rows) and _consecutive(places) and (plain or len(rows) == layout.chunk_rows):
        target = out[int(places[0]) : int(places[0]) + len(rows)]
        if plain:
            file.read_rows(request.chunk, int(rows[0]), target)
        else:
            file.read_chunk(request.chunk, target)
    elif plain and layout.row_bytes >= _DIRECT_ROW:
        _read_runs(file, request, out)
    elif plain:
        first = int(rows[0])
        file.read_rows(request.chunk, first, scratch[first : int(rows[-1]) + 1])
        out[places] = scratch[rows]
    else:
        file.read_chunk(request.chunk, scratch)
        out[places] = scratch[rows]


def _read_runs(file: ShardFile, request: ChunkRequest, out: np.ndarray) -> None:
    """Read runs of rows that are neighbours both on disk and in the result."""
    rows, places = request.rows, request.places
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(places) != 1)) + 1
    starts = [0, *breaks.tolist()]
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        place = int(places[start])
        file.read_rows(request.chunk, int(rows[start]), out[place : place + stop - start])


def _consecutive(values: np.ndarray) -> bool:
    return int(values[-1]) - int(values[0]) == len(values) - 1 and bool((np.diff(values) == 1).all())
