"""``featpipe cache rm``."""

from __future__ import annotations

from typing import Annotated

import typer

from featpipe.cli._console import human_bytes, say, say_json
from featpipe.cli._options import Cache, Json
from featpipe.cli.cache._arrays import one_array, opened, row_of
from featpipe.errors import SpecError


def rm_command(
    keys: Annotated[list[str], typer.Argument(help="Keys or their first digits.")],
    cache: Cache = "cache",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove arrays."""
    store = opened(cache)
    store.location.require_writable()
    arrays = [one_array(store, key) for key in keys]
    if as_json:
        if not yes:
            raise SpecError("--json asks no questions: say --yes as well.")
        rows = [row_of(array) for array in arrays]
        store.remove([array.key for array in arrays])
        say_json({"cache": cache, "removed": rows})
        return
    for array in arrays:
        row = row_of(array)
        view = f" view {row['view']}" if row["view"] else ""
        say(f"{row['key']} {row['model']} {row['layer']}:{row['reduce']}{view} {human_bytes(row['bytes'])}")
    if not yes:
        typer.confirm(f"Remove {len(arrays)} arrays?", abort=True)
    store.remove([array.key for array in arrays])
