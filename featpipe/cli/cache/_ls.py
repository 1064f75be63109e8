"""``featpipe cache ls``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featpipe.cli._console import human_bytes, note, say, say_json, show_table
from featpipe.cli._options import Cache, Json
from featpipe.cli.cache._amounts import parse_age, parse_size
from featpipe.cli.cache._arrays import WORDS, opened, row_of
from featpipe.errors import FeatpipeError

if TYPE_CHECKING:
    from featpipe.store import CachedArray


def ls_command(
    cache: Cache = "cache",
    model: Annotated[
        str | None,
        typer.Option("--model", help="Only this model, with or without the tag of its weights; or a glob."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option("--layers", metavar="GLOB", help="Only layers of this name or glob; may be repeated."),
    ] = None,
    stimuli: Annotated[
        str | None,
        typer.Option("--stimuli", help="Only this stimulus set: its name, a glob, or its first digits."),
    ] = None,
    newer: Annotated[
        str | None,
        typer.Option("--newer", metavar="AGE", help="Only what was written in the last 12h, 7d or 2w."),
    ] = None,
    older: Annotated[
        str | None, typer.Option("--older", metavar="AGE", help="Only what was last written so long ago.")
    ] = None,
    larger: Annotated[
        str | None,
        typer.Option("--larger", metavar="SIZE", help="Only arrays of so many bytes, such as 10MB."),
    ] = None,
    smaller: Annotated[
        str | None, typer.Option("--smaller", metavar="SIZE", help="Only arrays of fewer bytes.")
    ] = None,
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Only arrays of which rows are missing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the arrays of a cache; exit code 1 when some are damaged."""
    wanted = {
        "model": model,
        "layer": layers or None,
        "stimuli": stimuli,
        "complete": False if incomplete else None,
        "newer": None if newer is None else parse_age("--newer", newer),
        "older": None if older is None else parse_age("--older", older),
        "larger": None if larger is None else parse_size("--larger", larger),
        "smaller": None if smaller is None else parse_size("--smaller", smaller),
    }
    damaged: dict[str, str] = {}

    def unreadable(key: str, error: FeatpipeError) -> None:
        damaged[key] = str(error)

    rows = _rows(opened(cache).find(unreadable=unreadable, **wanted), damaged)
    if as_json:
        say_json({"cache": cache, "arrays": rows, "damaged": damaged})
    else:
        _show(rows)
    if not rows and any(value is not None for value in wanted.values()):
        note("featpipe: no array has all that was asked for; without options `featpipe cache ls` lists all.")
    for key, what in damaged.items():
        note(f"featpipe: array {key} is left out: {what}")
    if damaged:
        raise typer.Exit(1)


def _rows(arrays: list[CachedArray], damaged: dict[str, str]) -> list[dict[str, Any]]:
    from featpipe.store import last_written

    rows = []
    for array in arrays:
        try:
            written = last_written(array)
            rows.append(row_of(array) | {"written": written and written.isoformat(timespec="seconds")})
        except FeatpipeError as error:
            damaged[array.key] = str(error)
    return rows


def _show(rows: list[dict[str, Any]]) -> None:
    views = ["view"] if any(row["view"] for row in rows) else []
    show_table(
        ["key", *WORDS, *views, "shape", "dtype", "stimuli", "rows", "on disk", "age"],
        [_cells(row, views) for row in rows],
        right=["rows", "on disk", "age"],
    )
    say(f"{len(rows)} arrays, {human_bytes(sum(row['bytes'] for row in rows))}")


def _cells(row: dict[str, Any], views: list[str]) -> list[str]:
    rows = str(row["rows"]) if row["complete"] else f"{row['rows_there']} of {row['rows']}"
    shape = "×".join(map(str, row["shape"]))
    words = [str(row[name]) for name in (*WORDS, *views)]
    size, age = human_bytes(row["bytes"]), _age(row["written"])
    return [row["key"][:12], *words, shape, row["dtype"], row["stimuli"], rows, size, age]


def _age(written: str | None) -> str:
    if written is None:
        return ""
    hours = max(0.0, (datetime.now(UTC) - datetime.fromisoformat(written)).total_seconds()) / 3600
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} d"
