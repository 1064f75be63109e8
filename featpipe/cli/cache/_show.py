"""``featpipe cache show``."""

from __future__ import annotations

from typing import Annotated

import typer

from featpipe.cli._console import printable, say, say_json
from featpipe.cli._options import Cache, Json
from featpipe.cli.cache._arrays import one_array, opened, row_of


def show_command(
    key: Annotated[str, typer.Argument(help="Key or its first digits.")],
    cache: Cache = "cache",
    as_json: Json = False,
) -> None:
    """Show one array: spec, provenance, shards."""
    array = one_array(opened(cache), key)
    shown = {
        **row_of(array),
        "key": array.key,
        "spec": array.spec.to_json(),
        "dims": list(array.dims),
        "codec": array.codec,
        "shard_rows": array.shard_rows,
        "missing_shards": array.missing,
        "provenance": array.provenance,
        "path": f"{array.location.url}/{array.base}",
    }
    if as_json:
        say_json(shown)
        return
    for name, value in shown.items():
        if isinstance(value, dict):
            say(f"{name}:")
            for inner, item in value.items():
                say(f"  {printable(inner):<16} {printable(item)}")
        else:
            say(f"{name:<18} {printable(value)}")
