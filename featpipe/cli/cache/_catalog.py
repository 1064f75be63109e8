"""``featpipe cache catalog``."""

from __future__ import annotations

from typing import Annotated

import typer

from featpipe.cli._console import human_bytes, note, say, say_json
from featpipe.cli._options import Cache, Json
from featpipe.cli.cache._arrays import opened
from featpipe.errors import FeatpipeError


def catalog_command(
    out: Annotated[str, typer.Option("--out", help="The page: one HTML file.")],
    cache: Cache = "cache",
    url: Annotated[
        str | None,
        typer.Option("--url", help="Where readers of the page find the cache; by default where it lies now."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a page to search a cache by: shapes, sizes, provenance, and how to read each array."""
    from featpipe.report import write_catalog

    damaged: dict[str, str] = {}

    def unreadable(key: str, error: FeatpipeError) -> None:
        damaged[key] = str(error)

    page = write_catalog(opened(cache), out, url=url, unreadable=unreadable)
    size = page.stat().st_size
    if as_json:
        say_json({"out": str(page), "bytes": size, "damaged": damaged})
    else:
        say(f"{page}: {human_bytes(size)}")
    for key, what in damaged.items():
        note(f"featpipe: array {key} is left out: {what}")
    if damaged:
        raise typer.Exit(1)
