"""Scores as tables on the terminal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from featpipe.cli._console import note, say, show_table


def show_summary(summary: dict[str, Any]) -> None:
    """Print scores per group, each beside its ceiling and its share of the ceiling where that is known."""
    if "nulls" in summary:
        show_rdm_summary(summary)
        return
    columns = _columns(summary)
    heads = ["group", *(head for head, _ in columns)]
    groups = list(next(iter(summary["scores"].values()))["groups"])
    rows = [[group, *(_number(table["groups"].get(group)) for _, table in columns)] for group in groups]
    rows.append(["overall", *(_number(table["overall"]) for _, table in columns)])
    show_table(heads, rows, right=heads[1:])
    n_stimuli, n_folds = summary["n_stimuli"], summary["n_folds"]
    scored = summary.get("n_scored", n_stimuli)
    part = "" if scored == n_stimuli else f" ({scored} scored)"
    folds = f"{n_folds} fold{'' if n_folds == 1 else 's'}"
    say(f"{n_stimuli} stimuli{part}, {summary['n_targets']} targets, {folds}")
    if (source := summary.get("noise_ceiling_from")) not in (None, "targets"):
        say(f"ceiling: estimated, {source}")
    if inference := summary.get("inference"):
        _show_inference(inference)
    for what in ("predictions", "responses"):
        if count := summary.get(f"constant_{what}"):
            note(f"featpipe: {count} {what} (of a target in a fold) are constant and score r = 0.")


def _columns(summary: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return head and values of the columns: each raw score, then its ceiling, then its share of the ceiling."""
    scores = summary["scores"]
    beside = {
        "pearson_r": (summary.get("noise_ceiling_r"), summary.get("noise_normalized_r")),
        "r2": (summary.get("noise_ceiling"), scores.get("noise_normalized_r2")),
    }
    columns = []
    for metric, table in scores.items():
        if metric == "noise_normalized_r2" and "r2" in scores:
            continue
        columns.append((metric, table))
        ceiling, share = beside.get(metric, (None, None))
        columns += [("ceiling", ceiling)] if ceiling else []
        columns += [("of ceiling", share)] if share else []
    return columns


def _show_inference(inference: dict[str, Any]) -> None:
    interval, chance, found = inference["interval"], inference["permutation"], inference["significant"]
    low, high = interval["overall"]
    say(
        f"mean r: {100 * interval['level']:g} % interval {_number(low)} to {_number(high)} ({interval['n']} "
        f"bootstraps of stimuli), p = {_number(chance['overall'])} ({chance['n']} permutations)"
    )
    say(
        f"{found['overall']} of {found['n_tested']} targets above chance at a false discovery rate of {found['q']:g} "
        f"({found['correction'].upper()})"
    )


def show_rdm_summary(summary: dict[str, Any]) -> None:
    """Print the scores of predicted RDMs, a column per target, with their chance levels and ceilings."""
    targets = summary["nulls"]["targets"]
    columns = [_rdm_column(summary, name, found) for name, found in targets.items()]
    rows = [[label, *(column[label] for column in columns)] for label in columns[0]]
    heads = [name or "RDMs" for name in targets]
    show_table(["", *heads], rows, right=heads)
    folds = f"{summary['n_folds']} fold{'' if summary['n_folds'] == 1 else 's'}"
    say(f"{summary['n_stimuli']} stimuli, {summary['nulls']['n']} permutations, {folds}")
    if summary["n_folds"] > 1:
        say("The percent is the mean of those of each fold and stimulus set, not R² over the ceiling shown.")
    for name, found in (summary.get("official") or {}).get("sets", {}).items():
        for track, percent in found["tracks"].items():
            if percent["percent"] is None:  # only one of its targets was predicted
                continue
            shown = f"{_number(percent['percent'], 2)} % of the ceiling"
            if percent["official_percent"] is not None:
                shown += f", {_number(percent['official_percent'], 2)} % of the official one"
            say(f"{name or 'these stimuli'}, {track} track: {shown}")


def _rdm_column(summary: dict[str, Any], name: str, found: dict[str, Any]) -> dict[str, str]:
    rho, chance, effects = found["rho"], found["permutation"], found["main_effects"]
    low, high = rho["interval"]
    centred = summary["scores"]["rdm_rho_centred"]["groups"][name]
    centred_r2 = summary["scores"]["rdm_r2_centred"]["groups"][name]
    return {
        "rho, mean over subjects": f"{_number(rho['mean'])} [{_number(low)}, {_number(high)}]",
        "subjects above zero": f"{rho['n_above_zero']} of {rho['n_subjects']}",
        "R²": _number(found["r2"]),
        "ceiling (lower)": f"{_number(found['ceiling'])} ({_number(found['ceiling_lower'])})",
        "percent of the ceiling": _number(found["percent"], 2),
        "  permuted stimuli: mean, 95th": f"{_number(chance['percent_mean'], 2)}, {_number(chance['percent_p95'], 2)}",
        "  p of R², of rho (permutation)": f"{_number(chance['p'])}, {_number(rho['p'])}",
        "  random main effects: mean, 95th": (
            f"{_number(effects['percent_mean'], 2)}, {_number(effects['percent_p95'], 2)}"
        ),
        "  p of R² (random main effects)": _number(effects["p"]),
        "without main effects: rho, R²": f"{_number(centred)}, {_number(centred_r2)}",
    }


def show_chosen(chosen: dict[str, Any]) -> None:
    """Print what a search chose: how many folds took each value, and which the saved pipeline has."""
    for name in chosen.get("saved", ()):
        taken = Counter(json.dumps(fold[name], ensure_ascii=False) for fold in chosen["folds"])
        counts = ", ".join(
            f"{value} in {count} of {taken.total()} folds" for value, count in taken.most_common()
        )
        say(f"{name}: {counts}; saved {json.dumps(chosen['saved'][name], ensure_ascii=False)}")


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def show_tuned(about: Mapping[str, Any] | None) -> None:
    """Show what the saved network was tuned to, of a run that has one."""
    if about is None:
        return
    folds, held_out = about["validation_folds"], about["n_validation"]
    by = (
        f"by the mean of {folds} folds"
        if folds
        else f"by {held_out} held-out stimuli"
        if held_out
        else "the last"
    )
    trained = f"{about['n_trained']:,} parameters on {about['n_fitted']} stimuli at rate {about['learning_rate']:.3g}"
    if about["best_epoch"]:
        done = f"epoch {about['best_epoch']} of {about['n_epochs']} ({by}), {trained}"
    else:
        done = (
            f"as it came, which is best ({by})"
            if about["n_epochs"] and held_out
            else "as it came, not trained"
        )
    say(f"network {about['model']}: {done}")
    if about["checkpoint"]:
        say(f"tuned weights: --model local:RUN/{about['checkpoint']}")
