"""``featpipe fit``, ``predict``, ``score``, ``report`` and ``recipes``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featpipe.cli._console import note, say, say_json, show_table, showing_progress
from featpipe.cli._extract import open_stimuli
from featpipe.cli._options import (
    BatchSize,
    Cache,
    Dask,
    Device,
    Json,
    Mirror,
    MirrorSize,
    RunCache,
    Split,
    Subject,
    Threads,
    Trust,
    Workers,
    batch_size,
    cache_with,
    mirror_bytes,
)
from featpipe.cli._progress import showing_stages
from featpipe.cli._scores import show_chosen, show_summary, show_tuned
from featpipe.cli._subjects import fit_every_subject, show_subjects
from featpipe.errors import MissingDependency

Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="table:DIR, table:FILE.toml, algonauts2019:DIR, algonauts2023:DIR or synthetic:….",
    ),
]
Target = Annotated[
    str | None,
    typer.Option("--target", help="Only this group of targets, such as lh.V1v; of RDMs such as EVC."),
]


def fit_command(
    recipe: Annotated[
        str, typer.Argument(help="A file, or the name of a recipe that `featpipe recipes` lists.")
    ],
    data: Data,
    out: Annotated[str, typer.Option("--out", help="The run folder to make.")],
    cache: Cache = "cache",
    mirror: Mirror = None,
    mirror_size: MirrorSize = None,
    subject: Subject = None,
    target: Target = None,
    variant: Annotated[
        str | None, typer.Option("--variant", help="Another pipeline of the recipe, see its file.")
    ] = None,
    surface: Annotated[
        str | None,
        typer.Option(
            "--surface",
            metavar="lh=FILE,rh=FILE",
            help="Where vertices lie: surfaces of fsaverage, GIFTI or FreeSurfer.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Parameter of the recipe's pipeline; may be repeated."
        ),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option("--search", metavar="KEY=[…]", help="Values to choose from inside each training set."),
    ] = None,
    cv: Annotated[str | None, typer.Option("--cv", help="A number of folds, group, splits or set.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Processes for the outer folds.")] = 1,
    dask: Dask = None,
    threads: Threads = None,
    do_extract: Annotated[bool, typer.Option("--extract", help="Extract what the cache lacks.")] = False,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is in --out.")] = False,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: cross-validated scores, the fitted pipeline, and a report."""
    from featpipe.extraction import Means
    from featpipe.recipes import load_recipe, parse_assignment
    from featpipe.runs import FitRequest, fit

    params, searched = (dict(map(parse_assignment, texts or ())) for texts in (settings, search))
    chosen = load_recipe(recipe).with_variant(variant)
    request = FitRequest(
        recipe=chosen.for_target(target).with_params(params).with_search(searched),
        data=data,
        out=out,
        cache=cache_with(cache, mirror, mirror_size),
        subject=subject,
        target=target,
        surface=surface,
        cv=int(cv) if cv is not None and cv.isdecimal() else cv,
        n_jobs=jobs,
        dask=dask,
        threads=threads,
        extract=do_extract,
        overwrite=overwrite,
        trust=trust,
        device=device,
        given={"variant": variant, "set": params, "search": searched},
    )
    if subject == "all":
        fit_every_subject(request, Means(device=device), _try_report, as_json=as_json)
        return
    with showing_stages(quiet=as_json) as stage:
        run = fit(
            request,
            means=Means(device=device),
            progress=stage("extract"),
            fold_progress=stage("folds"),
            epoch_progress=stage("epochs"),
            tell=None if as_json else note,
        )
    report = _try_report(run.path)
    summary = run.read_json("summary.json")
    if as_json:
        say_json({"run": str(run.path), "report": report, **summary})
        return
    show_summary(summary)
    show_chosen(summary.get("chosen", {}))
    show_tuned(run.read_json("run.json").get("tuner"))
    say(f"{run.path}: {report or 'no report'}")


def predict_command(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    images: Annotated[str, typer.Option("--images", metavar="SOURCE", help="The images to predict.")],
    out: Annotated[
        str, typer.Option("--out", help="FILE.npz, .npy, .mat or .csv (RDMs: .npz or .mat); ids are inside.")
    ],
    cache: RunCache = None,
    mirror: Mirror = None,
    mirror_size: MirrorSize = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="Where the weights are now, if they moved.")
    ] = None,
    subject: Subject = None,
    split: Split = None,
    device: Device = "auto",
    size: BatchSize = "auto",
    workers: Workers = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Predict responses to new images, or their RDM; features that the cache lacks are extracted."""
    from featpipe.extraction import Means
    from featpipe.rsa import RDMs
    from featpipe.runs import (
        FORMATS,
        RDM_FORMATS,
        RunFolder,
        check_format,
        predict,
        write_predicted_rdms,
        write_predictions,
    )

    room = mirror_bytes(mirror, mirror_size)
    folder = RunFolder.open(run)
    check_format(Path(out), RDM_FORMATS if folder.kind == "rdms" else FORMATS)
    stimuli = open_stimuli(images, subject, split, skip_broken=False, rehash=False, quiet=as_json)
    means = Means(device=device, batch_size=batch_size(size), workers=workers)
    with showing_progress("extract", quiet=as_json) as progress:
        predictions = predict(
            folder,
            stimuli,
            cache=cache,
            mirror=mirror,
            mirror_size=room,
            weights=weights,
            means=means,
            progress=progress,
            trust=trust,
        )
    trained = folder.trained_on(stimuli.sha256)
    if isinstance(predictions, RDMs):
        name = write_predicted_rdms(out, folder, predictions, in_training=trained)
        if as_json:
            say_json({"out": out, "n_stimuli": len(stimuli), "name": name})
            return
        say(f"{out}: {name}, {len(stimuli)} × {len(stimuli)} stimuli")
        return
    write_predictions(out, stimuli.ids, predictions, folder.target_names(), in_training=trained)
    if as_json:
        say_json({"out": out, "n_stimuli": len(stimuli), "n_targets": len(folder.target_names())})
        return
    say(f"{out}: {len(stimuli)} stimuli × {len(folder.target_names())} targets")


def score_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|PREDICTIONS …",
            help="A run folder, a file of predictions, or of algonauts2023: a submission; several runs are of one "
            "subject each.",
        ),
    ],
    data: Data,
    subject: Subject = None,
    target: Target = None,
    cache: RunCache = None,
    mirror: Mirror = None,
    mirror_size: MirrorSize = None,
    device: Device = "auto",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Score a run, or predictions, on data that it has not seen: the test split where there is one."""
    from featpipe.extraction import Means
    from featpipe.runs import score

    with showing_progress("extract", quiet=as_json) as progress:
        summary = score(
            sources,
            data,
            subject=subject,
            target=target,
            cache=cache,
            mirror=mirror,
            mirror_size=mirror_bytes(mirror, mirror_size),
            means=Means(device=device),
            progress=progress,
            trust=trust,
        )
    if as_json:
        say_json(summary)
        return
    show_subjects(summary)


def report_command(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    out: Annotated[str | None, typer.Option("--out", help="Instead of RUN/report.html.")] = None,
) -> None:
    """Write a run's report: one HTML file that holds all it shows."""
    from featpipe.report import write_report
    from featpipe.runs import RunFolder

    say(str(write_report(RunFolder.open(run).path, None if out is None else Path(out))))


def recipes_command(as_json: Json = False) -> None:
    """List the recipes, one line each."""
    from featpipe.recipes import load_recipe, recipe_files

    found = [load_recipe(str(path)) for path in recipe_files()]
    if as_json:
        rows = [{"name": r.name, "path": r.path, "summary": r.summary, "citation": r.citation} for r in found]
        say_json({"recipes": rows})
        return
    show_table(["recipe", "what it does"], [(recipe.name, recipe.summary) for recipe in found])


def _try_report(run: Path) -> str | None:
    """Write the report if what it needs is installed, and say so if not."""
    from featpipe.report import write_report

    try:
        return str(write_report(run))
    except MissingDependency as error:
        note(f"featpipe: no report.html: {error}")
        return None
