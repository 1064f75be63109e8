"""``featpipe compare``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from featpipe.cli._console import note, say, say_json, show_table
from featpipe.cli._options import Cache, Json, Mirror, MirrorSize, Split, Subject, cache_with
from featpipe.errors import MissingDependency

if TYPE_CHECKING:
    from featpipe.runs import ComparisonFolder, LayerComparison

_FEW = 20  # differences that are printed one by one
_ALPHA = 0.05
NOT_HELD_OUT = (
    "These scores describe the layers; the highest of them is no held-out score, since choosing a layer and scoring "
    "it used the same data. To choose inside training sets: featpipe fit baseline_algonauts2019 --search "
    '\'features__layers=[["A"], ["B"]]\'.'
)


def compare_command(
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="DATA", help="Measured RDMs: algonauts2019:DIR, or table:DIR with rdms."
        ),
    ],
    target: Annotated[
        list[str] | None, typer.Option("--target", help="Such as EVC; may be repeated. All by default.")
    ] = None,
    cache: Cache = "cache",
    mirror: Mirror = None,
    mirror_size: MirrorSize = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="ZOO:NAME", help="May be repeated; by default the only one cached."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", help="As given to extract: once for all models, or once for each."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers", metavar="PATTERN", help="Layer name or glob; may be repeated. All by default."
        ),
    ] = None,
    reduce: Annotated[
        str | None, typer.Option("--reduce", help="The reduction that was cached, such as none or grid:4.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="preprocess, precision, store_dtype or model_args of the features.",
        ),
    ] = None,
    subject: Subject = None,
    split: Split = None,
    metric: Annotated[
        str,
        typer.Option("--metric", help="Of the layers' RDMs: correlation, cosine, euclidean or sqeuclidean."),
    ] = "correlation",
    method: Annotated[
        str,
        typer.Option(
            "--method", help="Of comparing RDMs: spearman, pearson, cosine, rho_a or kendall (slow)."
        ),
    ] = "spearman",
    over: Annotated[
        str,
        typer.Option(
            "--over",
            help="What intervals and differences should hold for: other subjects, stimuli or both (slow).",
        ),
    ] = "subjects",
    correction: Annotated[
        str, typer.Option("--correction", help="Of p for their number: fdr, holm, bonferroni or none.")
    ] = "fdr",
    draws: Annotated[
        int, typer.Option("--draws", min=1, help="Bootstrap samples, and permutations of the stimuli.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of draws and permutations.")] = 0,
    layer_by_layer: Annotated[
        bool, typer.Option("--second-order", help="Also compare layers with layers.")
    ] = False,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FOLDER", help="Write CSV tables, a plot and compare.json.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a comparison that is in --out.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare cached layers with measured RDMs: scores, ceilings, intervals, tests of all differences."""
    from featpipe.recipes import parse_assignment
    from featpipe.runs import CompareRequest, ComparisonFolder, compare_layers

    request = CompareRequest(
        data=data,
        cache=cache_with(cache, mirror, mirror_size),
        targets=target or (),
        models=model or (),
        weights=weights or (),
        layers=layers or ("**",),
        reduce=reduce,
        settings=dict(map(parse_assignment, settings or ())),
        subject=subject,
        split=split,
        metric=metric,
        method=method,
        over=over,
        correction=correction,
        n=draws,
        seed=seed,
        layer_by_layer=layer_by_layer,
    )
    folder = None if out is None else ComparisonFolder.create(out, overwrite=overwrite)
    found = compare_layers(request)
    files = [] if folder is None else _written(folder, found)
    if as_json:
        say_json(found.to_json() | ({"out": out, "files": files} if files else {}))
        return
    _show(found)
    if files:
        say(f"{out}: {', '.join(files)}")


def _written(folder: ComparisonFolder, found: LayerComparison) -> list[str]:
    """Write the folder, and say so if there is no plot."""
    try:
        folder.write(found)
    except MissingDependency as error:
        note(f"featpipe: {error}")
    return folder.files()


def _show(found: LayerComparison) -> None:
    _show_scores(found)
    if len(found.tests.pairs) * len(found.tests.targets) <= _FEW:
        say("")
        _show_differences(found)
    say("")
    for column, target in enumerate(found.tests.targets):
        say(_told_apart(found, column, target))
    if found.between is not None:
        say("")
        _show_between(found)
    say("")
    say(NOT_HELD_OUT)


def _show_scores(found: LayerComparison) -> None:
    """Print layers × targets, each score with its interval and p, and the ceilings below."""
    tests = found.tests
    p_name = "p" if tests.correction == "none" else f"p ({tests.correction})"
    columns = [text for target in tests.targets for text in (target or "RDM", p_name)]
    rows = [
        [
            name,
            *(
                cell
                for column in range(len(tests.targets))
                for cell in (_score(found, row, column), _number(found.p_corrected[row, column]))
            ),
        ]
        for row, name in enumerate(tests.models)
    ]
    for name, ceilings in zip(("ceiling, lower", "ceiling, upper"), found.ceilings, strict=True):
        rows.append([name, *(cell for value in ceilings for cell in (_number(value), ""))])
    show_table(["layer", *columns], rows)
    subjects = " / ".join(map(str, dict.fromkeys(found.n_subjects.values())))
    sets = "" if len(found.sets) == 1 else f", within {len(found.sets)} stimulus sets, mean over sets"
    say(
        f"{tests.method} of {found.metric} RDMs with {subjects} subjects each{sets}; {found.n_stimuli} stimuli. "
        f"[95 % bootstrap over {found.drawn}], p one-sided by permutation of the stimuli"
        f"{' (with rho_a)' if tests.method == 'kendall' else ''}, {tests.n} draws."
    )
    if tests.over == "subjects":
        say(
            "Intervals and differences hold for other subjects and these stimuli; --over both: for others of both."
        )


def _score(found: LayerComparison, row: int, column: int) -> str:
    low, high = found.tests.intervals[row, column]
    return f"{_number(found.tests.scores[row, column])} [{_number(low)}, {_number(high)}]"


def _show_differences(found: LayerComparison) -> None:
    tests = found.tests
    rows = []
    for column, target in enumerate(tests.targets):
        for row, (first, second) in enumerate(tests.pairs):
            numbers = (table[row, column] for table in (tests.differences, tests.p, tests.p_corrected))
            rows.append(
                [target or "RDM", f"{tests.models[first]} − {tests.models[second]}", *map(_number, numbers)]
            )
    show_table(["target", "layers", "difference", "p", f"p ({tests.correction})"], rows)


def _told_apart(found: LayerComparison, column: int, target: str) -> str:
    """Say how many layers differ, and which are as good as the highest for all that these data say."""
    tests = found.tests
    p = tests.p_corrected[:, column]
    differ = int((p <= _ALPHA).sum())
    says = f"{target or 'RDM'}: {differ} of {len(p)} differences between layers have p ≤ {_ALPHA} ({tests.correction})"
    scores = tests.scores[:, column]
    if all(map(math.isnan, scores)):
        return f"{says}; no layer has a score."
    best = max(
        range(len(scores)), key=lambda layer: -math.inf if math.isnan(scores[layer]) else scores[layer]
    )
    near = [
        tests.models[first if second == best else second]
        for (first, second), value in zip(tests.pairs, p, strict=True)
        if best in (first, second) and value > _ALPHA
    ]
    others = f"not told apart from {', '.join(near)}" if near else "told apart from every other"
    return f"{says}; the highest, {tests.models[best]}, is {others}."


def _show_between(found: LayerComparison) -> None:
    assert found.between is not None
    names = [str(name) for name in found.between.index]
    numbers = [str(place) for place in range(1, len(names) + 1)]
    rows = [
        [number, name, *(_number(value, 2) for value in values)]
        for number, name, values in zip(numbers, names, found.between.to_numpy(), strict=True)
    ]
    show_table(["", "layers with layers", *numbers], rows, right=numbers)


def _number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
