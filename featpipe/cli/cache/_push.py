"""``featpipe cache push``."""

from __future__ import annotations

from typing import Annotated

import typer

from featpipe.cli._options import Json
from featpipe.cli.cache._arrays import Keys
from featpipe.cli.cache._moving import DryRun, Layers, Model, Stimuli, copy_arrays


def push_command(
    to: Annotated[str, typer.Argument(help="A folder, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER.")],
    keys: Keys = None,
    cache: Annotated[
        str, typer.Option("--cache", metavar="FROM", help="The cache to copy from: a folder or a URL.")
    ] = "cache",
    model: Model = None,
    layers: Layers = None,
    stimuli: Stimuli = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Publish arrays: copy them to another cache, and list there what it holds for readers by http."""
    from featpipe.store import ArrayChoice

    choice = ArrayChoice(keys or (), model, layers or (), stimuli)
    copy_arrays(cache, to, choice, publish=True, dry_run=dry_run, as_json=as_json)
