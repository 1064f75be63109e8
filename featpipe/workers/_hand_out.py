"""Tasks given to workers a few at a time, so that none is idle and none has what another could do."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

from featpipe.errors import WorkError
from featpipe.workers._outcome import LOST, PATIENCE, outcome, workers_are_gone

AT_A_TIME = 2  # tasks of a worker: one that it does, and the next
_LOOK = 1.0  # seconds between looks at which workers there are

Arguments = tuple[Any, ...]


def hand_out(
    client: Any, function: Callable[..., Any], tasks: Iterable[Arguments], *, patience: float = PATIENCE
) -> Iterator[tuple[Arguments, Any]]:
    """Run a function on the workers, and yield (arguments, result) as results come.

    A task of a worker that is lost goes to another, and workers may come and go.

    Parameters
    ----------
    client : distributed.Client
    function : callable
        One that workers can import; an error that it returns, or raises, is raised here.
    tasks : iterable of tuple
        Arguments of each call; drawn one by one as workers have room.
    patience : float
        Seconds without any worker until the run is given up.

    Raises
    ------
    WorkError
        There are no workers, or one task was the end of several.
    """
    given = _Given(client, function, tasks)
    seen = time.monotonic()
    try:
        while given.left:
            if given.fill():
                seen = time.monotonic()
            elif time.monotonic() - seen > patience:
                raise workers_are_gone(patience)
            if (finished := given.next(_LOOK)) is not None:
                yield finished
    finally:
        given.cancel()


class _Given:
    """Tasks that wait, and futures of those that workers have."""

    def __init__(self, client: Any, function: Callable[..., Any], tasks: Iterable[Arguments]) -> None:
        self._client, self._function = client, function
        self._tasks = iter(tasks)
        self._more = True
        self._given: dict[Any, tuple[Arguments, str]] = {}  # with the address of the worker
        self._finished: SimpleQueue[Any] = SimpleQueue()

    @property
    def left(self) -> bool:
        """Whether tasks are not drawn, or not finished."""
        return self._more or bool(self._given)

    def fill(self) -> int:
        """Give every worker what it lacks, the first task of each before the second; return how many there are."""
        addresses = _addresses(self._client)
        loads = Counter(address for _, address in self._given.values())
        for depth in range(AT_A_TIME):
            for address in addresses:
                if loads[address] <= depth and (task := self._draw()) is not None:
                    self._give(task, address)
                    loads[address] += 1
        return len(addresses)

    def _draw(self) -> Arguments | None:
        task = next(self._tasks, None) if self._more else None
        self._more = task is not None
        return task

    def _give(self, arguments: Arguments, address: str) -> None:
        key = f"{self._function.__name__}-{uuid4().hex}"
        where = {"workers": [address], "allow_other_workers": True}
        future = self._client.submit(self._function, *arguments, key=key, pure=False, **where)
        self._given[future] = arguments, address
        future.add_done_callback(self._finished.put)

    def next(self, seconds: float) -> tuple[Arguments, Any] | None:
        """Return the next (arguments, result); None if there is none in some seconds."""
        try:
            future = self._finished.get(timeout=seconds)
        except Empty:
            return None
        arguments, _ = self._given.pop(future)
        found = outcome(future)
        if isinstance(found, BaseException):
            raise found
        return arguments, found

    def cancel(self) -> None:
        """Let go of what is not finished."""
        if self._given and self._client.status == "running":
            self._client.cancel(list(self._given), force=True)


def _addresses(client: Any) -> list[str]:
    if client.status != "running":
        raise WorkError(LOST)
    try:
        return list(client.nthreads())
    except (OSError, RuntimeError):  # no answer
        return []
