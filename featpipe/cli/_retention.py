"""``featpipe retention``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from featpipe.cli._console import say, say_json, show_table, showing_progress
from featpipe.cli._extract import open_stimuli
from featpipe.cli._options import Cache, Device, Json, Mirror, MirrorSize, Trust, cache_with


def retention_command(
    run: Annotated[str, typer.Argument(help="The run folder of a tuner.")],
    images: Annotated[
        str,
        typer.Option("--images", metavar="FOLDER", help="Images to classify, a subfolder for each class."),
    ],
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            metavar="LAYER[:REDUCE]",
            help="Whose features are classified; may be repeated. By default those that the tuner gives.",
        ),
    ] = None,
    cache: Cache = "cache",
    mirror: Mirror = None,
    mirror_size: MirrorSize = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="Where the weights of the untuned network are now, if they moved."),
    ] = None,
    folds: Annotated[int, typer.Option("--folds", help="Outer folds over images.")] = 5,
    draws: Annotated[int, typer.Option("--draws", min=2, help="Bootstrap samples.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of folds and draws.")] = 0,
    device: Device = "auto",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Classify images from a tuned network's features and from the untuned one's: what tuning has cost."""
    from featpipe.extraction import Means
    from featpipe.runs import RunFolder, retention

    where = cache_with(cache, mirror, mirror_size)
    folder = RunFolder.open(run)
    stimuli = open_stimuli(images, None, None, skip_broken=False, rehash=False, quiet=as_json)
    with showing_progress("extract", quiet=as_json) as progress:
        found = retention(
            folder,
            stimuli,
            layers=layer or (),
            cache=where,
            weights=weights,
            n_folds=folds,
            n_draws=draws,
            seed=seed,
            means=Means(device=device),
            progress=progress,
            trust=trust,
        )
    if as_json:
        say_json({"run": run, "images": images, **asdict(found)})
        return
    low, high = found.interval
    show_table(
        ["features", "accuracy"],
        [
            ("untuned", f"{found.untuned:.4f}"),
            ("tuned", f"{found.tuned:.4f}"),
            ("chance", f"{found.chance:.4f}"),
        ],
        right=["accuracy"],
    )
    say(
        f"tuned minus untuned: {found.difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} ({draws} bootstraps)"
    )
    say(
        f"{found.n_images} images of {found.n_classes} classes, {found.n_folds} folds, {', '.join(found.layers)}"
    )
