"""What a run folder holds, as the report needs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featpipe.datasets import region_order
from featpipe.errors import RecipeError

_COLUMNS = ("target", "group", "fold", "metric", "value")
_FIRST = ("pearson_r", "r2", "noise_normalized_r2")  # others follow as they come
_HEMISPHERES = {"lh": "lh", "rh": "rh", "left": "lh", "right": "rh"}


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Parameters
    ----------
    path : Path
    record : mapping
        ``run.json``.
    summary : mapping
        ``summary.json``.
    scores : DataFrame
        ``scores.csv`` and a column ``position`` that tells targets of one name apart.
    """

    path: Path
    record: Mapping[str, Any]
    summary: Mapping[str, Any]
    scores: pd.DataFrame

    @property
    def predicts_rdms(self) -> bool:
        """Whether RDMs were predicted, not responses."""
        return self.record.get("kind") == "rdms"

    @property
    def metrics(self) -> list[str]:
        """Metrics of the summary, correlation first."""
        there = list(self.summary["scores"])
        return [m for m in _FIRST if m in there] + [m for m in there if m not in _FIRST]

    @cached_property
    def main_metric(self) -> str:
        """The metric that plots show: the first that has a value per target."""
        measured = self.scores["metric"].unique()
        return next((m for m in self.metrics if m in measured), self.metrics[0])

    @cached_property
    def groups(self) -> list[str]:
        """Groups of targets along the visual hierarchy."""
        names = dict.fromkeys(g for score in self.summary["scores"].values() for g in score.get("groups", {}))
        return region_order(names)

    @cached_property
    def per_target(self) -> pd.DataFrame:
        """Mean over folds: a row per target, a column per metric."""
        return self.scores.pivot_table(index="position", columns="metric", values="value", aggfunc="mean")

    @cached_property
    def members(self) -> dict[str, np.ndarray]:
        """Positions of each group's targets; a target may be in several."""
        first = self.scores.drop_duplicates("position").set_index("position")["group"]
        lists = first.str.split(";").explode()
        return {str(name): np.asarray(rows) for name, rows in lists.groupby(lists).groups.items()}

    def score(self, metric: str, group: str | None = None) -> float | None:
        """A score of the summary, overall or of one group."""
        return _pick(self.summary["scores"].get(metric, {}), group)

    def ceiling(self, group: str | None = None) -> float | None:
        """Mean noise ceiling (share of variance that can be explained), overall or of one group."""
        return _pick(self.summary.get("noise_ceiling") or {}, group)

    def ceiling_of_r(self, group: str | None = None) -> float | None:
        """Mean noise ceiling of a correlation (root per target, then the mean), overall or of one group."""
        return _pick(self.summary.get("noise_ceiling_r") or {}, group)

    def normalised_r(self, group: str | None = None) -> float | None:
        """Mean r over the mean ceiling of r, overall or of one group."""
        return _pick(self.summary.get("noise_normalized_r") or {}, group)

    @property
    def ceiling_is_estimated(self) -> bool:
        """Whether the ceiling comes from the repeats, not from the table of targets."""
        return self.summary.get("noise_ceiling_from") not in (None, "targets")

    @property
    def intervals(self) -> Mapping[str, Any] | None:
        """Intervals of mean r: ``level``, ``n``, ``overall`` and ``groups``."""
        return _part(self.summary, "interval")

    @property
    def chance(self) -> Mapping[str, Any] | None:
        """Permutation p of mean r: ``n``, ``overall`` and ``groups``."""
        return _part(self.summary, "permutation")

    @property
    def significant(self) -> Mapping[str, Any] | None:
        """Targets above chance: ``q``, ``correction``, ``n_tested``, ``overall`` and ``groups``."""
        return _part(self.summary, "significant")

    def values(self, metric: str, group: str | None = None) -> np.ndarray:
        """A metric's finite values per target, overall or of one group."""
        if metric not in self.per_target:
            return np.empty(0)
        column = self.per_target[metric]
        if group is not None:
            column = column.reindex(self.members.get(group, np.empty(0, dtype=int)))
        values = column.to_numpy(dtype=float)
        return values[np.isfinite(values)]


def split_group(name: str) -> tuple[str, str]:
    """Split ``lh.V1v`` into region and hemisphere; a name without hemisphere is all region."""
    head, dot, tail = name.partition(".")
    hemisphere = _HEMISPHERES.get(head.lower(), "")
    return (tail, hemisphere) if dot and hemisphere else (name, "")


def read_run(folder: str | Path) -> Run:
    """Read what a run folder says about itself; nothing in it is executed.

    Raises
    ------
    RecipeError
        When it is no run folder, or a file in it is damaged.
    """
    path = Path(folder)
    summary = _json(path / "summary.json")
    if not isinstance(summary.get("scores"), Mapping) or not summary["scores"]:
        raise RecipeError(f"{str(path / 'summary.json')!r} holds no scores; fit the recipe again.")
    return Run(path, _json(path / "run.json"), summary, _scores(path / "scores.csv"))


def _json(path: Path) -> dict[str, Any]:
    _require(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{str(path)!r} is no valid JSON ({error}); the run folder is damaged.") from error
    if not isinstance(value, dict):
        raise RecipeError(f"{str(path)!r} holds no JSON object; the run folder is damaged.")
    return value


def _scores(path: Path) -> pd.DataFrame:
    _require(path)
    try:
        table = pd.read_csv(path, dtype={"target": str, "group": str, "metric": str}, keep_default_na=False,
                            na_values={"value": ["", "nan", "NaN"]})  # fmt: skip
    except (ValueError, pd.errors.ParserError) as error:
        raise RecipeError(f"{str(path)!r} cannot be read as a table ({error}).") from error
    if not set(_COLUMNS) <= set(table.columns) or table["value"].dtype.kind not in "fi":
        raise RecipeError(
            f"{str(path)!r} must have the columns {', '.join(_COLUMNS)}, numbers in the last; "
            f"it has {', '.join(map(str, table.columns))}."
        )
    table["position"] = table.groupby(["metric", "fold"]).cumcount()
    return table


def _require(path: Path) -> None:
    if not path.is_file():
        raise RecipeError(
            f"{str(path.parent)!r} is no finished run folder: it has no {path.name}. `featpipe fit` makes one."
        )


def _pick(score: Mapping[str, Any], group: str | None) -> float | None:
    value = score.get("overall") if group is None else score.get("groups", {}).get(group)
    return None if value is None else float(value)


def _part(summary: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    part = (summary.get("inference") or {}).get(name)
    return part if isinstance(part, Mapping) else None
