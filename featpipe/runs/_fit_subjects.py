"""Fit a recipe to every subject of some data: one run folder each, and their scores side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from featpipe.datasets import subjects_of
from featpipe.errors import RecipeError
from featpipe.files import check_folder
from featpipe.runs._fit import FitRequest, fit
from featpipe.runs._folder import RunFolder
from featpipe.runs._subjects import is_finished

SUMMARY = "subjects.json"


def fit_subjects(
    request: FitRequest,
    *,
    after: Callable[[str, RunFolder, bool], None] | None = None,
    **how: Any,
) -> dict[str, RunFolder]:
    """Run a recipe for each subject, into ``OUT/SUBJECT``, going on where an earlier call stopped.

    Parameters
    ----------
    request : FitRequest
        Its `subject` is ignored. Without `overwrite`, runs that were finished are kept.
    after : callable (subject, run, whether it was kept), optional
        Called once a subject is done.
    **how
        ``means``, ``progress`` and whatever else `fit` takes.

    Returns
    -------
    dict of str to RunFolder
        By subject. ``OUT/subjects.json`` has their scores, see `subjects_summary`.

    Raises
    ------
    RecipeError
        ``OUT`` is a run itself, or a run in it was made by another request.
    DatasetError
        The data do not tell subjects apart.
    """
    out = Path(request.out)
    check_folder(out)
    if is_finished(out):
        raise RecipeError(f"{out} is the run of one subject. Name another --out for the runs of all of them.")
    each = {name: replace(request, subject=name, out=str(out / name)) for name in subjects_of(request.data)}
    kept = [name for name, one in each.items() if is_finished(one.out) and not request.overwrite]
    for name in kept:
        _refuse_other_request(RunFolder.open(each[name].out), request)
    runs: dict[str, RunFolder] = {}
    for name, one in each.items():
        runs[name] = RunFolder.open(one.out) if name in kept else fit(one, **how)
        if after is not None:
            after(name, runs[name], name in kept)
    summaries = {name: run.read_json("summary.json") for name, run in runs.items()}
    RunFolder(out).write_json(SUMMARY, subjects_summary(summaries))
    return runs


def subjects_summary(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Put the summaries of several subjects together.

    Parameters
    ----------
    summaries : mapping of subject to the content of its ``summary.json``

    Returns
    -------
    dict
        As ``summary.json``, with the subjects as groups; overall is the mean over all targets of all subjects.
    """
    first = next(iter(summaries.values()))
    tables = {
        metric: {name: summary["scores"].get(metric) for name, summary in summaries.items()}
        for metric in first["scores"]
    }
    n_targets = {name: int(summary["n_targets"]) for name, summary in summaries.items()}
    together: dict[str, Any] = {
        "scores": {metric: _over_subjects(found, n_targets) for metric, found in tables.items()}
    }
    for name in ("noise_ceiling", "noise_ceiling_r", "noise_normalized_r"):
        found = {subject: summary.get(name) for subject, summary in summaries.items()}
        if any(found.values()):
            together[name] = _over_subjects(found, n_targets)
    _renormalise(together)
    counts = ("n_stimuli", "n_scored", "n_targets", "constant_predictions", "constant_responses")
    together |= {
        count: sum(int(summary.get(count, 0)) for summary in summaries.values())
        for count in counts
        if count in first
    }
    return together | {"n_folds": first["n_folds"], "n_subjects": len(summaries)}


def _renormalise(together: dict[str, Any]) -> None:
    """Make normalised scores over subjects what they are within one: a ratio of means, not a mean of ratios."""
    scores = together["scores"]
    for share, score, ceiling in (
        (scores.get("noise_normalized_r2"), scores.get("r2"), together.get("noise_ceiling")),
        (together.get("noise_normalized_r"), scores.get("pearson_r"), together.get("noise_ceiling_r")),
    ):
        if share and score and ceiling and ceiling["overall"] and score["overall"] is not None:
            share["overall"] = score["overall"] / ceiling["overall"]


def _over_subjects(tables: Mapping[str, Any], n_targets: Mapping[str, int]) -> dict[str, Any]:
    groups = {name: None if table is None else table["overall"] for name, table in tables.items()}
    known = {name: value for name, value in groups.items() if value is not None}
    weight = sum(n_targets[name] for name in known)
    overall = sum(n_targets[name] * value for name, value in known.items()) / weight if weight else None
    return {"overall": overall, "groups": groups}


def _refuse_other_request(run: RunFolder, request: FitRequest) -> None:
    """Refuse to stand beside a run of another recipe, other parameters, data or targets."""
    record, recipe = run.read_json("run.json"), request.recipe
    folds = {str(request.cv)} if request.cv is not None else {str(recipe.cv), "splits"}
    given = json.loads(json.dumps(dict(request.given), default=str))
    differs = [
        what
        for what, same in {
            "recipe": record["recipe"]["sha256"] == recipe.sha256,
            "data": record["data"]["given"] == request.data,
            "target": recipe.predicts == "rdms" or record["data"]["target"] == request.target,
            "folds": record["cv"] in folds,
            "surface": record["data"].get("surface", request.surface) == request.surface,
            "parameters": record["given"] == given,
        }.items()
        if not same
    ]
    if differs:
        raise RecipeError(
            f"{run.path} holds a run that differs in {', '.join(differs)}. Name another --out, or say --overwrite to "
            "replace it."
        )
