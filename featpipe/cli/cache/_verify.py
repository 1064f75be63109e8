"""``featpipe cache verify``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from featpipe.cli._console import say, say_json, showing_progress
from featpipe.cli._options import Cache, Json
from featpipe.cli.cache._arrays import Keys, one_array, opened
from featpipe.errors import FeaturesNotCached


def verify_command(
    keys: Keys = None,
    cache: Cache = "cache",
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, help="Read only so many shards of each array, at random.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute every checksum; exit code 1 when a byte is not what was written."""
    store = opened(cache)
    if not store.keys() and not store.stimuli_digests():
        raise FeaturesNotCached(
            f"There is no cache at {cache}, so nothing was checked. Name the cache with --cache."
        )
    chosen = [one_array(store, key).key for key in keys] if keys else None
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
