"""What a tuner gives to the next step: a matrix, or layers that say which stimuli they were not made for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.errors import StimulusNotCached
from featpipe.reduce import dims
from featpipe.spec import Reduction, digest_of

Layers = list[tuple[str, np.ndarray]]  # name, (n_stimuli, *row)


def as_matrix(layers: Layers) -> np.ndarray:
    """Return layers flattened and side by side, (n_stimuli, n_features)."""
    return np.concatenate([rows.reshape(len(rows), -1) for _, rows in layers], axis=1)


def as_blocks(ids: np.ndarray, layers: Layers, held_out: np.ndarray | None = None) -> LayerBlocks:
    """Return layers in memory as `LayerBlocks`.

    Parameters
    ----------
    ids : ndarray of str, shape (n_stimuli,)
    layers : list of (str, ndarray of shape (n_stimuli, *row))
    held_out : ndarray of str, optional
        See `LayerBlocks`.
    """
    return LayerBlocks(
        ids,
        names=[name for name, _ in layers],
        shapes=[rows.shape[1:] for _, rows in layers],
        dims=[dims(Reduction("none"), rows.ndim) for _, rows in layers],
        digests=[digest_of(["tuned", name, _digest(ids, rows)]) for name, rows in layers],
        read=_RowsById(ids, [rows for _, rows in layers]).read,
        held_out=held_out,
    )


class _RowsById:
    """What reads rows of layers in memory by id; of a class, so that it travels to workers."""

    def __init__(self, ids: np.ndarray, layers: Sequence[np.ndarray]) -> None:
        self._places = {name: row for row, name in enumerate(ids.tolist())}
        self._layers = list(layers)

    def read(self, layer: int, ids: np.ndarray) -> np.ndarray:
        names = np.asarray(ids).tolist()
        if missing := [name for name in names if name not in self._places]:
            raise StimulusNotCached(
                f"{len(missing)} of {len(names)} stimuli have no row in these tuned features, first {missing[0]!r}: "
                "they hold those that were asked for. Transform the stimuli."
            )
        return self._layers[layer][[self._places[name] for name in names]]


def _digest(ids: np.ndarray, rows: np.ndarray) -> str:
    digest = hashlib.sha256("\0".join(ids.tolist()).encode())
    digest.update(np.ascontiguousarray(rows).data)
    return digest.hexdigest()
