"""What ``featpipe cache push`` and ``featpipe cache pull`` share: their options, copying, and saying what moved."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featpipe.cli._console import human_bytes, human_seconds, note, say, say_json, show_table
from featpipe.cli._progress import showing_bytes

if TYPE_CHECKING:
    from featpipe.store import ArrayChoice, Copied, Move

Model = Annotated[
    str | None, typer.Option("--model", help="Only this model, such as timm:resnet50, or a glob.")
]
Layers = Annotated[
    list[str] | None,
    typer.Option("--layers", metavar="GLOB", help="Only layers of this name or glob; may be repeated."),
]
Stimuli = Annotated[
    str | None,
    typer.Option("--stimuli", help="Only this stimulus set: its name, a glob, or its first digits."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would move, and move nothing.")]


def copy_arrays(
    source: str, target: str, choice: ArrayChoice, *, publish: bool, dry_run: bool, as_json: bool
) -> None:
    """Copy arrays from cache to cache and say what moved; exit code 1 when something is damaged.

    With `publish` the target lists in its index what it holds, once all else is in it.
    """
    from featpipe.store import FeatureCache, plan_transfer, publish_index, transfer

    here, there = FeatureCache(source), FeatureCache(target)
    keys, damaged = choice.of(here)
    moves, problems = plan_transfer(here, there, keys)
    if not as_json:
        _show(moves)
    copied: Mapping[str, Copied] = {}
    started = time.perf_counter()
    if not dry_run:
        with showing_bytes("push" if publish else "pull", quiet=as_json) as progress:
            copied = transfer(here, there, moves, progress=progress)
        if publish:
            publish_index(there.location, [key for key, done in copied.items() if done.moved])
    seconds = time.perf_counter() - started
    texts = [*damaged.values(), *problems.values(), *(t for done in copied.values() for t in done.problems)]
    if as_json:
        ends = {"from": str(here.root), "to": str(there.root), "dry_run": dry_run}
        arrays = [_row(move) | _outcome(copied.get(move.array.key)) for move in moves]
        moved = sum(done.size for done in copied.values())
        say_json(ends | {"arrays": arrays, "bytes": moved, "seconds": round(seconds, 3), "problems": texts})
    else:
        say(_planned(moves) if dry_run else _summary(moves, copied, seconds))
    for text in texts:
        note(f"featpipe: {text}")
    if texts:
        raise typer.Exit(1)


def _row(move: Move) -> dict[str, Any]:
    array, spec = move.array, move.array.spec
    return {
        "key": array.key,
        "model": spec.model,
        "layer": spec.layer_label,
        "reduce": str(spec.reduction),
        "view": spec.view,
        "stimuli": f"{array.manifest.name} ({array.stimuli_digest[:8]})",
        "rows": array.n_stimuli,
        "shards": move.shards,
        "bytes": move.size,
        "state": move.state,
    }


def _outcome(done: Copied | None) -> dict[str, Any]:
    if done is None:
        return {}
    return {
        "moved_shards": done.moved,
        "moved_bytes": done.size,
        "kept_shards": done.kept,
        "problems": done.problems,
    }


def _show(moves: Sequence[Move]) -> None:
    rows = [_row(move) for move in moves]
    names = ["model", "layer", "reduce", *(["view"] if any(row["view"] for row in rows) else []), "stimuli"]
    show_table(
        ["key", *names, "rows", "to move", "state"],
        [
            [
                row["key"][:12],
                *(row[name] for name in names),
                row["rows"],
                human_bytes(row["bytes"]),
                row["state"],
            ]
            for row in rows
        ],
        right=["rows", "to move"],
    )


def _planned(moves: Sequence[Move]) -> str:
    size = sum(move.size for move in moves)
    shards = sum(move.shards for move in moves)
    return f"{len(moves)} arrays, of which {shards} shards would move, {human_bytes(size)}."


def _summary(moves: Sequence[Move], copied: Mapping[str, Copied], seconds: float) -> str:
    size = sum(done.size for done in copied.values())
    moved = sum(done.moved for done in copied.values())
    kept = sum(done.kept for done in copied.values())
    stay = f" {kept} shards are there with other bytes and stay as they are." if kept else ""
    if not moved and not any(done.problems for done in copied.values()):
        return f"{len(moves)} arrays, and everything is there.{stay}"
    rate = human_bytes(size / max(seconds, 1e-9))
    return (
        f"{len(moves)} arrays, of which {moved} shards moved, {human_bytes(size)} in {human_seconds(seconds)} "
        f"({rate}/s).{stay}"
    )
