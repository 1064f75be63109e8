"""``featpipe cache show``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featpipe.cli._console import human_bytes, printable, say, say_json, showing_progress
from featpipe.cli._options import Cache, Json
from featpipe.cli.cache._arrays import one_array, opened, row_of
from featpipe.errors import CacheCorrupt

if TYPE_CHECKING:
    from featpipe.store import CachedArray


def show_command(
    key: Annotated[str, typer.Argument(help="Key or its first digits.")],
    cache: Cache = "cache",
    statistics: Annotated[
        bool,
        typer.Option(
            "--statistics/--no-statistics", help="Read all rows for mean, sd, range, zeros, NaN and infinity."
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Show one array: spec, stimuli, who wrote it with which versions, shards, statistics of its values."""
    array = one_array(opened(cache), key)
    shown = _described(array)
    damage: CacheCorrupt | None = None
    try:
        shown["statistics"] = _statistics(array, quiet=as_json) if statistics else None
    except CacheCorrupt as error:
        shown["statistics"], damage = None, error
    if as_json:
        say_json(shown)
    else:
        _say(shown)
    if damage is not None:
        raise damage


def _described(array: CachedArray) -> dict[str, Any]:
    from featpipe.store import origins

    n_rows = sum(len(array.layout.rows_of(shard)) for shard in array.committed)
    raw = n_rows * array.layout.row_bytes
    row = row_of(array)
    return {
        **row,
        "spec": array.spec.to_json(),
        "dims": list(array.dims),
        "codec": array.codec,
        "raw_bytes": raw,
        "stored_ratio": round(row["bytes"] / raw, 4) if raw else None,
        "shard_rows": array.shard_rows,
        "shards": array.layout.n_shards,
        "missing_shards": array.missing,
        "stimulus_set": {
            "name": array.manifest.name,
            "digest": array.stimuli_digest,
            "images": array.n_stimuli,
            "source": array.manifest.source,
        },
        "provenance": array.provenance,
        "origins": [origin.to_json() for origin in origins(array)],
        "path": f"{array.location.url}/{array.base}",
    }


def _statistics(array: CachedArray, *, quiet: bool) -> dict[str, Any]:
    from featpipe.store import array_statistics

    with showing_progress("read", quiet=quiet) as progress:
        return array_statistics(array, progress).to_json()


def _say(shown: dict[str, Any]) -> None:
    from featpipe.store import spans

    missing = spans(shown["missing_shards"]) or "none"
    sizes = {name: human_bytes(shown[name]) for name in ("bytes", "raw_bytes")}
    for name, value in (shown | sizes | {"missing_shards": missing}).items():
        if name == "provenance" or value is None:
            continue  # provenance is that of the first shard, which the origins have too
        if name == "origins":
            _say_origins(value, shown["shards"])
        elif isinstance(value, dict):
            _say_fields(name, value)
        else:
            say(f"{name:<18} {printable(value)}")


def _say_origins(origins: list[dict[str, Any]], n_shards: int) -> None:
    for origin in origins:
        few = {name: value for name, value in origin.items() if value not in ("", 0) or name == "layer_order"}
        _say_fields(f"provenance of {few.pop('shards')} of {n_shards} shards", few)


def _say_fields(name: str, fields: dict[str, Any]) -> None:
    say(f"{name}:")
    for inner, item in fields.items():
        text = ", ".join(f"{k} {v}" for k, v in item.items()) if isinstance(item, dict) else _number(item)
        say(f"  {printable(inner):<16} {printable(text)}")


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else printable(value)
