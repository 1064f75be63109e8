"""How much memory this process may still take, and what it keeps there."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

_SHARE = 0.4  # of the memory that is available


class HeldInMemory:
    """What a process computes or reads once, the least recently used dropped beyond a limit of bytes.

    Values have ``nbytes``. Folds, candidates and regions ask for the same again and again, and scikit-learn
    clones whatever else could hold it.

    Parameters
    ----------
    limit : int, optional
        Bytes. By default 40 % of the memory that is available when first asked, divided by the number of
        processors in a worker process.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._held: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def limit(self) -> int:
        """Bytes that may be held."""
        if self._limit is None:
            self._limit = int(available_memory() * _SHARE) // memory_sharers()
        return self._limit

    @limit.setter
    def limit(self, value: int) -> None:
        with self._lock:
            self._limit = value
            self._drop()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(value.nbytes for value in self._held.values())

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._held.clear()

    def _drop(self) -> None:
        while self._held and self._limit is not None and self.nbytes > self._limit:
            self._held.popitem(last=False)


def available_memory() -> int:
    """Return the bytes of memory that this process may still take: the system's, or its control group's."""
    system = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        system = int(lines["MemAvailable"].split()[0]) * 1024
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            group = file.read().strip()
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as file:
            used = int(file.read())
    except (OSError, KeyError):
        return system
    return system if group == "max" else min(system, int(group) - used)


def memory_sharers() -> int:
    """Return how many processes share the memory: all processors' worth in a worker, one otherwise."""
    return (os.cpu_count() or 1) if multiprocessing.parent_process() is not None else 1
