"""``featpipe cache verify``."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featpipe.cli._console import note, say, say_json, showing_progress
from featpipe.cli._options import Cache, Device, Json, Split, Subject, Trust, Workers
from featpipe.cli.cache._arrays import Keys, full_key, opened
from featpipe.cli.cache._repair import Request, images_at_hand, plans_for, repaired
from featpipe.errors import FeaturesNotCached, SpecError

if TYPE_CHECKING:
    from featpipe.extraction import Comparison, Repair
    from featpipe.store import FeatureCache, Problem


def verify_command(
    keys: Keys = None,
    cache: Cache = "cache",
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, help="Read only so many shards of each array, at random.")
    ] = None,
    recompute: Annotated[
        int | None,
        typer.Option(
            "--recompute", min=1, help="Compute so many random rows of each array again, and compare."
        ),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Make good what is damaged: rows from --images, without them only moved aside."
        ),
    ] = False,
    images: Annotated[
        list[str] | None,
        typer.Option("--images", metavar="SOURCE", help="The images of these arrays; may be repeated."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="Where the weights are now; by default as the arrays record."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="ZOO:NAME, where the network is now; by default as recorded."),
    ] = None,
    subject: Subject = None,
    split: Split = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of random choices; another one each time by default.")
    ] = None,
    device: Device = "auto",
    workers: Workers = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Recompute every checksum; exit code 1 when a byte is not what was written."""
    request = Request(images or [], subject, split, weights, model, device, workers, trust, as_json)
    _refuse_idle(request, repair=repair, recompute=recompute)
    store = opened(cache)
    if not store.keys() and not store.stimuli_digests():
        raise FeaturesNotCached(
            f"There is no cache at {cache}, so nothing was checked. Name the cache with --cache."
        )
    if repair:
        store.location.require_writable()
    chosen = [full_key(store, key) for key in keys] if keys else None
    seed = secrets.randbelow(1 << 32) if seed is None else seed
    with showing_progress("verify", quiet=as_json) as progress:
        problems = store.verify(chosen, sample=sample, seed=seed, progress=progress)
    compared: list[Comparison] = []
    if recompute is not None:
        compared = _compared(store, chosen, problems, request, recompute, seed)
        problems += [problem for one in compared for problem in one.problems]
    done = repaired(store, problems, request) if repair else None
    shown = {
        "cache": cache,
        "arrays": len(chosen or store.keys()),
        "seed": seed,
        "incomplete": _lacking(cache, chosen),
    }
    (_say_json if as_json else _say)(shown, problems, compared, done)
    if problems if done is None else not done.sound:
        raise typer.Exit(1)


def _refuse_idle(request: Request, *, repair: bool, recompute: int | None) -> None:
    """Refuse options that would be ignored, and a request that lacks its images."""
    if recompute is not None and not request.images:
        raise SpecError("--recompute needs the images: name them with --images SOURCE.")
    computing = {"--weights": request.weights, "--model": request.model}
    computing |= {"--subject": request.subject, "--split": request.split}
    given = [name for name, value in computing.items() if value]
    if given and not request.images:
        raise SpecError(f"{', '.join(given)} cannot be given without --images: then nothing is computed.")
    if request.images and not repair and recompute is None:
        raise SpecError("--images go with --recompute N or --repair; checksums need none.")


def _compared(
    store: FeatureCache,
    chosen: Sequence[str] | None,
    problems: Sequence[Problem],
    request: Request,
    n_rows: int,
    seed: int,
) -> list[Comparison]:
    """Compute rows of arrays again; imported ones are passed over where nobody asked for them by key."""
    from featpipe.extraction import IMPORTED

    whole = {problem.key for problem in problems if problem.shard is None}
    arrays = [store.array(key) for key in chosen or store.keys() if key not in whole]
    imported = [array for array in arrays if array.spec.model.startswith(IMPORTED)]
    if imported and chosen is None:
        note(f"featpipe: {len(imported)} imported arrays are left out: no network made them.")
        arrays = [array for array in arrays if array not in imported]
    plans = plans_for(arrays, images_at_hand(request), request)
    without: dict[str, set[int]] = {}
    for problem in problems:
        if problem.shard is not None:
            without.setdefault(problem.key, set()).add(problem.shard)
    from featpipe.extraction import recompute  # torch

    with showing_progress("recompute", quiet=request.quiet) as progress:
        return recompute(
            plans,
            n_rows,
            seed=seed,
            device=request.device,
            workers=request.workers,
            without=without,
            progress=progress,
        )


def _say_json(
    shown: dict[str, Any],
    problems: Sequence[Problem],
    compared: Sequence[Comparison],
    done: Repair | None,
) -> None:
    found: dict[str, Any] = {"problems": [asdict(problem) for problem in problems]}
    if compared:
        found["recomputed"] = [
            {name: value for name, value in asdict(one).items() if name != "problems"} | {"ok": one.ok}
            for one in compared
        ]
    if done is not None:
        found["repair"] = {"sound": done.sound, **asdict(done)}
    say_json(shown | found)


def _say(
    shown: dict[str, Any],
    problems: Sequence[Problem],
    compared: Sequence[Comparison],
    done: Repair | None,
) -> None:
    for one in compared:
        bits = ", bit-equal" if one.bit_equal else ""
        say(
            f"{one.key[:12]} {one.layer}: {one.n_rows} rows computed again{bits}; at most {one.largest:.2g} apart, "
            f"{one.relative:.1e} of the largest value, {one.tolerance:.1e} is allowed."
        )
    for problem in problems:
        say(str(problem))
    say(f"{shown['arrays']} arrays checked, {len(problems)} problems.")
    if shown["incomplete"]:
        say(
            f"{len(shown['incomplete'])} of them lack rows, which is no damage: `featpipe cache ls --incomplete` "
            "lists them."
        )
    if done is not None:
        _say_repair(done)


def _lacking(cache: str, chosen: Sequence[str] | None) -> list[str]:
    """Return the keys of arrays that lack rows, as it is now; damaged ones are told of elsewhere."""
    found = opened(cache).find(complete=False, unreadable=lambda key, error: None)
    return [array.key for array in found if chosen is None or array.key in chosen]


def _say_repair(done: Repair) -> None:
    for file in done.rewritten:
        say(f"repaired: {file} was written again")
    for key, shard in done.recomputed:
        say(f"repaired: shard {shard} of {key[:12]} was computed again")
    for file in done.moved:
        say(f"moved aside: {file}")
    for key, shard in done.missing:
        say(f"moved aside, and missing now: shard {shard} of {key[:12]}")
    for line in [*done.left, *map(str, done.problems)]:
        say(f"not repaired: {line}")
    if done.missing:
        say(
            "What is missing is computed by the `featpipe extract` of before, and imported arrays come back with "
            "`featpipe cache import`; with --images this command computes what it moves aside."
        )
