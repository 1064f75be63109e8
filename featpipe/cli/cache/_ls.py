"""``featpipe cache ls``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featpipe.cli._console import human_bytes, say, say_json, show_table
from featpipe.cli._options import Cache, Json
from featpipe.cli.cache._arrays import WORDS, opened, row_of

if TYPE_CHECKING:
    from featpipe.store import CachedArray


def ls_command(
    cache: Cache = "cache",
    model: Annotated[str | None, typer.Option("--model", help="Only this model.")] = None,
    layer: Annotated[str | None, typer.Option("--layer", help="Only layers that match this glob.")] = None,
    as_json: Json = False,
) -> None:
    """List the arrays of a cache."""
    from featpipe.spec import match_names

    arrays = [
        a
        for a in opened(cache).arrays()
        if (model is None or a.spec.model == model)
        and (layer is None or match_names(layer, [a.spec.layer_label]))
    ]
    rows = [row_of(array) for array in sorted(arrays, key=_order)]
    if as_json:
        say_json({"cache": cache, "arrays": rows})
        return
    views = ["view"] if any(row["view"] for row in rows) else []
    show_table(
        ["key", *WORDS, *views, "shape", "dtype", "stimuli", "rows", "on disk"],
        [_cells(row, views) for row in rows],
        right=["rows", "on disk"],
    )
    say(f"{len(rows)} arrays, {human_bytes(sum(row['bytes'] for row in rows))}")


def _order(array: CachedArray) -> tuple[Any, ...]:
    spec, order = array.spec, array.provenance.get("layer_order", 0)
    seen = spec.augmentation, spec.view_seed, spec.view
    return spec.model, spec.weights, array.stimuli_digest, *seen, order


def _cells(row: dict[str, Any], views: list[str]) -> list[str]:
    rows = str(row["rows"]) if row["complete"] else f"{row['rows']} (incomplete)"
    shape = "×".join(map(str, row["shape"]))
    words = [str(row[name]) for name in (*WORDS, *views)]
    return [row["key"][:12], *words, shape, row["dtype"], row["stimuli"], rows, human_bytes(row["bytes"])]
