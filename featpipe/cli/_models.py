"""``featpipe models`` and ``featpipe layers``."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from featpipe.cli._console import human_bytes, say, say_json, show_table
from featpipe.cli._options import (
    ImageSize,
    Interpolation,
    Json,
    Mean,
    ModelArgs,
    Preprocess,
    Std,
    Trust,
    Weights,
    model_request,
)


def models_command(
    pattern: Annotated[str, typer.Argument(help="Glob over model names, such as 'resnet*'.")] = "*",
    zoo: Annotated[
        str | None, typer.Option("--zoo", help="timm, open_clip or torchvision; all by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models of the zoos and their tags of pretrained weights."""
    from featpipe.models import list_models

    found = list_models(pattern, zoo)
    if as_json:
        say_json({"models": [{"model": name, "tags": list(tags)} for name, tags in found]})
        return
    show_table(["model", "pretrained weights"], [(name, ", ".join(tags) or "-") for name, tags in found])
    say(f"{len(found)} models")


def layers_command(
    model: Annotated[
        str, typer.Argument(help="ZOO:NAME, such as timm:resnet50 or open_clip:ViT-B-32/openai.")
    ],
    weights: Weights = "default",
    model_arg: ModelArgs = None,
    mean: Mean = None,
    std: Std = None,
    image_size: ImageSize = None,
    interpolation: Interpolation = None,
    preprocess: Preprocess = "model",
    store_dtype: Annotated[
        str, typer.Option("--store-dtype", help="float32 or float16, for the bytes.")
    ] = "float32",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """List every layer of a model: name, shape, values and bytes per image."""
    from featpipe.models import describe, load

    request = model_request(
        model, weights, model_arg, mean, std, image_size, interpolation, preprocess, trust
    )
    backbone = load(request)
    size = {"float32": 4, "float16": 2}.get(store_dtype)
    if size is None:
        raise typer.BadParameter(f"{store_dtype!r} is not float32 or float16", param_hint="--store-dtype")
    rows = [_row(info, size) for info in describe(backbone)]
    if as_json:
        card = backbone.card
        shown = {"model": card.architecture, "weights": card.weights, "weights_label": card.weights_label}
        say_json({**shown, "preprocessing": card.preprocessing.to_json(), "layers": rows})
        return
    show_table(
        ["layer", "kind", "shape", "values", "bytes/image", "note"],
        [_cells(row) for row in rows],
        right=["values", "bytes/image"],
    )
    say(f"{backbone.card.architecture}, weights {backbone.card.weights_label} ({backbone.card.weights[:12]})")


def _row(info: Any, size: int) -> dict[str, Any]:
    values = None if info.shape is None else math.prod(info.shape)
    missing = "depends on weights that are missing" if info.depends_on_missing else ""
    return {
        "layer": info.name,
        "kind": info.kind,
        "shape": None if info.shape is None else list(info.shape),
        "values": values,
        "bytes": None if values is None else values * size,
        "note": missing or info.reason,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    if row["shape"] is None:
        return [row["layer"], row["kind"], "-", "-", "-", row["note"]]
    shape = "×".join(map(str, row["shape"]))
    return [row["layer"], row["kind"], shape, f"{row['values']:,}", human_bytes(row["bytes"]), row["note"]]
