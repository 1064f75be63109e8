"""``featpipe submit``."""

from __future__ import annotations

from typing import Annotated

import typer

from featpipe.cli._console import say, say_json, showing_progress
from featpipe.cli._extract import open_stimuli
from featpipe.cli._options import Device, Json, Split, Trust
from featpipe.errors import RequestError

CHALLENGES = ("algonauts2019",)


def submit_command(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN …", help="Run folders, one per target of a track.")
    ],
    challenge: Annotated[str, typer.Option("--challenge", help="algonauts2019.")],
    images: Annotated[
        str,
        typer.Option("--images", metavar="SOURCE", help="The images to predict, or DATA with --split test."),
    ],
    out: Annotated[str, typer.Option("--out", help="FILE.zip to hand in.")],
    cache: Annotated[str | None, typer.Option("--cache", help="Instead of the runs' cache.")] = None,
    split: Split = None,
    device: Device = "auto",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Predict a challenge's test images with one run per target, and write the file to hand in."""
    from featpipe.extraction import Means
    from featpipe.runs import submit

    if challenge not in CHALLENGES:
        raise RequestError(
            f"There is no challenge {challenge!r} to submit to; choose {', '.join(CHALLENGES)}."
        )
    if not out.endswith(".zip"):
        raise RequestError(f"--out {out} must be a .zip file, such as submit_fmri.zip.")
    stimuli = open_stimuli(images, None, split, skip_broken=False, rehash=False, quiet=as_json)
    with showing_progress("extract", quiet=as_json) as progress:
        track = submit(
            runs, stimuli, out, cache=cache, means=Means(device=device), progress=progress, trust=trust
        )
    if as_json:
        say_json({"out": out, "track": track, "n_stimuli": len(stimuli)})
        return
    say(f"{out}: {track} track, {len(stimuli)} stimuli")
