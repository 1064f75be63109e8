"""``featpipe cache rm``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featpipe.cli._console import human_bytes, say, say_json
from featpipe.cli._options import Cache, Json
from featpipe.cli.cache._arrays import full_key, opened, row_of
from featpipe.errors import CacheCorrupt, SpecError

if TYPE_CHECKING:
    from featpipe.store import FeatureCache


def rm_command(
    keys: Annotated[list[str], typer.Argument(help="Keys or their first digits.")],
    cache: Cache = "cache",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove arrays."""
    store = opened(cache)
    store.location.require_writable()
    rows = [_shown(store, full_key(store, key)) for key in keys]
    chosen = [row["key"] for row in rows]
    if as_json:
        if not yes:
            raise SpecError("--json asks no questions: say --yes as well.")
        store.remove(chosen)
        say_json({"cache": cache, "removed": rows})
        return
    for row in rows:
        say(_line(row))
    if not yes:
        typer.confirm(f"Remove {len(rows)} arrays?", abort=True)
    store.remove(chosen)


def _shown(store: FeatureCache, key: str) -> dict[str, Any]:
    """Return what is shown of an array; one that is damaged can be removed all the same."""
    try:
        return row_of(store.array(key))
    except CacheCorrupt as error:
        return {"key": key, "damaged": str(error)}


def _line(row: dict[str, Any]) -> str:
    if "damaged" in row:
        return f"{row['key']} damaged: {row['damaged']}"
    view = f" view {row['view']}" if row["view"] else ""
    return f"{row['key']} {row['model']} {row['layer']}:{row['reduce']}{view} {human_bytes(row['bytes'])}"
