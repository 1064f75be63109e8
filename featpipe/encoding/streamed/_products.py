"""Inner products of stimuli whose features do not fit in memory, and what ridge makes of them.

Rows are read whole, as a cache stores them: some are held while the others pass by, so that features are read
about ``n_stimuli / (2 · rows held)`` times. Products of two rows are summed in the features' own precision over
a few thousand columns and in float64 over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import joblib
import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.encoding.streamed._rows import StreamedRows, common_row, spans
from featpipe.encoding.streamed._tiles import MOST_PASSING, TileSizes, TileThreads, blas_threads
from featpipe.errors import RequestError
from featpipe.memory import available_memory, memory_sharers

_LEAST_MEMORY = 256 << 20  # bytes
_SHARE = 0.5  # of what is available beside the result
_COLUMNS_SHARE = 0.25  # of what is available, for blocks of columns

Columns = Iterator[tuple[slice, np.ndarray]]


def stimulus_gram(
    blocks: LayerBlocks,
    *,
    center: bool = True,
    memory: int | None = None,
    dtype: Any = np.float32,
    n_jobs: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute ``K[i, j] = (x_i - o)·(x_j - o)`` over all layers, each pair of stimuli once.

    The origin o is near the mean. Centring on the mean m of any weights w of any stimuli, ``Σ w = 1``, needs no
    features: ``(x_i - m)·(x_j - m) = K_ij - (K w)_i - (K w)_j + w'K w``.

    Parameters
    ----------
    blocks : LayerBlocks
    center : bool
        Whether there is an origin to take off; 0 otherwise, and products are those of the features themselves, with
        what all stimuli share in them and that much less precise.
    memory : int, optional
        Bytes of features to hold, in each job. By default as many as the result's, at least 256 MiB, at most half
        of what is available beside it.
    dtype : {float32, float64}
        Precision in which rows are multiplied.
    n_jobs : int, optional
        Strips of the matrix at a time, through joblib. ``joblib.parallel_config("dask")`` uses a cluster, whose
        workers read the cache themselves.

    Returns
    -------
    gram : ndarray of shape (n_stimuli, n_stimuli), float64
    origin : ndarray of shape (n_features,), float64

    Raises
    ------
    RequestError
        A layer holds NaN or infinity, products overflow, or the result does not fit into memory.
    """
    n_stimuli = len(blocks)
    memory = _memory(8 * n_stimuli**2) if memory is None else memory
    origin = common_row(blocks) if center else np.zeros(blocks.shape[1])
    rows = StreamedRows(blocks, origin if center else None, dtype)
    sizes = TileSizes.of(rows, memory, n_stimuli)
    gram = np.empty((n_stimuli, n_stimuli))
    held = list(spans(0, n_stimuli, sizes.held))
    if joblib.effective_n_jobs(n_jobs) == 1:
        with TileThreads(rows, sizes) as threads:
            for some in held:
                threads.fill_strip(gram[some, some.start :], some)
    else:
        tasks = (joblib.delayed(_strip)(rows, memory, some) for some in held)
        for some, strip in zip(held, joblib.Parallel(n_jobs, return_as="generator")(tasks), strict=True):
            gram[some, some.start :] = strip
    _mirror(gram)
    if not np.isfinite(np.trace(gram)):
        raise RequestError("Squares of features overflow float32; divide the features by a constant.")
    return gram, origin


def cross_products(
    blocks: LayerBlocks,
    others: LayerBlocks,
    origin: np.ndarray,
    *,
    memory: int | None = None,
    dtype: Any = np.float32,
) -> np.ndarray:
    """Compute ``(x_i - o)·(z_j - o)`` between two sets of stimuli in the same layers.

    With weights a of the other stimuli that sum to 0, these give predictions of a ridge whose coefficients in
    features would not fit in memory: ``(x - o)·c_t = Σ_j (x - o)·(z_j - o) a_jt``.

    Parameters
    ----------
    blocks, others : LayerBlocks
        New stimuli, and those of `stimulus_gram`.
    origin : ndarray of shape (n_features,)
    memory, dtype
        As in `stimulus_gram`.

    Returns
    -------
    products : ndarray of shape (len(blocks), len(others)), float64

    Raises
    ------
    RequestError
        Other layers, NaN or infinity in one of `blocks`, or a result that does not fit into memory.
    """
    if blocks.widths != others.widths:
        raise RequestError(
            f"Layers have {list(blocks.widths)} features, but those fitted to {list(others.widths)}."
        )
    memory = _memory(8 * len(blocks) * len(others)) if memory is None else memory
    new, old = (StreamedRows(some, origin, dtype) for some in (blocks, others))
    sizes = TileSizes.of(new, memory, len(blocks))
    products = np.empty((len(blocks), len(others)))
    with TileThreads(new, sizes) as threads:
        for some in spans(0, len(new), sizes.held):
            threads.fill_rectangle(products[some], some, old)
    return products


def feature_columns(blocks: LayerBlocks, *, memory: int | None = None) -> Callable[[], Columns]:
    """Return a function that reads all features of all stimuli in blocks of columns, of one layer each.

    Rows are stored whole, so that every block reads its layer: the more memory, the fewer times.

    Parameters
    ----------
    blocks : LayerBlocks
    memory : int, optional
        Bytes of features to hold: a block and the one before it, which the caller still has. By default a quarter of
        what is available when reading begins.

    Returns
    -------
    columns : callable () -> iterator of (slice, ndarray of shape (n_stimuli, width), float32)
        As `GramStatistics.from_stimulus_products` takes it. Raises `RequestError` for NaN or infinity.
    """
    rows = StreamedRows(blocks)

    def columns() -> Columns:
        held = int(_free() * _COLUMNS_SHARE) if memory is None else memory
        width = max(1, held // (8 * max(1, len(blocks))))
        with ThreadPoolExecutor(blas_threads()) as pool:
            for layer, place in enumerate(rows.columns):
                for part in spans(0, place.stop - place.start, width):
                    block = np.empty((len(rows), part.stop - part.start), dtype=np.float32)
                    read = partial(rows.read_columns, layer, part, out=block)
                    for _ in pool.map(read, spans(0, len(rows), MOST_PASSING)):
                        pass  # raises what a thread raised
                    yield slice(place.start + part.start, place.start + part.stop), block
                    del block

    return columns


def linear_predictions(
    blocks: LayerBlocks, coef: np.ndarray, intercept: Any = 0.0, *, memory: int | None = None
) -> np.ndarray:
    """Compute ``x_i·c_t + b_t`` of stimuli whose features do not fit in memory.

    Parameters
    ----------
    blocks : LayerBlocks
    coef : ndarray of shape (n_targets, n_features)
    intercept : float or ndarray of shape (n_targets,)
    memory : int, optional
        Bytes of features to hold.

    Returns
    -------
    predictions : ndarray of shape (n_stimuli, n_targets), in the dtype of `coef`
    """
    if blocks.shape[1] != coef.shape[1]:
        raise RequestError(f"Layers have {blocks.shape[1]} features, but coefficients {coef.shape[1]}.")
    rows = StreamedRows(blocks, dtype=coef.dtype)
    memory = _memory(len(blocks) * coef.itemsize * len(coef)) if memory is None else memory
    tile = rows.buffer(int(np.clip(memory // max(1, rows.row_bytes), 1, max(1, len(rows)))))
    predictions = np.empty((len(blocks), len(coef)), dtype=coef.dtype)
    for some in spans(0, len(rows), len(tile)):
        np.matmul(rows.read(some, tile, check=True), coef.T, out=predictions[some])
    predictions += np.asarray(intercept, dtype=coef.dtype)
    return predictions


def _strip(rows: StreamedRows, memory: int, held: slice) -> np.ndarray:
    """Return ``K[held, held.start:]``, in a process of its own."""
    strip = np.empty((held.stop - held.start, len(rows) - held.start))
    sizes = TileSizes(held.stop - held.start, TileSizes.of(rows, memory, len(rows)).passing, blas_threads())
    with TileThreads(rows, sizes) as threads:
        threads.fill_strip(strip, held)
    return strip


def _mirror(gram: np.ndarray) -> None:
    """Copy what is above the diagonal to below it, in place."""
    for rows in spans(0, len(gram), 512):
        gram[rows, : rows.start] = gram[: rows.start, rows].T
        upper = np.triu(gram[rows, rows])
        gram[rows, rows] = upper + np.triu(upper, 1).T


def _memory(result: int) -> int:
    """Choose the bytes of features to hold beside a result; raises `RequestError` where that does not fit."""
    free = _free()
    if result > free:
        raise RequestError(
            f"Inner products of the stimuli need {result / 1e9:.1f} GB and {max(free, 0) / 1e9:.1f} GB are "
            "available. Take fewer stimuli."
        )
    return min(max(result, _LEAST_MEMORY), int((free - result) * _SHARE))


def _free() -> int:
    return available_memory() // memory_sharers()
