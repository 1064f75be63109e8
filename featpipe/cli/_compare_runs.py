"""``featpipe compare-runs``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from featpipe.cli._console import say, say_json, show_table
from featpipe.cli._options import Json
from featpipe.errors import RequestError


def compare_runs_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="CONTROL RUN …",
            help="Run folders (or folders of one run a subject) that predict the same responses; the control first, "
            "such as the untuned network.",
        ),
    ],
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="Gain of r above which a target counts as improved.")
    ] = 0.01,
    draws: Annotated[int, typer.Option("--draws", min=2, help="Bootstrap samples.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draws.")] = 0,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE.csv", help="Write the table with all digits.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs with a control: mean r, gain and targets improved, by group of regions, with intervals."""
    from featpipe.files import written_whole
    from featpipe.runs import compare_runs, gains_table

    if out is not None and Path(out).suffix != ".csv":
        raise RequestError(f"--out {out} must be a .csv file.")
    rows = compare_runs(runs, tolerance=tolerance, n_draws=draws, seed=seed)
    if out is not None:
        with written_whole(Path(out)) as file:
            file.write(gains_table(rows).to_csv(index=False, float_format="%.7g").encode())
    if as_json:
        shown = [{"run": row.run, "group": row.group, **asdict(row.gain)} for row in rows]
        say_json({"control": runs[0], "tolerance": tolerance, "draws": draws, "seed": seed, "rows": shown})
        return
    _show(runs, rows, tolerance, draws)
    if out is not None:
        say(out)


def _show(runs: list[str], rows: list[Any], tolerance: float, draws: int) -> None:
    names = _names(runs)
    heads = [
        "group",
        "targets",
        "control",
        "r",
        "gain",
        "over targets",
        "over stimuli",
        "improved %",
        "worse %",
    ]
    for run in dict.fromkeys(row.run for row in rows):
        say(f"{names[run]} against {names[runs[0]]}")
        show_table(heads, [_cells(row) for row in rows if row.run == run], right=heads[1:])
        say("")
    say(
        f"Improved: r higher by more than {tolerance:g}. Intervals of 95 %: of the gain over targets and over stimuli, "
        f"of the percent over targets; {draws} bootstraps each."
    )
    if any(row.gain.over_stimuli is None for row in rows):
        say("No interval over stimuli: a run kept no held-out predictions.")


def _cells(row: Any) -> list[str]:
    gain = row.gain
    stimuli = "-" if gain.over_stimuli is None else _interval(gain.over_stimuli, "+.4f")
    improved = f"{gain.improved:.1f} {_interval(gain.improved_interval, '.1f')}"
    numbers = [f"{gain.control:.4f}", f"{gain.r:.4f}", f"{gain.gain:+.4f}"]
    return [
        *(row.group, str(gain.n_targets), *numbers),
        *(_interval(gain.over_targets, "+.4f"), stimuli, improved, f"{gain.worsened:.1f}"),
    ]


def _interval(ends: tuple[float, float], form: str) -> str:
    return f"[{ends[0]:{form}}, {ends[1]:{form}}]"


def _names(runs: list[str]) -> dict[str, str]:
    """Name runs by their folders, as far as these tell them apart."""
    short = [Path(run).name for run in runs]
    return dict(zip(runs, short if len(set(short)) == len(runs) else runs, strict=True))
