"""``featpipe cache export``."""

from __future__ import annotations

from typing import Annotated

import typer

from featpipe.cli._console import human_bytes, say, say_json, showing_progress
from featpipe.cli._options import Cache, Json
from featpipe.cli.cache._arrays import one_array, opened


def export_command(
    key: Annotated[str, typer.Argument(help="Key or its first digits.")],
    cache: Cache = "cache",
    to: Annotated[
        str | None,
        typer.Option("--to", help="npy, h5, netcdf or parquet; by default what the ending of --out says."),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", help="The file; by default named after model, layer and key.")
    ] = None,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Of an incomplete array the rows that are there, with their ids."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write one array with its ids, image digests and spec to a file for other tools."""
    from featpipe.store import export_array

    array = one_array(opened(cache), key)
    with showing_progress("export", quiet=as_json) as progress:
        done = export_array(array, out, to=to, partial=partial, overwrite=overwrite, progress=progress)
    size = done.stat().st_size
    if as_json:
        say_json({"key": array.key, "out": str(done), "bytes": size})
        return
    say(f"{done}: {array.spec.model} {array.spec.layer_label}, {human_bytes(size)}")
