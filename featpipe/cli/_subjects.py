"""``fit --subject all`` and scores of several subjects, on the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featpipe.cli._console import human_seconds, note, say, say_json, show_table
from featpipe.cli._progress import showing_stages
from featpipe.cli._scores import show_summary

if TYPE_CHECKING:
    from featpipe.extraction import Means
    from featpipe.runs import FitRequest, RunFolder


def fit_every_subject(
    request: FitRequest,
    means: Means,
    report: Callable[[Path], str | None],
    *,
    as_json: bool,
) -> None:
    """Fit a run for each subject and print a table over them.

    Parameters
    ----------
    request : FitRequest
    means : Means
    report : callable (run folder) -> path of its report or None
    as_json : bool
    """
    from featpipe.runs import RunFolder, fit_subjects

    reports: dict[str, str | None] = {}

    def after(name: str, run: RunFolder, kept: bool) -> None:
        if not kept:
            reports[name] = report(run.path)
        if not as_json:
            say(f"{name}: {'kept' if kept else _times(run)}")

    with showing_stages(quiet=as_json) as stage:
        runs = fit_subjects(
            request,
            after=after,
            means=means,
            progress=stage("extract"),
            fold_progress=stage("folds"),
            tell=None if as_json else note,
        )
    summary = RunFolder(request.out).read_json("subjects.json")
    if as_json:
        say_json({"runs": {name: str(run.path) for name, run in runs.items()}, "reports": reports, **summary})
        return
    show_subjects(summary)


def show_subjects(summary: dict[str, Any]) -> None:
    """Print scores per subject, and the challenge's score over all vertices where it is known."""
    show_summary(summary)
    if official := summary.get("algonauts2023"):
        show_official(official)


def show_official(official: dict[str, Any]) -> None:
    """Print the score of the 2023 challenge, and what stands beside it."""
    score = f"{official['aggregate']} {official['score']:.2f} %, median {official['median']:.2f} %"
    say(f"Algonauts 2023 over {official['n_vertices']} vertices: {score}")
    if len(official["subjects"]) > 1:
        say(_named(official["subjects"]))
    say(_named(official["hemispheres"]))
    rows = [[name, "-" if value is None else f"{value:.2f}"] for name, value in official["rois"].items()]
    show_table(["region", "score %"], rows, right=["score %"])
    beside = f"{official['n_zero_ceiling']} vertices have a ceiling of 0 and score 100 for any r above 0"
    if official["without_zero_ceiling"] is not None:
        beside += f"; without them {official['without_zero_ceiling']:.2f} %"
    if official["noise_score"] is not None:
        beside += f"; noise would score {official['noise_score']:.2f} %"
    say(beside + ".")


def _named(scores: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {'-' if value is None else f'{value:.2f}'}" for name, value in scores.items())


def _times(run: RunFolder) -> str:
    seconds = run.read_json("run.json")["seconds"]
    return ", ".join(f"{stage} {human_seconds(value)}" for stage, value in seconds.items())
