"""Rows of layers that do not fit in memory, read piece by piece into arrays that are used again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError

_COMMON_ROWS = 32  # stimuli whose mean is what all have in common
_READ_BYTES = 1 << 25  # read at once: what a reader holds besides its result


class StreamedRows:
    """All layers of some stimuli side by side, less one row that they have in common.

    Inner products of what is left are not drowned by what all stimuli share, so that float32 is precise enough
    for them.

    Parameters
    ----------
    blocks : LayerBlocks
    origin : ndarray of shape (n_features,), optional
        What is taken off each row.
    dtype : {float32, float64}
        Of the rows, and of products of them.
    """

    def __init__(
        self, blocks: LayerBlocks, origin: np.ndarray | None = None, dtype: Any = np.float32
    ) -> None:
        self.blocks = blocks
        self.origin = None if origin is None else origin.astype(dtype)
        self.dtype = np.dtype(dtype)
        self.columns = list(blocks.slices.values())

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.blocks.shape[1] * self.dtype.itemsize

    def read(self, rows: slice, out: np.ndarray, *, check: bool = False) -> np.ndarray:
        """Read rows into the first of `out`, and return these; with `check` raises `RequestError` for NaN."""
        out = out[: rows.stop - rows.start]
        for some in self._pieces(rows):
            here = out[some.start - rows.start : some.stop - rows.start]
            for layer, columns in enumerate(self.columns):
                values = self._layer(layer, some, check=check)
                if self.origin is None:
                    here[:, columns] = values
                else:
                    np.subtract(values, self.origin[columns], out=here[:, columns])
        return out

    def read_columns(self, layer: int, columns: slice, rows: slice, *, out: np.ndarray) -> None:
        """Read columns of one layer, the origin left on, into some of the rows of `out`."""
        for some in self._pieces(rows):
            out[some] = self._layer(layer, some, check=True)[:, columns]

    def _pieces(self, rows: slice) -> Iterator[slice]:
        step = max(1, _READ_BYTES // max(1, 4 * max(self.blocks.widths)))
        return spans(rows.start, rows.stop, step)

    def _layer(self, layer: int, rows: slice, *, check: bool) -> np.ndarray:
        values = self.blocks.stream(layer, rows).reshape(rows.stop - rows.start, -1)
        if check:
            _check_finite(values, self.blocks.names[layer])
        return values

    def buffer(self, n_rows: int) -> np.ndarray:
        """Return an array to read rows into."""
        return np.empty((n_rows, self.blocks.shape[1]), dtype=self.dtype)


def common_row(blocks: LayerBlocks) -> np.ndarray:
    """Return the mean of a few stimuli from all over: ndarray of shape (n_features,), float64."""
    some = np.unique(np.linspace(0, len(blocks) - 1, _COMMON_ROWS).astype(int))
    means = []
    for layer, name in enumerate(blocks.names):
        values = blocks.stream(layer, some).reshape(len(some), -1)
        _check_finite(values, name)
        means.append(values.mean(axis=0, dtype=np.float64))
    return np.concatenate(means)


def _check_finite(values: np.ndarray, layer: str) -> None:
    if not np.isfinite(values).all():
        raise RequestError(
            f"Layer {layer!r} contains NaN or infinity; finite features are needed. Extract it anew."
        )


def spans(start: int, stop: int, step: int) -> Iterator[slice]:
    """Cut a range into slices of at most `step`."""
    return (slice(at, min(at + step, stop)) for at in range(start, stop, step))
