"""A place somewhere else, which is asked again where an answer was cut off."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

from featpipe.store.location._location import Location, T

ATTEMPTS = 5


class PatientLocation(Location):
    """A place that may fail for a moment; `failures` are the errors that it then raises."""

    failures: ClassVar[tuple[type[BaseException], ...]]

    @abstractmethod
    def _pause(self, error: BaseException, attempt: int, began: float) -> None:
        """Wait before the next attempt, or raise where none would help; `began` is by the monotonic clock."""

    @abstractmethod
    def _from(self, name: str, start: int, size: int) -> Iterable[bytes | memoryview]:
        """Yield a file of `size` bytes from `start` on, part by part."""

    def _try(self, work: Callable[[], T]) -> T:
        """Do what may be cut off in the middle, again if need be; a server that keeps still is given up sooner."""
        began = time.monotonic()
        for attempt in range(ATTEMPTS):
            try:
                return work()
            except self.failures as error:
                self._pause(error, attempt, began)
        raise AssertionError("the last attempt returns or raises")

    def stream(self, name: str, size: int) -> Iterator[bytes | memoryview]:
        """See `Location`."""
        start = failed = 0
        began = time.monotonic()
        while start < size:
            try:
                for part in self._from(name, start, size):
                    start, failed, began = start + len(part), 0, time.monotonic()
                    yield part
                return
            except self.failures as error:
                self._pause(error, failed, began)
                failed += 1
