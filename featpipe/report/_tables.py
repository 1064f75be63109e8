"""The rows of the report's tables, as text ready to be shown."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featpipe.report._read import Run, split_group

LABELS = {
    "pearson_r": "r",
    "r2": "R²",
    "noise_normalized_r2": "R² / ceiling",
}
_HIDDEN = {"folds", "citation", "summary"}  # long lists of ids; shown elsewhere


@dataclass(frozen=True)
class GroupRow:
    """One row of the table of scores, ``scores`` as in `score_heads`."""

    region: str
    hemisphere: str
    first: bool
    n_targets: str
    scores: list[str]


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with a true minus sign, and an absent one as a dash."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return (text if float(text) else text.lstrip("-")).replace("-", "−")


def count(value: int | None) -> str:
    """Write a whole number with thin gaps between thousands, and an absent one as a dash."""
    return "–" if value is None else f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def label(metric: str) -> str:
    """Return the short name of a metric."""
    return LABELS.get(metric, metric)


def raw_metrics(run: Run) -> list[str]:
    """Metrics that are not divided by the ceiling, in the order of the columns."""
    return [metric for metric in run.metrics if metric != "noise_normalized_r2"]


def overall_row(run: Run) -> GroupRow:
    """The last row: all targets."""
    return _row(run, None, "All targets", "", True, len(run.per_target))


def group_rows(run: Run) -> list[GroupRow]:
    """One row per group; the region is written once where both hemispheres follow each other."""
    rows = []
    before = None
    for group in run.groups:
        region, hemisphere = split_group(group)
        size = len(run.members.get(group, ()))
        rows.append(_row(run, group, region, hemisphere, region != before, size))
        before = region
    return rows


def _row(run: Run, group: str | None, region: str, hemisphere: str, first: bool, size: int) -> GroupRow:
    return GroupRow(
        region=region,
        hemisphere=hemisphere,
        first=first,
        n_targets=count(size),
        scores=[text for _, text in _cells(run, group)],
    )


def score_heads(run: Run) -> list[str]:
    """Heads of the columns of scores: each raw score, its interval, its ceiling and its share of the ceiling."""
    return [head for head, _ in _cells(run, None)]


def _cells(run: Run, group: str | None) -> list[tuple[str, str]]:
    """Head and text of each column of one row."""
    cells = []
    for metric in raw_metrics(run):
        cells.append((label(metric), number(run.score(metric, group))))
        if metric == "pearson_r":
            cells += _beside_r(run, group)
        elif metric == "r2" and run.ceiling() is not None:
            cells.append(("Ceiling of R²", number(run.ceiling(group))))
            cells.append((label("noise_normalized_r2"), number(run.score("noise_normalized_r2", group))))
    if (found := run.significant) is not None:
        cells.append(("Above chance", count(_of(found, group))))
    return cells


def _beside_r(run: Run, group: str | None) -> list[tuple[str, str]]:
    cells = []
    if run.intervals is not None:
        cells.append((f"{percent(run.intervals['level'])} interval", interval(_of(run.intervals, group))))
    if run.ceiling() is not None and run.ceiling_of_r() is not None:
        cells.append(("Ceiling of r", number(run.ceiling_of_r(group))))
    if run.normalised_r() is not None:
        cells.append(("r / ceiling", number(run.normalised_r(group))))
    return cells


def _of(table: Mapping[str, Any], group: str | None) -> Any:
    return table.get("overall") if group is None else _mapping(table.get("groups")).get(group)


def percent(share: float) -> str:
    """Write a share as a percentage that does not break over lines."""
    return f"{100 * share:g}\N{NARROW NO-BREAK SPACE}%"


def interval(ends: Sequence[float | None] | None) -> str:
    """Write an interval, and an absent one as a dash."""
    return "–" if not ends or None in ends else f"[{number(ends[0])}, {number(ends[1])}]"


def fold_rows(run: Run) -> list[dict[str, Any]]:
    """Mean over targets in each fold, and how many images it held out."""
    held_out = [len(ids) for ids in run.record.get("folds") or []]
    means = run.scores.pivot_table(index="fold", columns="metric", values="value", aggfunc="mean")
    metrics = [metric for metric in run.metrics if metric in means]
    rows = []
    for row, (fold, values) in enumerate(means.iterrows()):
        size = str(held_out[row]) if row < len(held_out) else "–"
        name = str(int(fold) + 1) if isinstance(fold, int) else str(fold)
        rows.append({"fold": name, "n_stimuli": size, "scores": [number(values[m]) for m in metrics]})
    return rows


def fold_metrics(run: Run) -> list[str]:
    """Columns of `fold_rows`."""
    there = run.scores["metric"].unique()
    return [metric for metric in run.metrics if metric in there]


def headline(run: Run) -> list[tuple[str, str, str]]:
    """The figures on top: value, name, explanation."""
    figures = [
        (number(run.score(metric)), label(metric), "mean over targets, held-out images")
        for metric in raw_metrics(run)[:2]
    ]
    if (ceiling := run.ceiling()) is not None:
        figures.append((number(ceiling), "noise ceiling", "explainable share of variance (R²)"))
    if (share := run.normalised_r()) is not None:
        figures.append((number(share), "r / ceiling", "mean r over mean ceiling of r"))
    if (share := run.score("noise_normalized_r2")) is not None:
        figures.append((number(share), "R² / ceiling", "mean R² over mean ceiling"))
    return figures


def inference(run: Run) -> dict[str, str] | None:
    """How sure the scores are, for a sentence; None where nothing was drawn."""
    if run.intervals is None or run.significant is None or run.chance is None:
        return None
    found, chance = run.significant, run.chance
    return {
        "n_draws": count(run.intervals.get("n")),
        "level": percent(run.intervals["level"]),
        "interval": interval(run.intervals.get("overall")),
        "n_permutations": count(chance.get("n")),
        "p": number(chance.get("overall")),
        "n_found": count(found.get("overall")),
        "n_tested": count(found.get("n_tested")),
        "q": percent(found["q"]),
        "correction": {"bh": "Benjamini–Hochberg", "by": "Benjamini–Yekutieli"}.get(found["correction"], ""),
    }


def features(run: Run) -> list[list[str]]:
    """Model, layer, reduction, values per image, weights and cache key of each feature array."""
    rows = []
    for feature in run.record.get("features") or []:
        if not isinstance(feature, Mapping):
            continue
        spec = feature.get("spec") or {}
        weights = feature.get("weights_label") or feature.get("weights_asked") or spec.get("weights", "")[:12]
        values = feature.get("values")
        rows.append(
            [
                str(spec.get("model", "–")),
                str(spec.get("layer", "–")),
                str(spec.get("reduction", "none")),
                count(values),
                str(weights),
                str(feature.get("key", ""))[:12],
            ]
        )
    return rows


def facts(run: Run) -> list[tuple[str, str]]:
    """What was run, on what, when and with what, in the order of interest."""
    record, data = run.record, _mapping(run.record.get("data"))
    recipe = _mapping(run.record.get("recipe"))
    return [
        (name, text)
        for name, text in (
            ("Data", _first(data.get("given"), record.get("data"))),
            ("Subject", data.get("subject")),
            ("Targets", data.get("target")),
            ("Stimulus set", _short(data.get("stimuli"))),
            ("Recipe", _first(recipe.get("path"), record.get("recipe"))),
            ("Recipe SHA-256", _short(recipe.get("sha256"))),
            ("Evaluation", _cv(record.get("cv"), run.summary.get("n_folds"))),
            ("Constant predictions", run.summary.get("constant_predictions")),
            ("Pipeline", " → ".join(_mapping(record.get("pipeline")).values())),
            ("Time", _listed(record.get("seconds"), " s")),
            ("Finished", record.get("finished")),
            ("Versions", _listed(record.get("versions"))),
            ("Threads", _listed(record.get("threads"))),
        )
        if text not in (None, "", {}, [])
        for text in [str(text)]
    ]


def command(run: Run) -> str:
    """The command that does it again, quoted for a shell, an option a line.

    It writes beside this run, because `featpipe fit` does not overwrite one unasked.
    """
    record = run.record
    if given := record.get("command"):
        return given if isinstance(given, str) else shlex.join(map(str, given))
    recipe, data = _mapping(record.get("recipe")), _mapping(record.get("data"))
    path = str(_first(recipe.get("path"), recipe.get("name"), record.get("recipe")))
    options = [
        ("--data", _first(data.get("given"), record.get("data"))),
        ("--subject", data.get("subject")),
        ("--target", data.get("target")),
        ("--cache", record.get("cache")),
        ("--cv", record.get("cv")),
        *_settings(record),
        ("--out", f"{run.path}-again"),
    ]
    lines = [shlex.join([option, str(value)]) for option, value in options if value is not None]
    return " \\\n    ".join([shlex.join(["featpipe", "fit", path]), *lines])


def _settings(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    given = _mapping(record.get("given"))
    return [
        (f"--{kind}", f"{key}={json.dumps(value)}")
        for kind in ("set", "search")
        for key, value in _mapping(given.get(kind)).items()
    ]


def details(run: Run) -> str:
    """The record itself, for whatever is not shown above."""
    shown = {key: value for key, value in run.record.items() if key not in _HIDDEN}
    return json.dumps(shown, indent=2, ensure_ascii=False)


def _cv(cv: Any, n_folds: Any) -> str | None:
    if cv is None and n_folds is None:
        return None
    folds = f"{n_folds} fold{'' if n_folds == 1 else 's'}" if n_folds else ""
    return folds if cv is None or str(cv) == str(n_folds) else f"{cv} ({folds})"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _first(*values: Any) -> Any:
    return next((v for v in values if v not in (None, "") and not isinstance(v, Mapping)), None)


def _short(digest: Any) -> str | None:
    return None if not digest else str(digest)[:12]


def _listed(value: Any, unit: str = "") -> str | None:
    if not isinstance(value, Mapping):
        return None
    return ", ".join(f"{name} {item}{unit}" for name, item in value.items())


def columns(metrics: Sequence[str]) -> list[str]:
    """Heads of the columns of some metrics."""
    return [label(metric) for metric in metrics]
