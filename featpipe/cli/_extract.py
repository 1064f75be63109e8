"""``featpipe extract``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featpipe.cli._console import (
    note,
    say,
    say_json,
    showing_progress,
)
from featpipe.cli._extraction_shown import dry_run_json, extraction_json, say_dry_run, say_extraction
from featpipe.cli._options import (
    BatchSize,
    Cache,
    DaskOfShards,
    Device,
    ImageSize,
    Interpolation,
    Json,
    Mean,
    ModelArgs,
    Preprocess,
    Split,
    Std,
    Subject,
    Trust,
    Weights,
    Workers,
    batch_size,
    model_request,
)
from featpipe.cli._workers import for_workers, workers_of
from featpipe.errors import SpecError

if TYPE_CHECKING:
    from featpipe.extraction import Extraction, Order
    from featpipe.stimuli import StimulusSet


def extract_command(
    model: Annotated[str | None, typer.Option("--model", help="ZOO:NAME, such as timm:resnet50.")] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers",
            metavar="PATTERN[:REDUCE]",
            help="Layer name or glob, with none, mean, max, cls, grid:K or srp:D:SEED; may be repeated.",
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            metavar="SOURCE",
            help="Folder, .zip, .tar, CSV id,path, .npy, .npz, FILE.h5:DATASET, Zarr array, or DATA.",
        ),
    ] = None,
    cache: Cache = "cache",
    weights: Weights = "default",
    model_arg: ModelArgs = None,
    mean: Mean = None,
    std: Std = None,
    image_size: ImageSize = None,
    interpolation: Interpolation = None,
    preprocess: Preprocess = "model",
    precision: Annotated[str, typer.Option("--precision", help="fp32, tf32, bf16 or fp16.")] = "fp32",
    store_dtype: Annotated[str, typer.Option("--store-dtype", help="float32 or float16.")] = "float32",
    views: Annotated[
        int,
        typer.Option("--views", min=0, help="Augmented views of every image, besides the image itself."),
    ] = 0,
    augmentation: Annotated[
        str | None,
        typer.Option(
            "--augmentation", help="What makes a view: crop:FRACTION[:flip]; crop:0.875 by default."
        ),
    ] = None,
    view_seed: Annotated[
        int | None, typer.Option("--view-seed", min=0, help="Other crops for another seed; 0 by default.")
    ] = None,
    size: BatchSize = "auto",
    device: Device = "auto",
    workers: Workers = None,
    dask: DaskOfShards = None,
    codec: Annotated[str, typer.Option("--codec", help="Compression of new arrays; auto measures.")] = "auto",
    shard_rows: Annotated[
        int | None,
        typer.Option(
            "--shard-rows", help="Rows a shard of a new stimulus set; by default 256, fewer for large layers."
        ),
    ] = None,
    claim_expiry: Annotated[
        float,
        typer.Option(
            "--claim-expiry",
            metavar="SECONDS",
            help="Take over shards of another run that gave no sign of life for so long; at least 120.",
        ),
    ] = 150,
    non_finite: Annotated[
        str,
        typer.Option(
            "--non-finite", help="Layers with NaN or infinite values: refuse, or keep, which counts them."
        ),
    ] = "refuse",
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Extract what this recipe needs, with --data.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="DATA whose images are meant, with --recipe.")
    ] = None,
    subject: Subject = None,
    split: Split = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Parameter of the recipe's pipeline."),
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out images that cannot be decoded, and list them.")
    ] = False,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Ignore remembered digests of images and weights.")
    ] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="One forward pass: shapes, bytes, memory, time.")
    ] = False,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Write the features of layers to the cache, in one pass, going on where an earlier run stopped."""
    from featpipe.extraction import Means, extract
    from featpipe.store import FeatureCache

    means = Means(
        device, batch_size(size), workers, codec, shard_rows, _claim_expiry(claim_expiry), non_finite
    )
    if recipe is None:
        _refuse_beside("--model", {"--data": data, "--set": settings}, "They go with --recipe.")
    else:
        _refuse_beside(
            "--recipe",
            {
                **{"--model": model, "--layers": layers, "--images": images, "--model-arg": model_arg},
                **{
                    "--mean": mean,
                    "--std": std,
                    "--image-size": image_size,
                    "--interpolation": interpolation,
                },
                **{"--weights": weights != "default", "--preprocess": preprocess != "model"},
                **{"--precision": precision != "fp32", "--store-dtype": store_dtype != "float32"},
                **{"--views": views, "--augmentation": augmentation, "--view-seed": view_seed is not None},
            },
            "The recipe says what is extracted, and --data of which images; change it with --set "
            "features__model=…, features__weights=… and so on.",
        )
    if recipe is not None:
        orders = _recipe_orders(recipe, settings, trust)
    else:
        request = model_request(
            _needed("--model", model),
            weights,
            model_arg,
            mean,
            std,
            image_size,
            interpolation,
            preprocess,
            trust,
        )
        made = _views(views, augmentation, view_seed)
        orders = [_order(request, _needed("--layers", layers), store_dtype, precision, made)]
    source = _needed("--images", images) if recipe is None else _needed("--data", data)
    source = for_workers(source, dask, dry=dry)
    store = FeatureCache(cache)
    if not dry:
        store.location.require_writable()  # before images are hashed and a network is built
    sets = _stimulus_sets(source, subject, split, skip_broken=skip_broken, rehash=rehash, quiet=as_json)
    if dry:
        from featpipe.extraction import dry_run  # torch, which a run with nothing to do does without

        plans = {
            name: [dry_run(order, stimuli, store, means=means) for order in orders]
            for name, stimuli in sets.items()
        }
        _say_sets(plans, lambda name: (dry_run_json, say_dry_run), as_json)
        return
    done: dict[str, list[Extraction]] = {}
    with workers_of(dask, quiet=as_json) as there:
        fill = partial(extract, means=means, rehash=rehash, workers=there)
        for name, stimuli in sets.items():  # one by one: what two subjects saw is computed once and copied
            with showing_progress(f"extract {name}".strip(), quiet=as_json) as progress:
                done[name] = [fill(order, stimuli, store, progress=progress) for order in orders]
    _say_sets(done, lambda name: (partial(extraction_json, sets[name], cache), say_extraction), as_json)


def _stimulus_sets(
    source: str, subject: str | None, split: str | None, **how: bool
) -> dict[str, StimulusSet]:
    """Open what is to be extracted: one set, or with ``--subject all`` one a subject, by its name."""
    from featpipe.datasets import EVERYONE, is_data

    if subject != EVERYONE or not is_data(source):
        return {"": open_stimuli(source, subject, split, **how)}
    from featpipe.datasets import subjects_of

    return {name: open_stimuli(source, name, split, **how) for name in subjects_of(source)}


def _say_sets(found: dict[str, list[Any]], sayers: Callable[[str], tuple[Any, Any]], as_json: bool) -> None:
    """Print what was found for each set of images: as `_say_each`, under the names of subjects if there are any."""
    if list(found) == [""]:
        _say_each(found[""], *sayers(""), as_json)
    elif as_json:
        say_json({"subjects": {name: _one_object(each, sayers(name)[0]) for name, each in found.items()}})
    else:
        for name, each in found.items():
            say(f"{name}:")
            _say_each(each, *sayers(name), as_json)


def _claim_expiry(seconds: float) -> float:
    from featpipe.store import LEAST_CLAIM_EXPIRY

    if not LEAST_CLAIM_EXPIRY <= seconds < float("inf"):
        raise SpecError(
            f"--claim-expiry is {seconds:g} seconds; it must be at least {LEAST_CLAIM_EXPIRY:g}, because machines "
            "that share a file system may see each other's files a minute late."
        )
    return seconds


def _needed(option: str, value: Any) -> Any:
    if not value:
        raise SpecError(f"{option} is missing. See `featpipe extract --help`.")
    return value


def _order(request: Any, layers: list[str], store_dtype: str, precision: str, views: dict[str, Any]) -> Order:
    from featpipe.extraction import Order
    from featpipe.spec import LayerRequest

    return Order(request, tuple(LayerRequest.parse(text) for text in layers), store_dtype, precision, **views)


def _views(n_views: int, augmentation: str | None, seed: int | None) -> dict[str, Any]:
    """Return the fields of an order that say which views are made."""
    from featpipe.views import USUAL, Augmentation

    if n_views == 0 and (augmentation is not None or seed is not None):
        raise SpecError("--augmentation and --view-seed go with --views N, which is missing.")
    made_by = USUAL if augmentation is None else Augmentation.parse(augmentation)
    return {"n_views": n_views, "augmentation": made_by, "view_seed": seed or 0}


def _recipe_orders(recipe: str, settings: list[str] | None, trust: bool) -> list[Order]:
    from featpipe.recipes import load_recipe, parse_assignment
    from featpipe.runs import refuse_extraction

    chosen = load_recipe(recipe).with_params(dict(map(parse_assignment, settings or ())))
    refuse_extraction(chosen)
    return chosen.orders(trust=trust)


def _say_each(
    found: Sequence[Any], as_object: Callable[[Any], Any], show: Callable[[Any], None], as_json: bool
) -> None:
    """Print what was found for each network: tables, or one JSON object, with a list where there are several."""
    if not as_json:
        for one in found:
            show(one)
        return
    say_json(_one_object(found, as_object))


def _one_object(found: Sequence[Any], as_object: Callable[[Any], Any]) -> Any:
    objects = [as_object(one) for one in found]
    return objects[0] if len(objects) == 1 else {"networks": objects}


def _refuse_beside(option: str, others: dict[str, Any], advice: str) -> None:
    """Refuse options that would be ignored."""
    given = [name for name, value in others.items() if value]
    if given:
        raise SpecError(f"{', '.join(given)} cannot be given with {option}. {advice}")


def open_stimuli(
    source: str, subject: str | None, split: str | None, *, skip_broken: bool, rehash: bool, quiet: bool
) -> StimulusSet:
    """Open the images of a SOURCE or of DATA, and say what was left out."""
    from featpipe.datasets import is_data
    from featpipe.stimuli import StimulusSet

    if is_data(source):
        from featpipe.datasets import load_stimuli

        return load_stimuli(source, subject=subject, split=split)
    if subject or split:
        raise SpecError(
            f"--subject and --split choose among the images of DATA; {source!r} is a source of images."
        )
    with showing_progress("hash images", quiet=quiet) as progress:
        stimuli = StimulusSet.from_source(source, skip_broken=skip_broken, rehash=rehash, progress=progress)
    for name, reason in stimuli.skipped:
        note(f"featpipe: left out {name}: {reason}")
    return stimuli
