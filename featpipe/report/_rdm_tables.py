"""The rows of the report's tables for runs on RDMs, as text ready to be shown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.report._rdm_read import TargetResult, nulls_of
from featpipe.report._read import Run
from featpipe.report._tables import count, number
from featpipe.rsa import stimulus_sets

FOLD_METRICS = (
    ("rdm_rho", "ρ"),
    ("rdm_r2", "R²"),
    ("rdm_percent", "% of ceiling"),
    ("rdm_ceiling", "upper"),
    ("rdm_ceiling_lower", "lower"),
    ("rdm_rho_centred", "ρ"),
    ("rdm_r2_centred", "R²"),
)
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SMALL_P = 0.0005  # below, three digits would show zero


@dataclass(frozen=True)
class MeasureRow:
    """One row of a target's table. Cells of chance levels are empty where they mean nothing.

    ``permuted`` and ``effects`` hold mean, 95th percentile and p; ``spread`` and ``permuted_spread`` are intervals
    of the value and of the chance level.
    """

    name: str
    meaning: str
    value: str
    spread: str = ""
    permuted: tuple[str, str, str] = ("", "", "")
    permuted_spread: str = ""
    effects: tuple[str, str, str] = ("", "", "")


def p_value(p: float | None) -> str:
    """Write a probability; a very small one in powers of ten."""
    if p is None or not 0 < p < _SMALL_P:
        return number(p)
    digits, _, power = f"{p:.1e}".partition("e")
    return f"{digits} × 10{str(int(power)).translate(_SUPERSCRIPT)}"


def interval(ends: tuple[float, float] | None, digits: int = 3) -> str:
    """Write an interval in brackets; nothing where there is none."""
    return "" if ends is None else f"[{number(ends[0], digits)}, {number(ends[1], digits)}]"


def headline(target: TargetResult) -> list[tuple[str, str, str]]:
    """The figures on top: value, name, explanation."""
    above, of = target.above_zero
    spread = interval(target.interval("rho", "interval"))
    n_draws = nulls_of(target.run).get("n")
    chance = target.number("permutation", "percent_p95")
    return [
        (
            number(target.rho),
            "mean ρ",
            f"95 % over subjects {spread}" if spread else "signed, mean over subjects",
        ),
        (
            "–" if above is None else f"{above} of {count(of)}",
            "subjects above zero",
            "whose ρ, mean over folds, is positive",
        ),
        (
            percent(target.percent),
            "of the noise ceiling",
            f"R² {number(target.r2)} of {number(target.ceiling)}"
            + ("" if chance is None else f"; by chance up to {percent(chance)} (95th percentile)"),
        ),
        (
            p_value(target.number("rho", "p")),
            "permutation p of ρ",
            "one-sided" if n_draws is None else f"one-sided, {count(n_draws)} permutations of stimuli",
        ),
    ]


def measure_rows(target: TargetResult) -> list[MeasureRow]:
    """Each measure of a target with a sentence on what it is, and the chance levels beside it."""
    return [
        MeasureRow(
            "ρ",
            "Spearman’s correlation of predicted and measured dissimilarities, with its sign; mean over subjects. In "
            "brackets the 95 % interval over subjects, and of chance.",
            number(target.rho),
            interval(target.interval("rho", "interval")),
            permuted=(
                number(target.number("permutation", "rho_mean")),
                "",
                p_value(target.number("rho", "p")),
            ),
            permuted_spread=interval(target.interval("permutation", "rho_interval")),
        ),
        MeasureRow(
            "R²",
            "Mean over subjects of ρ². It is positive by chance and rewards the wrong sign and main effects of "
            "stimuli, which is why chance levels stand beside it.",
            number(target.r2),
            permuted=_chance(target, "permutation"),
            effects=_chance(target, "main_effects"),
        ),
        MeasureRow(
            "Percent of the ceiling",
            "R² over the upper ceiling of the same pairs, within each stimulus set and fold; then the mean.",
            percent(target.percent),
            permuted=_chance_percent(target, "permutation"),
            effects=_chance_percent(target, "main_effects"),
        ),
        MeasureRow(
            "Ceiling, upper",
            "R² of the mean RDM of all subjects, which knows the subject it is compared with.",
            number(target.ceiling),
        ),
        MeasureRow(
            "Ceiling, lower",
            "R² of the mean RDM of the other subjects.",
            number(target.ceiling_lower),
        ),
        MeasureRow(
            "ρ without main effects",
            "ρ after the additive part of each stimulus is removed from both RDMs: what is known about pairs.",
            number(target.score("rdm_rho_centred")),
        ),
        MeasureRow(
            "R² without main effects",
            "R² of the same; it, too, rewards the wrong sign.",
            number(target.score("rdm_r2_centred")),
        ),
    ]


def percent(value: float | None) -> str:
    """Write a percentage."""
    return "–" if value is None else f"{number(value, 1)}\N{NO-BREAK SPACE}%"


def fold_rows(run: Run) -> list[dict[str, Any]]:
    """Mean over subjects in each fold, and how many images of which set it held out."""
    held_out = run.record.get("folds") or []
    means = run.scores.groupby(["fold", "group", "metric"])["value"].mean().unstack("metric")
    folds, groups = (means.index.get_level_values(level).tolist() for level in ("fold", "group"))
    places = {fold: place for place, fold in enumerate(dict.fromkeys(folds))}
    values = means.reindex(columns=[metric for metric, _ in FOLD_METRICS]).to_numpy(dtype=float)
    rows = []
    for fold, group, scores in zip(folds, groups, values, strict=True):
        ids = held_out[places[fold]] if places[fold] < len(held_out) else []
        rows.append(
            {
                "fold": str(fold + 1) if isinstance(fold, int) else str(fold),
                "target": str(group),
                "n_stimuli": count(len(ids)) if ids else "–",
                "sets": _sizes_of_sets(ids),
                "scores": _fold_cells(scores),
            }
        )
    return rows


def chosen_rows(run: Run) -> list[tuple[str, str, str]]:
    """What a search chose: parameter, values taken in the folds, value of the saved pipeline."""
    chosen = run.summary.get("chosen")
    if not isinstance(chosen, Mapping) or not isinstance(chosen.get("saved"), Mapping):
        return []
    folds = [fold for fold in chosen.get("folds") or [] if isinstance(fold, Mapping)]
    rows = []
    for name, saved in chosen["saved"].items():
        taken = Counter(_plain(fold[name]) for fold in folds if name in fold)
        values = ", ".join(f"{value} ({times} of {len(folds)})" for value, times in taken.most_common())
        rows.append((str(name), values or "–", _plain(saved)))
    return rows


def _chance(target: TargetResult, null: str) -> tuple[str, str, str]:
    mean, p95 = (number(target.number(null, name)) for name in ("mean", "p95"))
    return mean, p95, p_value(target.number(null, "p"))


def _chance_percent(target: TargetResult, null: str) -> tuple[str, str, str]:
    mean, p95 = (percent(target.number(null, name)) for name in ("percent_mean", "percent_p95"))
    return mean, p95, ""


def _fold_cells(scores: np.ndarray) -> list[str]:
    digits = [1 if metric == "rdm_percent" else 3 for metric, _ in FOLD_METRICS]
    return [number(score, places) for score, places in zip(scores.tolist(), digits, strict=True)]


def _sizes_of_sets(ids: Sequence[str]) -> str:
    sizes = Counter(stimulus_sets(ids).tolist())
    return ", ".join(f"{name}: {times}" for name, times in sizes.items() if name)


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
