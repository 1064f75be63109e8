"""Write the report of a run."""

from __future__ import annotations

from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

from featpipe import __version__
from featpipe.errors import MissingDependency, RequestError
from featpipe.files import written_whole
from featpipe.report import _rdm_tables as rdm_tables
from featpipe.report import _tables as tables
from featpipe.report._rdm_read import TargetResult, nulls_of, read_matrices, read_stage_tuning, read_targets
from featpipe.report._read import Run, read_run


def write_report(run_folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run as one HTML file that needs nothing else.

    Parameters
    ----------
    run_folder : path
        Written by `featpipe fit`; holds ``run.json``, ``summary.json`` and ``scores.csv``.
    out : path, optional
        ``report.html`` in the run folder unless given.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    RecipeError
        When the folder is no run or is damaged.
    RequestError
        When `out` is a folder.
    MissingDependency
        When jinja2 or matplotlib is not installed.
    """
    run = read_run(run_folder)
    target = Path(out) if out is not None else run.path / "report.html"
    if target.is_dir():
        raise RequestError(f"--out {target} is a folder; name a file, such as {target / 'report.html'}.")
    page = _render(run)
    with written_whole(target) as file:
        file.write(page.encode())
    return target


def _render(run: Run) -> str:
    _optional("matplotlib")
    name, results = ("rdms.html", _rdms) if run.predicts_rdms else ("report.html", _responses)
    page: str = environment().get_template(name).render(**_content(run), **results(run))
    return page


def environment() -> Any:
    """Return what fills templates in; every value is escaped."""
    jinja2 = _optional("jinja2")
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template(name: str) -> str:
    return files("featpipe.report").joinpath(name).read_text("utf-8")


def _content(run: Run) -> dict[str, Any]:
    recipe = run.record.get("recipe")
    name = recipe.get("name", "run") if isinstance(recipe, dict) else recipe or "run"
    data = run.record.get("data")
    return {
        "title": str(name),
        "dataset": str(data.get("name", "")) if isinstance(data, dict) else str(data or ""),
        "says": run.record.get("summary") or "",
        "citation": run.record.get("citation") or "",
        "sizes": _sizes(run),
        "features": tables.features(run),
        "tuned": import_module("featpipe.report._tuned").tuned_network(run),  # matplotlib
        "facts": tables.facts(run),
        "command": tables.command(run),
        "details": tables.details(run),
        "version": __version__,
    }


def _sizes(run: Run) -> list[tuple[str, str]]:
    of = "subjects" if run.predicts_rdms else "targets"
    sizes = [(run.summary.get(f"n_{what}"), what) for what in ("stimuli", of, "folds")]
    return [(tables.count(size), what) for size, what in sizes if size is not None]


def _responses(run: Run) -> dict[str, Any]:
    """What only a run that predicts responses shows."""
    plots = import_module("featpipe.report._plots")  # matplotlib
    groups = tables.group_rows(run)
    return {
        "headline": tables.headline(run),
        "metrics": tables.score_heads(run),
        "groups": groups,
        "overall": tables.overall_row(run),
        "has_ceiling": run.ceiling() is not None,
        "ceiling_is_estimated": run.ceiling_is_estimated,
        "inference": tables.inference(run),
        "has_hemispheres": any(row.hemisphere for row in groups),
        "fold_metrics": tables.columns(tables.fold_metrics(run)),
        "folds": tables.fold_rows(run),
        "main_metric": tables.label(run.main_metric),
        "by_group": plots.scores_by_group(run),
        "histogram": plots.histogram(run),
        "ceiling_mark": plots.ceiling_of(run, None) is not None,
        "ceiling_is_root": run.main_metric == "pearson_r",
    }


def _rdms(run: Run) -> dict[str, Any]:
    """What only a run that predicts RDMs shows."""
    plots = import_module("featpipe.report._rdm_plots")  # matplotlib
    targets, matrices, stages = read_targets(run), read_matrices(run), read_stage_tuning(run)
    return {
        "targets": [_rdm_target(target, plots) for target in targets],
        "several": len(targets) > 1,
        "n_draws": tables.count(nulls_of(run).get("n")),
        "folds": rdm_tables.fold_rows(run),
        "fold_metrics": [label for _, label in rdm_tables.FOLD_METRICS],
        "matrices": plots.matrices(matrices),
        "stage_tuning": plots.stage_tuning(stages),
        "chosen": rdm_tables.chosen_rows(run),
    }


def _rdm_target(target: TargetResult, plots: ModuleType) -> dict[str, Any]:
    return {
        "name": target.name,
        "headline": rdm_tables.headline(target),
        "wrong_sign": target.rho is not None and target.rho < 0,
        "measures": rdm_tables.measure_rows(target),
        "t_test": rdm_tables.p_value(target.number("t_test_p")),
        "permutation_p": rdm_tables.p_value(target.number("permutation", "p")),
        "chance": plots.chance_and_ceiling(target),
        "subjects": plots.subjects(target),
        "has_band": target.interval("permutation", "rho_interval") is not None,
    }


def _optional(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependency(f"Reports need {name}: pip install 'featpipe[report]'.") from error
