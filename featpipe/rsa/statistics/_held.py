"""Channel statistics in memory, computed once per process and grown by new stimuli."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.memory import HeldInMemory, available_memory
from featpipe.rsa.statistics._gram import as_channels, centred_products, channel_sums

_WITNESSES = 3  # stimuli looked at again before statistics of an earlier call are used
_SAME_SUM = 1e-4  # of the largest: float32 sums in another order


@dataclass(frozen=True, eq=False)
class HeldLayer:
    """Statistics of one layer over stimuli of one set.

    Parameters
    ----------
    row_of : dict of str to int
        Row of each id, in the order they came.
    n_positions : int
    centred : ndarray of shape (n(n+1)/2, n_channels), float32
        Products centred within stimulus and channel, row ``i (i + 1) / 2 + j`` for i >= j.
    sums : ndarray of shape (n, n_channels), float64
    images : dict of str to str, optional
        Digest of the image of each id.
    """

    row_of: dict[str, int]
    n_positions: int
    centred: np.ndarray
    sums: np.ndarray
    images: dict[str, str] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        own = 0 if self.n_positions == 1 else self.centred.nbytes
        return int(own + self.sums.nbytes)


class StatisticsCache(HeldInMemory):
    """Statistics of layers by (features, stimulus set), shared by all fits of this process.

    Its lock is held while computing: another thread waits for the same.
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__(limit)
        self.n_computed = 0

    def holds(self, blocks: LayerBlocks, layer: int, stimulus_set: str, ids: list[str]) -> bool:
        """Return whether statistics of all these stimuli are there without reading features."""
        with self._lock:
            held = self._held.get((blocks.digests[layer], stimulus_set))
            return (
                held is not None and set(ids) <= held.row_of.keys() and _still_true(held, blocks, layer, ids)
            )

    def layer(self, blocks: LayerBlocks, layer: int, stimulus_set: str, ids: list[str]) -> HeldLayer:
        """Return statistics that cover some stimuli of one set, computing what is missing."""
        key = (blocks.digests[layer], stimulus_set)
        with self._lock:
            held = self._held.get(key)
            if held is not None and not _still_true(held, blocks, layer, ids):
                held = None
            new = [name for name in dict.fromkeys(ids) if held is None or name not in held.row_of]
            if held is None or new:
                held = self._computed(held, blocks, layer, new, list(dict.fromkeys(ids)))
            self._held[key] = held
            self._held.move_to_end(key)
            self._drop()
            return held

    def _computed(self, held, blocks, layer, new, asked) -> HeldLayer:
        n_channels = _n_channels(blocks, layer)
        grown = _nbytes(len(new) + (len(held.row_of) if held else 0), n_channels)
        if held is not None and grown > self.limit:  # all that ever came is too much: what is asked for
            held, new = None, asked
        self.n_computed += 1
        return _grown(held, blocks, layer, new)


STATISTICS = StatisticsCache()


def _grown(held: HeldLayer | None, blocks: LayerBlocks, layer: int, new: list[str]) -> HeldLayer:
    """Return statistics with more stimuli: lower triangles only grow at their end."""
    old = list(held.row_of) if held is not None else []
    names = old + new
    _check_size(len(names), blocks, layer)
    rows = as_channels(blocks.read(layer, np.asarray(names)), blocks.dims[layer])
    n_pairs = len(names) * (len(names) + 1) // 2
    if rows.shape[2] == 1:
        centred = np.broadcast_to(np.float32(0), (n_pairs, rows.shape[1]))  # takes no memory
        sums = rows[:, :, 0].astype(np.float64)
    else:
        centred = np.empty((n_pairs, rows.shape[1]), dtype=np.float32)
        start = len(old) * (len(old) + 1) // 2
        sums = centred_products(rows, centred[start:], first=len(old))
        if held is not None:
            centred[:start] = held.centred
            sums = np.concatenate([held.sums, sums])
    row_of = {name: row for row, name in enumerate(names)}
    return HeldLayer(row_of, rows.shape[2], centred, sums, _images(blocks, layer, names))


def _images(blocks: LayerBlocks, layer: int, names: list[str]) -> dict[str, str] | None:
    if blocks.images is None:
        return None
    return dict(zip(names, blocks.images(layer, np.asarray(names)), strict=True))


def _still_true(held: HeldLayer, blocks: LayerBlocks, layer: int, ids: list[str]) -> bool:
    """Return whether what is held is of these stimuli: ids may mean other images in another cache.

    Where it is to grow it must be true of all that is held, which is read again.
    """
    needed = list(ids if held.row_of.keys() >= set(ids) else held.row_of)
    try:
        return _same_images(held, blocks, layer, needed) and _same_sums(held, blocks, layer, needed)
    except LookupError:  # this source knows other stimuli
        return False


def _same_images(held: HeldLayer, blocks: LayerBlocks, layer: int, names: list[str]) -> bool:
    found = _images(blocks, layer, names)
    return held.images is None or found is None or found == {name: held.images[name] for name in names}


def _same_sums(held: HeldLayer, blocks: LayerBlocks, layer: int, names: list[str]) -> bool:
    """Return whether some stimuli still have their sums, as far as images have no digests or digests lie."""
    witnesses = [names[row] for row in np.linspace(0, len(names) - 1, _WITNESSES).round().astype(int)]
    rows = as_channels(blocks.read(layer, np.asarray(witnesses)), blocks.dims[layer])
    sums = channel_sums(rows)
    known = held.sums[[held.row_of[name] for name in witnesses]]
    return sums.shape == known.shape and np.allclose(
        sums, known, rtol=0, atol=_SAME_SUM * np.abs(known).max()
    )


def _n_channels(blocks: LayerBlocks, layer: int) -> int:
    dims, shape = blocks.dims[layer], blocks.shapes[layer]
    return int(shape[dims.index("channel")] if "channel" in dims else np.prod(shape))


def _nbytes(n_stimuli: int, n_channels: int) -> int:
    return 4 * n_channels * n_stimuli * (n_stimuli + 1) // 2


def _check_size(n_stimuli: int, blocks: LayerBlocks, layer: int) -> None:
    products = _nbytes(n_stimuli, _n_channels(blocks, layer))
    features = 4 * n_stimuli * blocks.widths[layer]
    available = available_memory()
    if products + features > available:
        raise RequestError(
            f"Channel statistics of layer {blocks.names[layer]!r} over {n_stimuli} stimuli need "
            f"{products + features} bytes ({products} for {_n_channels(blocks, layer)} channels × pairs, "
            f"{features} for the features), but {available} are available. Use fewer stimuli or layers, or "
            "layers with fewer channels; with views, fewer pairs of views."
        )
