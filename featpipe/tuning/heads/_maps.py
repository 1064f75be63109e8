"""Maps of features, (channels, height, width) a stimulus, given to a trunk batch by batch."""

from __future__ import annotations

import numpy as np
import torch

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError

IN_MEMORY = 4 << 30  # bytes of a layer up to which it is read once and kept on the device


class StreamedMaps:
    """A layer too large to keep, read for each batch.

    Parameters
    ----------
    blocks : LayerBlocks of one layer
    device : torch.device
    """

    def __init__(self, blocks: LayerBlocks, device: torch.device) -> None:
        self.blocks, self.device = blocks, device

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        """Read a batch: (n_batch, channels, height, width)."""
        return torch.as_tensor(self.blocks.stream(0, rows.cpu().numpy()), device=self.device)


def maps_of(blocks: LayerBlocks, device: torch.device) -> torch.Tensor | StreamedMaps:
    """Return what gives maps by ``[rows]``: a tensor on the device, or a reader where it would be too large."""
    if 4 * len(blocks) * sum(blocks.widths) > IN_MEMORY:
        return StreamedMaps(blocks, device)
    maps = blocks.block(0)
    if not np.isfinite(maps).all():
        raise RequestError(
            f"Layer {blocks.names[0]!r} contains NaN or infinity; finite features are needed. Extract it anew."
        )
    return torch.as_tensor(maps, device=device)


def map_shape(blocks: LayerBlocks) -> tuple[int, ...] | None:
    """Return (channels, height, width) of `LayerBlocks` that are one map; None of layers that are vectors.

    Raises
    ------
    RequestError
        There are several layers of which one is a map, or axes that are no map.
    """
    if all(len(shape) == 1 for shape in blocks.shapes):
        return None
    if len(blocks.names) > 1 or len(blocks.shapes[0]) != 3:
        raise RequestError(
            f"VertexPositionHead takes vectors, or one layer of shape (channel, height, width); got {blocks!r}. Choose "
            "one layer, or reduce layers to vectors (mean, cls)."
        )
    return blocks.shapes[0]
