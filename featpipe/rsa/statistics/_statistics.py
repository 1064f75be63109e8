"""`ChannelStatistics`: inner products of stimuli per channel, all that a channel mask needs of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.rsa._rdms import stimulus_sets
from featpipe.rsa.statistics._held import STATISTICS, HeldLayer

_PIECE = 64  # pairs at a time, which some thousand channels keep in a processor's cache


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """Inner products and sums over positions, per channel, of the stimuli of one set.

    With ``f_icp`` the value of stimulus i, channel c and position p, ``s_ic = sum_p f_ic`` and ``P_c``
    positions. Products are held centred within stimulus and channel,
    ``K_c[i, j] = sum_p f_icp f_jcp - s_ic s_jc / P_c``, because float32 keeps those exact also where values
    lie far from 0. What is held is shared and never copied until pairs are asked for.

    Parameters
    ----------
    ids : ndarray of str, shape (n_stimuli,)
    layers : tuple of str
        Layer labels.
    layer : ndarray of int, shape (n_channels,)
        Position of each channel's layer in `layers`.
    positions : ndarray of int, shape (n_channels,)
        ``P_c``. Their sum is the number of features D.
    sums : ndarray of shape (n_stimuli, n_channels), float64
        ``s_ic``.
    held : tuple of HeldLayer
        Where the products lie.
    """

    ids: np.ndarray
    layers: tuple[str, ...]
    layer: np.ndarray
    positions: np.ndarray
    sums: np.ndarray
    held: tuple[HeldLayer, ...]

    @property
    def n_stimuli(self) -> int:
        """Number of stimuli."""
        return len(self.ids)

    @property
    def n_channels(self) -> int:
        """Number of channels of all layers."""
        return len(self.layer)

    @property
    def n_features(self) -> int:
        """Number of features of all layers."""
        return int(self.positions.sum())

    @property
    def products(self) -> np.ndarray:
        """``sum_p f_icp f_jcp``, row ``i (i + 1) / 2 + j`` for i >= j: shape (n(n+1)/2, n_channels), float32."""
        return self.pairs(*np.tril_indices(len(self.ids)))

    def pairs(
        self,
        first: np.ndarray,
        second: np.ndarray,
        *,
        shift: float = 0.0,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return products of pairs given by row numbers, any order: (n_pairs, n_channels), float32.

        With a shift those of features less that constant.
        """
        root = np.sqrt(self.positions)
        scaled = (self.sums / root - shift * root).astype(np.float32)
        return self._gathered(np.asarray(first), np.asarray(second), scaled, out)

    def centred_pairs(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return products centred within stimulus and channel, ``K_c``: (n_pairs, n_channels), float32."""
        return self._gathered(np.asarray(first), np.asarray(second))

    def _gathered(
        self,
        first: np.ndarray,
        second: np.ndarray,
        scaled: np.ndarray | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return held products of pairs, plus those of rows of `scaled` (n_stimuli, n_channels)."""
        shape = len(first), self.n_channels
        products = np.empty(shape, dtype=np.float32) if out is None else out
        places = [self._held_rows(held, first, second) for held in self.held]
        stops = np.cumsum([held.sums.shape[1] for held in self.held])
        for start in range(0, len(first), _PIECE):
            piece = slice(start, start + _PIECE)
            for held, place, stop in zip(self.held, places, stops, strict=True):
                products[piece, stop - held.sums.shape[1] : stop] = held.centred[place[piece]]
            if scaled is not None:
                products[piece] += scaled[first[piece]] * scaled[second[piece]]
        return products

    def _held_rows(self, held: HeldLayer, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        rows = np.array([held.row_of[name] for name in self.ids.tolist()], dtype=np.int64)
        high, low = np.maximum(rows[first], rows[second]), np.minimum(rows[first], rows[second])
        return high * (high + 1) // 2 + low

    def take(self, ids: Sequence[str] | np.ndarray) -> ChannelStatistics:
        """Select stimuli by id, in the order given."""
        place = {name: row for row, name in enumerate(self.ids.tolist())}
        wanted = np.asarray(ids, dtype=str)
        if missing := [name for name in wanted.tolist() if name not in place]:
            raise RequestError(
                f"{len(missing)} of {len(wanted)} stimuli have no statistics here, first {missing[0]!r}."
            )
        rows = np.array([place[name] for name in wanted.tolist()], dtype=np.int64)
        return replace(self, ids=wanted, sums=self.sums[rows])


def channel_statistics(
    blocks: LayerBlocks, ids: Sequence[str] | np.ndarray | None = None
) -> ChannelStatistics:
    """Compute the inner products of stimuli per channel, or take them from memory.

    Products depend on features alone, so they are kept in this process by (features, stimulus set), within
    a limit of bytes, and new stimuli are added to them: folds, regions, subjects and hyper-parameters share
    them.

    Parameters
    ----------
    blocks : LayerBlocks
        A channel is the axis named "channel"; without one every value is a channel of one position.
    ids : sequence of str, optional
        Stimuli of one set, all of `blocks` by default; repeats are fine.

    Returns
    -------
    ChannelStatistics

    Raises
    ------
    RequestError
        Stimuli of several sets, or more products than fit in memory.
    """
    names = np.asarray(blocks.ids if ids is None else ids, dtype=str)
    sets = set(stimulus_sets(names).tolist())
    if len(sets) != 1:
        raise RequestError(
            f"Channel statistics are of one stimulus set, and these {len(names)} stimuli are of {len(sets)}; "
            "select the ids of each with stimulus_sets."
        )
    (stimulus_set,) = sets
    held = tuple(
        STATISTICS.layer(blocks, position, stimulus_set, names.tolist())
        for position in range(len(blocks.names))
    )
    widths = [layer.sums.shape[1] for layer in held]
    sums = [layer.sums[[layer.row_of[name] for name in names.tolist()]] for layer in held]
    return ChannelStatistics(
        ids=names,
        layers=blocks.names,
        layer=np.repeat(np.arange(len(held)), widths),
        positions=np.repeat([layer.n_positions for layer in held], widths),
        sums=np.concatenate(sums, axis=1),
        held=held,
    )
