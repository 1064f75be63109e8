"""``featpipe cache pull``."""

from __future__ import annotations

from typing import Annotated

import typer

from featpipe.cli._options import Json
from featpipe.cli.cache._arrays import Keys
from featpipe.cli.cache._moving import DryRun, Layers, Model, Stimuli, copy_arrays


def pull_command(
    source: Annotated[
        str, typer.Argument(metavar="FROM", help="A folder, or a URL: s3://, gs://, http(s)://.")
    ],
    keys: Keys = None,
    cache: Annotated[
        str, typer.Option("--cache", metavar="TO", help="The cache to copy to: a folder or a URL.")
    ] = "cache",
    model: Model = None,
    layers: Layers = None,
    stimuli: Stimuli = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Copy arrays from a published cache, and check every byte on arrival."""
    from featpipe.store import ArrayChoice

    choice = ArrayChoice(keys or (), model, layers or (), stimuli)
    copy_arrays(source, cache, choice, publish=False, dry_run=dry_run, as_json=as_json)
