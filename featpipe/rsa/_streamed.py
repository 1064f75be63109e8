"""RDMs of cached layers that are larger than memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.memory import available_memory, memory_sharers
from featpipe.rsa._distances import METRICS, MOST_HELD, MOST_STREAMED, adopt, finisher, result_dtype
from featpipe.rsa._rdms import RDMs
from featpipe.rsa._threads import n_blas_threads
from featpipe.rsa._tiles import PreparedRows, fill_distances, spans

_LEAST_BUFFER = 256 << 20  # bytes; more than the result where that is small
_SHARE = 0.5  # of the available memory that the result and the buffer may take


def feature_rdms(
    blocks: LayerBlocks,
    metric: str = "correlation",
    *,
    joint: bool = False,
    per_feature: bool = False,
    dtype: Any = np.float64,
    buffer: int | None = None,
) -> RDMs:
    """Compute the RDM of every layer, or of all layers side by side, a few rows in memory at a time.

    Needs the memory of the result and a buffer, whatever the size of the layers. Rows of all features are
    read whole: some are held while the others pass by, so that a layer is read about
    ``bytes of the layer / (1.5 · buffer)`` times, once where it fits.

    Parameters
    ----------
    blocks : LayerBlocks
    metric : {"correlation", "cosine", "euclidean", "sqeuclidean"}
        As in `rdm`.
    joint : bool
        One RDM of all layers concatenated, such as 1 − r over all features, instead of one a layer.
    per_feature : bool
        As in `rdm`.
    dtype : {float64, float32}
        Of the result.
    buffer : int, optional
        Bytes of features to hold. By default those of the result, at least 256 MiB, at most half of what is
        available after the result.

    Returns
    -------
    RDMs
        Subjects are the layers' labels, or one named after all layers. A pair with a row of no variance
        (correlation) or no length (cosine) is NaN.

    Raises
    ------
    RequestError
        As `rdm` does, or a result that does not fit into memory.
    """
    parts = [range(len(blocks.names))] if joint else [range(at, at + 1) for at in range(len(blocks.names))]
    widths = [sum(blocks.widths[at] for at in part) for part in parts]
    finish = [finisher(metric, (len(blocks), width), per_feature) for width in widths]
    dtype = result_dtype(dtype)
    size = len(parts) * len(blocks) ** 2 * dtype.itemsize
    buffer = _buffer(size) if buffer is None else buffer
    values = np.empty((len(parts), len(blocks), len(blocks)), dtype=dtype)
    for out, part, width, end in zip(values, parts, widths, finish, strict=True):
        sizes = _tile_rows(buffer, width, copies=min(len(part), 2))
        read = _reader(blocks, part, sizes.streamed)
        rows = PreparedRows(read, blocks.ids, np.float32, METRICS[metric].preparation, owned=True)
        fill_distances(out, rows, width, end, held=sizes.held, streamed=sizes.streamed)
    labels = ["+".join(blocks.names)] if joint else list(blocks.names)
    return adopt(values, blocks.ids, labels)


@dataclass(frozen=True)
class _TileRows:
    held: int
    streamed: int


def _tile_rows(buffer: int, width: int, copies: int) -> _TileRows:
    """Share a buffer out: rows that are held, and for each thread rows that pass by, with their copies."""
    fit = buffer // (4 * max(width, 1))
    streamed = fit // (2 * copies * n_blas_threads())
    return _TileRows(min(max(1, fit // 2), MOST_HELD), min(max(1, streamed), MOST_STREAMED))


def _buffer(result: int) -> int:
    """Choose the bytes of features to hold beside a result; raises `RequestError` where that does not fit."""
    free = available_memory() // memory_sharers()
    if result > free:
        raise RequestError(
            f"The RDMs need {result / 1e9:.1f} GB and {max(free, 0) / 1e9:.1f} GB are available. Take fewer stimuli or "
            "layers, or dtype='float32'."
        )
    return min(max(result, _LEAST_BUFFER), int((free - result) * _SHARE))


def _reader(blocks: LayerBlocks, layers: range, piece: int) -> Callable[[slice], np.ndarray]:
    """Return a function that reads rows of some layers side by side, a piece of the rows at a time."""
    stops = np.cumsum([blocks.widths[layer] for layer in layers])
    columns = [
        slice(int(stop) - blocks.widths[layer], int(stop)) for layer, stop in zip(layers, stops, strict=True)
    ]

    def read(rows: slice) -> np.ndarray:
        if len(layers) == 1 and rows.stop - rows.start <= piece:  # no copy
            values = blocks.stream(layers[0], rows).reshape(rows.stop - rows.start, -1)
            return np.require(values, np.float32, ["C", "W"])
        values = np.empty((rows.stop - rows.start, stops[-1]), dtype=np.float32)
        for some in spans(rows.start, rows.stop, piece):
            here = values[some.start - rows.start : some.stop - rows.start]
            for layer, place in zip(layers, columns, strict=True):
                here[:, place] = blocks.stream(layer, some).reshape(len(here), -1)
        return values

    return read
