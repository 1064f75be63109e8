"""Progress of a command that goes through several stages, a bar for each drawn once it begins; and of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from featpipe.cli._console import ERR

Update = Callable[[int, int], None]


@contextmanager
def showing_stages(*, quiet: bool = False) -> Iterator[Callable[[str], Update]]:
    """Yield a function that makes the callback (done, total) of a stage; nothing is drawn where nobody looks."""
    if quiet or not ERR.is_terminal:
        yield lambda name: lambda done, total: None
        return
    name = TextColumn("{task.description}")
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=ERR, transient=True) as bars:
        yield lambda name: _stage(bars, name)


def _stage(bars: Progress, name: str) -> Update:
    task = bars.add_task(name, total=None, visible=False)

    def update(done: int, total: int) -> None:
        if not bars.tasks[task].visible:
            bars.reset(task, visible=True)  # its time begins now
        bars.update(task, completed=done, total=total)

    return update


@contextmanager
def showing_bytes(what: str, *, quiet: bool = False) -> Iterator[Update]:
    """Yield a callback (bytes done, bytes in all) that draws a bar; nothing is drawn where nobody looks."""
    if quiet or not ERR.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=ERR, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
