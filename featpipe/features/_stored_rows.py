"""Rows by id, from a cache that every process opens for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featpipe.features._rows import images_of, rows_of
from featpipe.features._settle import arrays_of
from featpipe.spec import FeatureSpec
from featpipe.store import CachedArray, Root, absolute


class StoredRows:
    """The rows of some layers, in whichever stimulus sets of a cache hold them.

    Pickled it names the cache and the features and holds nothing of what was read, so that it travels to workers in
    a few kilobytes.

    Parameters
    ----------
    cache : path, URL or MirroredURL
    specs : sequence of FeatureSpec
        One per layer.
    stimuli : str, optional
        The one stimulus set to look at.
    """

    def __init__(self, cache: Root, specs: Sequence[FeatureSpec], stimuli: str | None) -> None:
        self._cache = absolute(cache)
        self._specs, self._stimuli = list(specs), stimuli
        self._pools = self._open()

    def read(self, layer: int, ids: np.ndarray) -> np.ndarray:
        """Read rows of one layer, and hold the layer in memory for the next reader."""
        return rows_of(ids, self._pools[layer], self._specs[layer])

    def stream(self, layer: int, ids: np.ndarray) -> np.ndarray:
        """Read rows of one layer, and hold nothing."""
        return rows_of(ids, self._pools[layer], self._specs[layer], hold=False)

    def images(self, layer: int, ids: np.ndarray) -> list[str]:
        """Return the digest of the image behind each row."""
        return images_of(ids, self._pools[layer], self._specs[layer])

    def _open(self) -> list[list[CachedArray]]:
        return [arrays_of(self._cache, spec, self._stimuli) for spec in self._specs]

    def __getstate__(self) -> tuple[Any, ...]:
        return self._cache, self._specs, self._stimuli

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._cache, self._specs, self._stimuli = state
        self._pools = self._open()
