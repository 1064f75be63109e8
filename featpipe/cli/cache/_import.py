"""``featpipe cache import``."""

from __future__ import annotations

from typing import Annotated

import typer

from featpipe.cli._console import say, say_json
from featpipe.cli._options import Cache, Json
from featpipe.cli.cache._arrays import row_of


def import_command(
    file: Annotated[str, typer.Argument(help="FILE.npy, FILE.npz or FILE.h5:DATASET; shape (n_stimuli, …).")],
    name: Annotated[str, typer.Option("--name", help="The array becomes imported:NAME.")],
    ids: Annotated[str, typer.Option("--ids", help="CSV with a column id, one line a row.")],
    cache: Cache = "cache",
    images: Annotated[
        str | None,
        typer.Option("--images", metavar="SOURCE", help="The images behind the ids, for their digests."),
    ] = None,
    store_dtype: Annotated[str, typer.Option("--store-dtype", help="float32 or float16.")] = "float32",
    as_json: Json = False,
) -> None:
    """Bring any array into the cache, keyed by its content."""
    from featpipe.imported import import_array
    from featpipe.stimuli import StimulusSet
    from featpipe.store import FeatureCache

    store = FeatureCache(cache)
    store.location.require_writable()
    stimuli = None if images is None else StimulusSet.from_source(images)
    array = import_array(file, store, name=name, ids=ids, images=stimuli, store_dtype=store_dtype)
    if as_json:
        say_json(row_of(array))
        return
    say(f"{array.spec.model}: {array.n_stimuli} rows of {array.row_shape}, key {array.key}")
