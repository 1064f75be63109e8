"""What commands print: tables for people, one JSON object for machines, progress where someone looks."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

OUT = Console(soft_wrap=True)
ERR = Console(stderr=True, soft_wrap=True)
# Control characters, marks that turn text around, and halves of characters, which cannot be written.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def say(text: str) -> None:
    """Print a line for people."""
    OUT.print(_shown(text), markup=False, highlight=False)


def note(text: str) -> None:
    """Print a line beside the result, on stderr."""
    ERR.print(_shown(text), markup=False, highlight=False)


def say_json(value: Any) -> None:
    """Print the one JSON object of a ``--json`` command."""
    text = json.dumps(value, ensure_ascii=False, indent=None, default=str)
    sys.stdout.write(_OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def printable(value: Any) -> str:
    """Return a value of a stranger's making as one line of text that a terminal shows and does not obey."""
    return _OBEYED.sub(_escaped, str(value))


def _shown(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def show_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """Print a table; columns named in `right` are aligned to the right.

    Cells are never cut: in a narrow terminal lines go on in the next, so that keys and names can be copied.
    """
    lines = [list(columns), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, cells)) for cells in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        padded = [
            " " * (width - cell_len(cell)) + cell if column in right else set_cell_size(cell, width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        ]
        style = "bold" if number == 0 else None
        OUT.print("  ".join(padded).rstrip(), style=style, markup=False, highlight=False)


@contextmanager
def showing_progress(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, total) that draws a bar with throughput on stderr, if that is a terminal."""
    if quiet or not ERR.is_terminal:
        yield lambda done, total: None
        return
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=ERR, transient=True) as bar:
        task = bar.add_task(what, total=None, rate="")

        def update(done: int, total: int) -> None:
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate=f"{speed:.0f}/s" if speed else "")

        yield update


def human_bytes(count: float) -> str:
    """Return a number of bytes as a person reads it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def human_seconds(seconds: float) -> str:
    """Return a duration as a person reads it."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
