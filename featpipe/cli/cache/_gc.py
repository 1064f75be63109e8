"""``featpipe cache gc``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featpipe.cli._console import human_bytes, human_seconds, note, say, say_json, show_table
from featpipe.cli._options import Cache, Json
from featpipe.cli.cache._amounts import parse_age

if TYPE_CHECKING:
    from featpipe.store import FeatureCache, Garbage

_KINDS = {
    "leftover": "what a killed writer left",
    "claim": "claim that nobody renews",
    "aside": "damaged, moved aside",
    "stimuli": "stimulus set of no array",
    "empty": "array without a row",
}


def gc_command(
    cache: Cache = "cache",
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this it is only listed.")] = False,
    older: Annotated[
        str,
        typer.Option(
            "--older",
            metavar="AGE",
            help="Leftovers of writers count from this age on: others may be at work.",
        ),
    ] = "1h",
    aside: Annotated[
        bool, typer.Option("--aside", help="Also damaged shards that were moved aside.")
    ] = False,
    stimuli: Annotated[
        bool, typer.Option("--stimuli", help="Also stimulus sets that no array uses, older than an hour.")
    ] = False,
    empty: Annotated[
        bool,
        typer.Option(
            "--empty", help="Also name arrays without any row, older than a day; remove them with cache rm."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """List leftovers of killed writers and abandoned claims; remove them with --yes."""
    from featpipe.store import FeatureCache

    seconds = parse_age("--older", older).total_seconds()
    store = FeatureCache(cache)
    garbage = store.garbage(older=seconds, aside=aside, stimuli=stimuli, empty=empty)
    kept = store.discard(garbage) if yes else []
    stays = {some.path for some, _ in kept} | {some.path for some in garbage if some.kind == "empty"}
    removed = [some for some in garbage if yes and some.path not in stays]
    if as_json:
        say_json(_as_json(store, garbage, removed, kept))
    else:
        _show(store, garbage, removed, kept, yes)
    if kept:
        raise typer.Exit(1)


def _as_json(
    store: FeatureCache, garbage: list[Garbage], removed: list[Garbage], kept: list[tuple[Garbage, str]]
) -> dict[str, Any]:
    return {
        "cache": str(store.root),
        "garbage": [_row(store, some) for some in garbage],
        "removed": [_row(store, some) for some in removed],
        "kept": [_row(store, some) | {"why": why} for some, why in kept],
        "bytes": sum(some.nbytes for some in garbage if some.kind != "empty"),
    }


def _row(store: FeatureCache, some: Garbage) -> dict[str, Any]:
    path = str(some.path.relative_to(store.root))
    return {"kind": some.kind, "path": path, "bytes": some.nbytes, "age_seconds": round(some.age)}


def _show(
    store: FeatureCache,
    garbage: list[Garbage],
    removed: list[Garbage],
    kept: list[tuple[Garbage, str]],
    yes: bool,
) -> None:
    if garbage:
        show_table(
            ["what", "path", "size", "age"], [_cells(store, some) for some in garbage], right=["size", "age"]
        )
    for some, why in kept:
        note(f"featpipe: {some.path} stays: {why}")
    if yes:
        say(f"{len(removed)} removed, {human_bytes(sum(some.nbytes for some in removed))}")
        return
    collectable = [some for some in garbage if some.kind != "empty"]
    size = human_bytes(sum(some.nbytes for some in collectable))
    say(f"{len(collectable)} to remove, {size}" + (". Remove them with --yes." if collectable else ""))


def _cells(store: FeatureCache, some: Garbage) -> list[str]:
    path = str(some.path.relative_to(store.root))
    return [_KINDS[some.kind], path, human_bytes(some.nbytes), human_seconds(some.age)]
