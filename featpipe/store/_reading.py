"""Rows of an array into memory: only the chunks that are needed, straight into the result where they fit."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from featpipe.errors import RequestError
from featpipe.store._aligned import aligned_empty
from featpipe.store._layout import ArrayLayout
from featpipe.store._shard import ShardFile
from featpipe.store.location._ranges import GAP

_SMALL_READ = 4 << 20  # bytes; below it threads cost more than they save
_LARGE_ROW = 256 << 10  # bytes; from it on a read per row beats a read of all between them and a copy
_FAR = 512 << 10  # bytes from row to row; as far apart, a read per row pays off at any size
_PLAIN_UNIT = 8 << 20  # bytes; uncompressed rows are read so many at a time
_PIECES_PER_THREAD = 4  # so that threads end at about the same time
MOST_THREADS = 4
_REMOTE_PIECE = 16 << 20  # bytes that one thread fetches at a time
_WHOLE_FILE = 64 << 20  # bytes; a file up to this size is fetched whole where half of it is wanted
_HELD = 1 << 29  # bytes under way at a time


@dataclass(frozen=True, slots=True)
class Request:
    """Rows wanted from one unit of a shard: an inner chunk, or several where they are not compressed.

    Parameters
    ----------
    shard, unit : int
        The unit's number is that within its shard.
    rows : ndarray of shape (n_rows,)
        Ascending rows within the unit, with repeats.
    places : ndarray of shape (n_rows,)
        Where each goes in the result.
    straight : bool
        Whether rows and places both count up by one, so that no copy is needed.
    """

    shard: int
    unit: int
    rows: np.ndarray
    places: np.ndarray
    straight: bool


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
        try:
            return aligned_empty(shape, dtype)
        except (MemoryError, ValueError) as error:  # ValueError: more bytes than can be counted
            gigabytes = math.prod(shape) * dtype.itemsize / 1e9
            raise RequestError(
                f"{shape[0]} rows of {dtype} of shape {shape[1:]} are {gigabytes:.3g} GB, for which there is no "
                "memory. Read fewer rows at a time."
            ) from error
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous or not out.flags.writeable:
        raise RequestError(
            f"`out` must be a writeable, C-contiguous {dtype} array of shape {shape}, got {out.dtype} of "
            f"shape {out.shape}."
        )
    return out


def unit_rows(layout: ArrayLayout) -> int:
    """Return how many rows are read at once: a chunk, or uncompressed some chunks of up to 8 MiB."""
    if layout.codec != "none":
        return layout.chunk_rows
    per_shard = layout.chunks_per_shard
    most = max(1, _PLAIN_UNIT // layout.chunk_bytes)
    chunks = max(n for n in range(1, per_shard + 1) if per_shard % n == 0 and n <= most)
    return chunks * layout.chunk_rows


def requests_of(rows: np.ndarray, layout: ArrayLayout) -> list[Request]:
    """Group wanted rows by the unit that holds them, in the order on disk."""
    if not rows.size:
        return []
    size = unit_rows(layout)
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    units = ascending // size  # counted through the whole array: units never cross shards
    starts = np.flatnonzero(np.diff(units, prepend=-1))
    stops = np.append(starts[1:], len(rows))
    within = ascending - units * size
    breaks = np.cumsum((np.diff(ascending, prepend=0) != 1) | (np.diff(order, prepend=0) != 1))
    straight = breaks[starts] == breaks[stops - 1]
    per_shard = layout.shard_rows // size
    return [
        Request(unit // per_shard, unit % per_shard, within[start:stop], order[start:stop], alone)
        for unit, start, stop, alone in zip(
            units[starts].tolist(), starts.tolist(), stops.tolist(), straight.tolist(), strict=True
        )
    ]


def read_requests(
    requests: Sequence[Request],
    layout: ArrayLayout,
    open_shard: Callable[[int], ShardFile],
    out: np.ndarray,
    *,
    threads: int,
) -> None:
    """Carry out requests, several at once where there is enough to read."""
    size = unit_rows(layout)

    def read(piece: Sequence[Request]) -> None:
        scratch = aligned_empty((size, *layout.row_shape), out.dtype)
        for shard, some in groupby(piece, key=lambda request: request.shard):
            with open_shard(shard) as file:
                for request in some:
                    _read_unit(file, request, layout, out, scratch)

    unit_bytes = size * layout.row_bytes
    slow_unit = (
        layout.codec != "none" or unit_bytes >= _SMALL_READ
    )  # slower than handing over the interpreter
    if threads == 1 or not slow_unit or len(requests) * unit_bytes <= _SMALL_READ:
        read(requests)
        return
    longest = -(-len(requests) // (_PIECES_PER_THREAD * threads))
    pieces = [requests[at : at + longest] for at in range(0, len(requests), longest)]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(read, pieces):
            pass


def read_remote(
    requests: Sequence[Request],
    layout: ArrayLayout,
    open_shard: Callable[[int], ShardFile],
    out: np.ndarray,
    *,
    threads: int,
    whole: bool = False,
) -> None:
    """Carry out requests on files somewhere else: few requests, each of many bytes, several at once.

    With `whole` files are brought here whole, each by one thread.
    """
    size = unit_rows(layout)

    def read(piece: _Piece) -> None:
        scratch = aligned_empty((size, *layout.row_shape), out.dtype)
        file = open_shard(piece.requests[0].shard)
        target = _straight_target(piece, layout, out)
        if target is not None and file.fetch_into(target):
            with file:  # its index is checked
                return
        if piece.whole:
            file.fetch_all()
        elif layout.codec == "none":  # where rows lie is known, and the index comes along with them
            spans = [span for request in piece.requests for span in _spans(file, request, layout)]
            file.prepare([file.index_span, *spans])
        with file:
            if not piece.whole and layout.codec != "none":
                file.prepare([span for request in piece.requests for span in _spans(file, request, layout)])
            for request in piece.requests:
                _read_unit(file, request, layout, out, scratch)

    pieces = _pieces(requests, layout, whole=whole)
    at_once = max([1, *(piece.n_bytes for piece in pieces)])
    with ThreadPoolExecutor(max(1, min(threads, _HELD // at_once)), thread_name_prefix="fetch") as pool:
        for _ in pool.map(read, pieces):
            pass


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one thread fetches at a time, all of one shard."""

    requests: Sequence[Request]
    whole: bool
    n_bytes: int


def _straight_target(piece: _Piece, layout: ArrayLayout, out: np.ndarray) -> np.ndarray | None:
    """Return where all rows of an uncompressed shard go, one behind the other, if that is what is wanted."""
    first = int(piece.requests[0].places[0])
    n_rows = len(layout.rows_of(piece.requests[0].shard))
    places = [int(request.places[0]) - first for request in piece.requests]
    whole = piece.whole and layout.codec == "none" and sum(len(r.rows) for r in piece.requests) == n_rows
    there = [request.unit * unit_rows(layout) for request in piece.requests]
    straight = all(request.straight for request in piece.requests) and places == there
    return out[first : first + n_rows] if whole and straight else None


def _pieces(requests: Sequence[Request], layout: ArrayLayout, *, whole: bool) -> list[_Piece]:
    pieces = []
    for shard, some in groupby(requests, key=lambda request: request.shard):
        wanted = list(some)
        costs = [_cost(request, layout) for request in wanted]
        n_bytes = len(layout.rows_of(shard)) * layout.row_bytes  # of the file, or more where it is compressed
        if whole or (n_bytes <= _WHOLE_FILE and 2 * sum(costs) >= n_bytes):
            pieces.append(_Piece(wanted, True, 0 if whole else n_bytes))
            continue
        pieces += [_Piece(wanted[start:stop], False, sum(costs[start:stop])) for start, stop in _cuts(costs)]
    return pieces


def _cost(request: Request, layout: ArrayLayout) -> int:
    """Return about how many bytes are fetched for a request, with gaps that no new request is worth."""
    unit = unit_rows(layout) * layout.row_bytes
    if layout.codec != "none":
        return unit
    rows = np.unique(request.rows)
    runs = 1 + int(np.count_nonzero(np.diff(rows) > 1))
    return int(min(unit, len(rows) * layout.row_bytes + runs * GAP))


def _cuts(costs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut a list of costs into runs of about `_REMOTE_PIECE` each."""
    start = total = 0
    for place, cost in enumerate(costs):
        if total and total + cost > _REMOTE_PIECE:
            yield start, place
            start, total = place, 0
        total += cost
    yield start, len(costs)


def _spans(file: ShardFile, request: Request, layout: ArrayLayout) -> list[tuple[int, int]]:
    """Return the bytes that a request will read."""
    if layout.codec != "none":
        return [file.span_of_chunk(request.unit)]
    first = request.unit * unit_rows(layout)
    rows = first + request.rows
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1) if _apart(request, layout) else [rows]
    return [(int(run[0]) * layout.row_bytes, (int(run[-1]) + 1) * layout.row_bytes) for run in runs]


def _read_unit(
    file: ShardFile, request: Request, layout: ArrayLayout, out: np.ndarray, scratch: np.ndarray
) -> None:
    rows, places = request.rows, request.places
    plain = layout.codec == "none"
    start = request.unit * len(scratch)  # of the unit, in rows of the shard
    if request.straight and (plain or len(rows) == layout.chunk_rows):
        target = out[int(places[0]) : int(places[0]) + len(rows)]
        if plain:
            file.read_rows(start + int(rows[0]), target)
        else:
            file.read_chunk(request.unit, target)
    elif plain and _apart(request, layout):
        _read_runs(file, start, request, out)
    elif plain:
        first = int(rows[0])
        file.read_rows(start + first, scratch[first : int(rows[-1]) + 1])
        out[places] = scratch[rows]
    else:
        file.read_chunk(request.unit, scratch)
        out[places] = scratch[rows]


def _apart(request: Request, layout: ArrayLayout) -> bool:
    """Whether rows are read one by one, without what lies between them."""
    span = int(request.rows[-1] - request.rows[0] + 1) * layout.row_bytes
    return layout.row_bytes >= _LARGE_ROW or span > _FAR * len(request.rows)


def _read_runs(file: ShardFile, first: int, request: Request, out: np.ndarray) -> None:
    """Read runs of rows that are neighbours both on disk and in the result."""
    rows, places = request.rows, request.places
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(places) != 1)) + 1
    starts = [0, *breaks.tolist()]
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        place = int(places[start])
        file.read_rows(first + int(rows[start]), out[place : place + stop - start])
