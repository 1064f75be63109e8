"""``featpipe submit``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from featpipe.cli._console import say, say_json, showing_progress
from featpipe.cli._extract import open_stimuli
from featpipe.cli._options import Device, Json, Mirror, MirrorSize, RunCache, Split, Trust, mirror_bytes
from featpipe.errors import RequestError

CHALLENGES = ("algonauts2019", "algonauts2023")


def submit_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN …", help="Run folders: 2019 one per target of a track, 2023 one a subject."
        ),
    ],
    challenge: Annotated[str, typer.Option("--challenge", help="algonauts2019 or algonauts2023.")],
    images: Annotated[
        str,
        typer.Option(
            "--images",
            "--data",
            metavar="SOURCE",
            help="The images to predict, or DATA with --split test; of 2023 DATA, the folder of all subjects.",
        ),
    ],
    out: Annotated[str, typer.Option("--out", help="FILE.zip to hand in.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="Of 2023: let fewer than the eight subjects do.")
    ] = False,
    cache: RunCache = None,
    mirror: Mirror = None,
    mirror_size: MirrorSize = None,
    split: Split = None,
    device: Device = "auto",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Predict a challenge's test images with one run per target or subject, and write the file to hand in."""
    from featpipe.extraction import Means
    from featpipe.runs import submit, submit_algonauts2023

    if challenge not in CHALLENGES:
        raise RequestError(
            f"There is no challenge {challenge!r} to submit to; choose {', '.join(CHALLENGES)}."
        )
    if not out.endswith(".zip"):
        raise RequestError(f"--out {out} must be a .zip file, such as submit_fmri.zip.")
    how: dict[str, Any] = {"cache": cache, "mirror": mirror, "mirror_size": mirror_bytes(mirror, mirror_size)}
    how |= {"means": Means(device=device), "trust": trust}
    if challenge == "algonauts2023":
        data = _challenge_data(images, split)
        with showing_progress("extract", quiet=as_json) as progress:
            counts = submit_algonauts2023(runs, data, out, partial=partial, progress=progress, **how)
        if as_json:
            say_json({"out": out, "n_stimuli": counts})
            return
        say(f"{out}: " + ", ".join(f"{name} {count} images" for name, count in counts.items()))
        return
    if partial:
        raise RequestError(
            "--partial goes with --challenge algonauts2023: a track of 2019 is both its targets."
        )
    stimuli = open_stimuli(images, None, split, skip_broken=False, rehash=False, quiet=as_json)
    with showing_progress("extract", quiet=as_json) as progress:
        track = submit(runs, stimuli, out, progress=progress, **how)
    if as_json:
        say_json({"out": out, "track": track, "n_stimuli": len(stimuli)})
        return
    say(f"{out}: {track} track, {len(stimuli)} stimuli")


def _challenge_data(images: str, split: str | None) -> str:
    """Return DATA of the challenge: what is predicted are the test images of every subject, and nothing else."""
    from featpipe.datasets import is_data

    data = images if is_data(images) else f"algonauts2023:{images}"
    if not data.startswith("algonauts2023:"):
        raise RequestError(f"A submission to algonauts2023 is made for algonauts2023:DIR, not {images!r}.")
    if split not in (None, "test"):
        raise RequestError(f"A submission is of the test images; --split {split} is not possible.")
    return data
