"""Layers in memory, read once per process."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from featpipe.memory import HeldInMemory
from featpipe.store import CachedArray

_INDICES = 16  # stimulus sets


class ReadCache(HeldInMemory):
    """Whole layers in memory, shared by all estimators of this process."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__(limit)
        self._reading: dict[tuple[str, str], threading.Lock] = {}
        self._indices: OrderedDict[str, dict[str, int]] = OrderedDict()  # by stimulus set

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            super().clear()
            self._indices.clear()

    def rows(self, array: CachedArray, rows: np.ndarray, *, hold: bool = True) -> np.ndarray:
        """Return rows of one array, read as a whole layer where that fits and `hold` asks for it."""
        size = int(np.prod(array.row_shape)) * array.n_stimuli * np.dtype(array.dtype).itemsize
        if not array.complete or size > self.limit or not (hold or self._holds(array)):
            return array.read(rows)
        selected: np.ndarray = self._layer(array)[rows]
        return selected

    def index(self, array: CachedArray) -> dict[str, int]:
        """Return the row of each id; arrays of one stimulus set share it."""
        with self._lock:
            if array.stimuli_digest not in self._indices:
                self._indices[array.stimuli_digest] = {name: row for row, name in enumerate(array.ids)}
                while len(self._indices) > _INDICES:
                    self._indices.popitem(last=False)
            return self._indices[array.stimuli_digest]

    def _holds(self, array: CachedArray) -> bool:
        with self._lock:
            return _name(array) in self._held

    def _layer(self, array: CachedArray) -> np.ndarray:
        name = _name(array)
        with self._lock:
            reading = self._reading.setdefault(name, threading.Lock())
        with reading:  # a second thread waits for the first one's read
            with self._lock:
                if name in self._held:
                    self._held.move_to_end(name)
                    held: np.ndarray = self._held[name]
                    return held
            values: np.ndarray = array.read()
            values.flags.writeable = False
            with self._lock:
                self._held[name] = values
                self._drop()
            return values


def _name(array: CachedArray) -> tuple[str, str]:
    return array.location.identity, array.key


READS = ReadCache()
