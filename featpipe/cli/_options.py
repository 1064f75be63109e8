"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featpipe.errors import SpecError
from featpipe.models import ModelRequest

if TYPE_CHECKING:
    from featpipe.store import Root

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Cache = Annotated[
    str, typer.Option("--cache", help="The cache's folder, or its URL: s3://, gs://, http(s)://.")
]
RunCache = Annotated[
    str | None, typer.Option("--cache", help="Instead of the run's cache: a folder, or a URL.")
]
Mirror = Annotated[
    str | None,
    typer.Option(
        "--mirror",
        metavar="DIR",
        help="Folder for copies of what is read from a URL; processes may share it.",
    ),
]
MirrorSize = Annotated[
    str | None,
    typer.Option(
        "--mirror-size", metavar="SIZE", help="What the mirror may hold, such as 50GB; 100GB by default."
    ),
]
Weights = Annotated[
    str, typer.Option("--weights", help="default (the zoo's pretrained tag), a TAG, random:SEED, or a file.")
]
ModelArgs = Annotated[
    list[str] | None,
    typer.Option("--model-arg", metavar="K=V", help="Argument of the model's constructor; may be repeated."),
]
Mean = Annotated[
    str | None,
    typer.Option("--mean", metavar="R,G,B", help="Instead of the weights' own mean; pixels are 0 to 1."),
]
Std = Annotated[
    str | None,
    typer.Option("--std", metavar="R,G,B", help="Instead of the weights' own std; pixels are 0 to 1."),
]
ImageSize = Annotated[
    str | None,
    typer.Option("--image-size", metavar="N|HxW", help="Instead of the model's input size, in pixels."),
]
Interpolation = Annotated[
    str | None, typer.Option("--interpolation", help="nearest, bilinear, bicubic or lanczos.")
]
Preprocess = Annotated[
    str,
    typer.Option(
        "--preprocess", help="model (its own transform) or whole (the whole image resized, without a crop)."
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Execute code that the request names: python: models, foreign pipelines."),
]
Subject = Annotated[str | None, typer.Option("--subject", help="Which subject, where DATA has several.")]
Split = Annotated[str | None, typer.Option("--split", help="Which split of DATA: train or test.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
BatchSize = Annotated[str, typer.Option("--batch-size", help="auto, or a multiple of 8.")]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Threads that decode images; one a processor.")
]
Dask = Annotated[
    str | None,
    typer.Option(
        "--dask",
        metavar="N|ADDRESS",
        help="Workers for folds, candidates and regions: N processes here, or a scheduler such as tcp://node1:8786 "
        "whose workers see the cache, the data and the folder above --out under the same paths.",
    ),
]
DaskOfShards = Annotated[
    str | None,
    typer.Option(
        "--dask",
        metavar="N|ADDRESS",
        help="Workers for shards: N processes here, or a scheduler such as tcp://node1:8786 whose workers see the "
        "images, the network's files and the cache under the same paths. A worker has one GPU, if there are any.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        help="BLAS threads of each task; by default processors divided by tasks at a time. Equal threads give equal "
        "scores, wherever they are computed.",
    ),
]


def model_request(
    model: str,
    weights: str,
    model_arg: list[str] | None,
    mean: str | None,
    std: str | None,
    image_size: str | None,
    interpolation: str | None,
    preprocess: str,
    trust: bool,
) -> ModelRequest:
    """Return what the options ask for; raises `SpecError` on one that cannot be read."""
    return ModelRequest(
        model=model,
        weights=weights,
        model_args=tuple(_argument(text) for text in model_arg or ()),
        preprocess=preprocess,
        mean=None if mean is None else _three("--mean", mean),
        std=None if std is None else _three("--std", std),
        image_size=None if image_size is None else _size(image_size),
        interpolation=interpolation,
        trust=trust,
    )


def mirror_bytes(mirror: str | None, size: str | None) -> int | None:
    """Read ``--mirror-size``; raises `SpecError` without ``--mirror``, or where it is no size."""
    from featpipe.cli.cache._amounts import parse_size

    if size is None:
        return None
    if mirror is None:
        raise SpecError("--mirror-size goes with --mirror DIR, which is missing.")
    if not (n_bytes := parse_size("--mirror-size", size)):
        raise SpecError("--mirror-size 0 leaves no room for anything. Leave --mirror out instead.")
    return n_bytes


def cache_with(cache: str, mirror: str | None, size: str | None) -> Root:
    """Return the cache that the options name, with its mirror if there is one."""
    from featpipe.store import mirrored

    return mirrored(cache, mirror, mirror_bytes(mirror, size))


def batch_size(text: str) -> int | None:
    """Read ``--batch-size``: None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise SpecError(f"--batch-size {text!r} is neither auto nor a number.")
    return int(text)


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise SpecError(f"--model-arg {text!r} is not K=V, such as pad_type=same.")
    words = {"True": True, "False": False, "None": None}
    if value in words:
        return name, words[value]
    try:
        read = json.loads(value)
    except ValueError:
        return name, value
    if isinstance(read, list | dict):
        raise SpecError(f"--model-arg {name} must be a number, text, true, false or null, not {value}.")
    return name, read


_MOST = 2.0  # more is no mean or deviation of values from 0 to 1, whatever they are scaled to


def _three(option: str, text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise SpecError(f"{option} {text!r} is not three numbers R,G,B, such as .485,.456,.406.") from None
    if max(red, green, blue) > _MOST:
        raise SpecError(
            f"{option} {text!r} is of pixels from 0 to 255; here they are from 0 to 1. Divide it by 255, "
            "such as .485,.456,.406."
        )
    return red, green, blue


def _size(text: str) -> int | tuple[int, int]:
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) for part in parts) or len(parts) > 2:
        raise SpecError(f"--image-size {text!r} is neither N nor HxW, such as 224 or 224x336.")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))
