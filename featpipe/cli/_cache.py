"""``featpipe cache``: look into a cache, check it, tidy it, bring arrays into it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featpipe.cli._console import human_bytes, note, say, say_json, show_table, showing_progress
from featpipe.cli._options import Cache, Json
from featpipe.errors import AmbiguousFeatures, FeaturesNotCached, SpecError

if TYPE_CHECKING:
    from featpipe.store import CachedArray, FeatureCache

cache_app = typer.Typer(
    help="Look into a cache, check it, tidy it, bring arrays into it.", no_args_is_help=True
)

_WORDS = ("model", "weights", "layer", "reduce")

Keys = Annotated[list[str] | None, typer.Argument(help="Keys or their first digits; all arrays by default.")]


@cache_app.command("ls")
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
        for a in _open(cache).arrays()
        if (model is None or a.spec.model == model)
        and (layer is None or match_names(layer, [a.spec.layer_label]))
    ]
    rows = [_row(array) for array in sorted(arrays, key=_order)]
    if as_json:
        say_json({"cache": cache, "arrays": rows})
        return
    views = ["view"] if any(row["view"] for row in rows) else []
    show_table(
        ["key", *_WORDS, *views, "shape", "dtype", "stimuli", "rows", "on disk"],
        [_cells(row, views) for row in rows],
        right=["rows", "on disk"],
    )
    say(f"{len(rows)} arrays, {human_bytes(sum(row['bytes'] for row in rows))}")


@cache_app.command("show")
def show_command(
    key: Annotated[str, typer.Argument(help="Key or its first digits.")],
    cache: Cache = "cache",
    as_json: Json = False,
) -> None:
    """Show one array: spec, provenance, shards."""
    array = _one(_open(cache), key)
    shown = {
        **_row(array),
        "key": array.key,
        "spec": array.spec.to_json(),
        "dims": list(array.dims),
        "codec": array.codec,
        "shard_rows": array.shard_rows,
        "missing_shards": array.missing,
        "provenance": array.provenance,
        "path": str(array.folder),
    }
    if as_json:
        say_json(shown)
        return
    for name, value in shown.items():
        if isinstance(value, dict):
            say(f"{name}:")
            for inner, item in value.items():
                say(f"  {inner:<16} {item}")
        else:
            say(f"{name:<18} {value}")


@cache_app.command("verify")
def verify_command(
    keys: Keys = None,
    cache: Cache = "cache",
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, help="Read only so many shards of each array, at random.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute every checksum; exit code 1 when a byte is not what was written."""
    store = _open(cache)
    if not store.root.is_dir():
        raise FeaturesNotCached(
            f"There is no folder {cache}, so nothing was checked. Name the cache with --cache."
        )
    chosen = [_one(store, key).key for key in keys] if keys else None
    with showing_progress("verify", quiet=as_json) as progress:
        problems = store.verify(chosen, sample=sample, progress=progress)
    if as_json:
        say_json({"cache": cache, "problems": [asdict(problem) for problem in problems]})
    else:
        for problem in problems:
            say(str(problem))
        say(f"{len(chosen or store.keys())} arrays checked, {len(problems)} problems.")
    if problems:
        raise typer.Exit(1)


@cache_app.command("rm")
def rm_command(
    keys: Annotated[list[str], typer.Argument(help="Keys or their first digits.")],
    cache: Cache = "cache",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove arrays."""
    store = _open(cache)
    arrays = [_one(store, key) for key in keys]
    if as_json:
        if not yes:
            raise SpecError("--json asks no questions: say --yes as well.")
        rows = [_row(array) for array in arrays]
        store.remove([array.key for array in arrays])
        say_json({"cache": cache, "removed": rows})
        return
    for array in arrays:
        row = _row(array)
        view = f" view {row['view']}" if row["view"] else ""
        say(f"{row['key']} {row['model']} {row['layer']}:{row['reduce']}{view} {human_bytes(row['bytes'])}")
    if not yes:
        typer.confirm(f"Remove {len(arrays)} arrays?", abort=True)
    store.remove([array.key for array in arrays])


@cache_app.command("import")
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

    stimuli = None if images is None else StimulusSet.from_source(images)
    array = import_array(
        file, FeatureCache(cache), name=name, ids=ids, images=stimuli, store_dtype=store_dtype
    )
    if as_json:
        say_json(_row(array))
        return
    say(f"{array.spec.model}: {array.n_stimuli} rows of {array.row_shape}, key {array.key}")


def _open(cache: str) -> FeatureCache:
    from featpipe.store import FeatureCache

    store = FeatureCache(cache)
    if not store.keys():
        note(f"featpipe: {cache} holds no arrays.")
    return store


def _one(store: FeatureCache, key: str) -> CachedArray:
    found = [full for full in store.keys() if full.startswith(key)]
    if not found:
        raise FeaturesNotCached(f"{store.root} has no array {key!r}. `featpipe cache ls` lists the keys.")
    if len(found) > 1:
        raise AmbiguousFeatures(f"{len(found)} keys begin with {key!r}: give more digits.")
    return store.array(found[0])


def _order(array: CachedArray) -> tuple[Any, ...]:
    spec, order = array.spec, array.provenance.get("layer_order", 0)
    seen = spec.augmentation, spec.view_seed, spec.view
    return spec.model, spec.weights, array.stimuli_digest, *seen, order


def _row(array: CachedArray) -> dict[str, Any]:
    return {
        "key": array.key,
        "model": array.spec.model,
        "weights": array.provenance.get("weights_label") or array.spec.weights[:12],
        "layer": array.spec.layer_label,
        "reduce": str(array.spec.reduction),
        "view": array.spec.view,
        "shape": list(array.row_shape),
        "dtype": str(array.dtype),
        "stimuli": f"{array.manifest.name} ({array.stimuli_digest[:8]})",
        "rows": array.n_stimuli,
        "complete": array.complete,
        "bytes": array.nbytes,
    }


def _cells(row: dict[str, Any], views: list[str]) -> list[str]:
    rows = str(row["rows"]) if row["complete"] else f"{row['rows']} (incomplete)"
    shape = "×".join(map(str, row["shape"]))
    words = [str(row[name]) for name in (*_WORDS, *views)]
    return [row["key"][:12], *words, shape, row["dtype"], row["stimuli"], rows, human_bytes(row["bytes"])]
