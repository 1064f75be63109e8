"""One BLAS thread for many small products, also where several threads ask for it at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from threadpoolctl import ThreadpoolController


class _OneThread:
    """Limits are the process's: the first one in sets them, the last one out puts back what was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limits: Any = None

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                self._limits = _libraries().limit(limits=1, user_api="blas")
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._limits is not None:
                self._limits.restore_original_limits()


_ONE = _OneThread()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let BLAS use one thread, for products that wait for memory or are too small to share."""
    _ONE.enter()
    try:
        yield
    finally:
        _ONE.leave()


def n_blas_threads() -> int:
    """Return how many threads BLAS would use now: what the caller allows."""
    pools = _libraries().info()
    return max((pool["num_threads"] for pool in pools if pool["user_api"] == "blas"), default=1)


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    """Return what counts and limits the threads of BLAS; to find its libraries takes as long as ranking 100 RDMs."""
    return ThreadpoolController()
