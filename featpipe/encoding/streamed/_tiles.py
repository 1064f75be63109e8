"""Tiles of a matrix of inner products: rows that are held, times rows that pass by.

Threads share the rows that pass by and multiply each on its own, so that while one reads another multiplies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from featpipe.encoding.streamed._rows import StreamedRows, spans

MOST_PASSING = 256  # rows; more of them do not multiply faster
_PASSING_SHARE = 0.3  # of the memory
_COLUMNS = 2048  # whose products are summed in the features' own precision


@dataclass(frozen=True)
class TileSizes:
    """Rows that are held, rows that pass by in each thread, and how many threads."""

    held: int
    passing: int
    threads: int

    @classmethod
    def of(cls, rows: StreamedRows, memory: int, n_stimuli: int) -> TileSizes:
        threads = blas_threads()
        fit = memory / max(1, rows.row_bytes)
        passing = int(np.clip(fit * _PASSING_SHARE / threads, 1, MOST_PASSING))
        return cls(int(np.clip(fit - threads * passing, 1, max(1, n_stimuli))), passing, threads)


class TileThreads:
    """Threads that read and multiply, each with a buffer of its own; used in a ``with``."""

    def __init__(self, rows: StreamedRows, sizes: TileSizes) -> None:
        self._rows, self._sizes = rows, sizes

    def __enter__(self) -> TileThreads:
        self._tile = self._rows.buffer(self._sizes.held)
        self._buffers: SimpleQueue[np.ndarray] = SimpleQueue()
        for _ in range(self._sizes.threads):
            self._buffers.put(self._rows.buffer(self._sizes.passing))
        self._limit = threadpool_limits(1, user_api="blas")
        self._pool = ThreadPoolExecutor(self._sizes.threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._limit.restore_original_limits()

    def fill_strip(self, out: np.ndarray, held: slice) -> None:
        """Fill ``K[held, held.start:]`` on and above the diagonal: ndarray of shape (n_held, n_rest)."""
        first = held.start == 0  # then all rows pass by, and are looked at once
        tile = self._hold(held, check=first)

        def own(piece: slice) -> None:
            rows = slice(piece.start - held.start, piece.stop - held.start)
            _multiply(tile[: rows.start], tile[rows], out[: rows.start, rows])
            _multiply(tile[rows], tile[rows], out[rows, rows])

        def later(piece: slice) -> None:
            with self._passing(self._rows, piece, check=first) as values:
                _multiply(tile, values, out[:, piece.start - held.start : piece.stop - held.start])

        inside = list(spans(held.start, held.stop, self._sizes.passing))[::-1]  # the longest first
        self._share_out(own, inside)
        self._share_out(later, list(spans(held.stop, len(self._rows), self._sizes.passing)))

    def fill_rectangle(self, out: np.ndarray, held: slice, others: StreamedRows) -> None:
        """Fill products of held rows with all of some others: ndarray of shape (n_held, n_others)."""
        tile = self._hold(held, check=True)

        def place(piece: slice) -> None:
            with self._passing(others, piece, check=False) as values:
                _multiply(tile, values, out[:, piece])

        self._share_out(place, list(spans(0, len(others), self._sizes.passing)))

    def _hold(self, held: slice, *, check: bool) -> np.ndarray:
        def read(piece: slice) -> None:
            self._rows.read(piece, self._tile[piece.start - held.start :], check=check)

        self._share_out(read, list(spans(held.start, held.stop, self._sizes.passing)))
        return self._tile[: held.stop - held.start]

    @contextmanager
    def _passing(self, rows: StreamedRows, piece: slice, *, check: bool) -> Iterator[np.ndarray]:
        buffer = self._buffers.get()
        try:
            yield rows.read(piece, buffer, check=check)
        finally:
            self._buffers.put(buffer)

    def _share_out(self, work: Callable[[slice], None], pieces: list[slice]) -> None:
        for _ in self._pool.map(work, pieces):
            pass  # raises what a thread raised


def _multiply(tile: np.ndarray, others: np.ndarray, out: np.ndarray) -> None:
    """Write inner products of rows; of a tile with itself NumPy computes half of them (syrk)."""
    out[:] = 0
    with np.errstate(over="ignore", invalid="ignore"):  # seen in the result
        for columns in spans(0, tile.shape[1], _COLUMNS):
            out += tile[:, columns] @ others[:, columns].T


def blas_threads() -> int:
    """Return how many threads BLAS would use: what the caller allows."""
    pools = threadpool_info()
    return max((pool["num_threads"] for pool in pools if pool["user_api"] == "blas"), default=1)
