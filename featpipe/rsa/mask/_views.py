"""Statistics of pairs of stimuli in several views: the image with itself, or crops with other crops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.rsa.statistics._statistics import ChannelStatistics, channel_statistics


def chosen_view_pairs(n_views: int, view_pairs: Any, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return which view of the one stimulus meets which of the other; view 0 is the image itself.

    Parameters
    ----------
    n_views : int
        With the image.
    view_pairs : "same" or int
        Every view with itself, or so many pairs of views drawn without repeats.
    rng : Generator

    Raises
    ------
    RequestError
        Anything else, or more pairs than there are.
    """
    if view_pairs == "same":
        return [(view, view) for view in range(n_views)]
    if not isinstance(view_pairs, int | np.integer) or not 0 < view_pairs <= n_views**2:
        raise RequestError(
            f"view_pairs is {view_pairs!r}; it must be 'same', or a number from 1 to {n_views**2}, the pairs of "
            f"{n_views} views (the image counts as one)."
        )
    drawn = np.sort(rng.choice(n_views**2, size=int(view_pairs), replace=False))
    return [divmod(int(number), n_views) for number in drawn]


def view_statistics(
    blocks: LayerBlocks, pairs: list[tuple[int, int]], ids: np.ndarray
) -> Iterator[tuple[ChannelStatistics, int]]:
    """Yield statistics per pair of views, and where the rows of the second view start.

    The statistics of two different views are those of twice as many stimuli, four times as many products.
    """
    views = (blocks, *blocks.views)
    for one, other in pairs:
        if one == other:
            yield channel_statistics(views[one], ids), 0
        else:
            both = _side_by_side(views[one], views[other], ids)
            yield channel_statistics(both), len(ids)


def _side_by_side(one: LayerBlocks, other: LayerBlocks, ids: np.ndarray) -> LayerBlocks:
    """Return the stimuli of one view, then those of another, under names of their own."""
    source = {f"{name}@{end}": (end, name) for end in (0, 1) for name in ids.tolist()}

    def read(layer: int, asked: np.ndarray) -> np.ndarray:
        rows = np.empty((len(asked), *one.shapes[layer]), dtype=np.float32)
        for end, blocks in enumerate((one, other)):
            places = [row for row, name in enumerate(asked.tolist()) if source[name][0] == end]
            if places:
                rows[places] = blocks.read(layer, np.array([source[asked[row]][1] for row in places]))
        return rows

    return LayerBlocks(
        np.array(list(source)),
        names=one.names,
        shapes=one.shapes,
        dims=one.dims,
        digests=[f"{a}+{b}" for a, b in zip(one.digests, other.digests, strict=True)],
        read=read,
    )
