"""What the folder of a run on RDMs holds beyond its scores: chance levels, matrices, tuning to stages."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from featpipe.errors import RecipeError
from featpipe.report._read import Run
from featpipe.rsa import stimulus_sets

_STAGE_COLUMNS = ("stage", "mean", "low", "high", "n")


@dataclass(frozen=True, eq=False)
class TargetResult:
    """Scores of one target, such as EVC, with what stands beside them.

    Parameters
    ----------
    run : Run
    name : str
    found : mapping
        The target's part of ``nulls`` in ``summary.json``; may be empty.
    """

    run: Run
    name: str
    found: Mapping[str, Any]

    def number(self, *path: str) -> float | None:
        """Return a number of `found`; None where it is absent or NaN."""
        return _finite(_walk(self.found, path))

    def interval(self, *path: str) -> tuple[float, float] | None:
        """Return lower and upper end of an interval in `found`; None where one is absent."""
        ends = _walk(self.found, path)
        if not isinstance(ends, list) or len(ends) != 2:
            return None
        low, high = map(_finite, ends)
        return None if low is None or high is None else (low, high)

    def score(self, metric: str) -> float | None:
        """Return the mean over subjects of a metric of the summary."""
        return _finite(self.run.score(metric, self.name))

    @property
    def rho(self) -> float | None:
        """Mean signed rho."""
        return _first(self.number("rho", "mean"), self.score("rdm_rho"))

    @property
    def r2(self) -> float | None:
        """Mean rho²."""
        return _first(self.number("r2"), self.score("rdm_r2"))

    @property
    def percent(self) -> float | None:
        """Percent of the upper ceiling."""
        return _first(self.number("percent"), self.score("rdm_percent"))

    @property
    def ceiling(self) -> float | None:
        """Upper ceiling of R²."""
        return _first(self.number("ceiling"), _finite(self.run.ceiling(self.name)))

    @property
    def ceiling_lower(self) -> float | None:
        """Lower ceiling of R², the subject left out."""
        groups = _walk(self.run.summary, ("noise_ceiling_lower", "groups"))
        return _first(self.number("ceiling_lower"), _finite(_walk(groups, (self.name,))))

    @property
    def above_zero(self) -> tuple[int | None, int | None]:
        """How many subjects have a rho above zero, and of how many."""
        counted = _finite(_walk(self.run.summary, ("subjects_above_zero", self.name)))
        above = _first(self.number("rho", "n_above_zero"), counted)
        known = float(len(self.subjects)) if len(self.subjects) else None
        of = _first(self.number("rho", "n_subjects"), known)
        return (None if above is None else int(above)), (None if of is None else int(of))

    @cached_property
    def subjects(self) -> pd.Series:
        """Signed rho of each subject, mean over folds; the index names the subject."""
        scores = self.run.scores
        mine = scores[(scores["group"] == self.name) & (scores["metric"] == "rdm_rho")]
        rows = mine.groupby("position", sort=True).agg({"target": "first", "value": "mean"}).dropna()
        names = [str(target).removeprefix(self.name).strip() or self.name for target in rows["target"]]
        return pd.Series(rows["value"].to_numpy(dtype=float), index=names)


@dataclass(frozen=True, eq=False)
class Matrices:
    """Measured and predicted dissimilarities of one stimulus set.

    Parameters
    ----------
    name : str
        The set, empty where ids name none.
    folds : ndarray of int, shape (n,)
        Ascending: the stimuli that were held out together stand together.
    measured, predicted : ndarray of shape (n, n)
        NaN where a pair was not measured, or not predicted.
    """

    name: str
    folds: np.ndarray
    measured: np.ndarray
    predicted: np.ndarray


def nulls_of(run: Run) -> Mapping[str, Any]:
    """Return what `featpipe.rsa.rdm_nulls_summary` left in the summary; empty where it left nothing."""
    return _mapping(run.summary.get("nulls"))


def read_targets(run: Run) -> list[TargetResult]:
    """Return the results of each target, in the order of the summary."""
    found = _mapping(nulls_of(run).get("targets"))
    names = dict.fromkeys(
        name for score in run.summary["scores"].values() for name in score.get("groups", {})
    )
    return [TargetResult(run, name, _mapping(found.get(name))) for name in names or found]


def read_matrices(run: Run) -> list[Matrices]:
    """Read ``rdms.npz`` by stimulus set, scored stimuli only; nothing in it is executed.

    Raises
    ------
    RecipeError
        The file is there and damaged.
    """
    path = run.path / "rdms.npz"
    if not path.is_file():
        return []
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, predicted, measured = (file[name] for name in ("ids", "predicted", "measured"))
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RecipeError(f"{str(path)!r} cannot be read ({error}); the run folder is damaged.") from error
    if not predicted.shape == measured.shape == (*ids.shape, *ids.shape) or ids.ndim != 1:
        raise RecipeError(
            f"{str(path)!r} holds {ids.shape} ids for RDMs of shape {predicted.shape} and {measured.shape}; "
            "the run folder is damaged."
        )
    return _by_set(ids.astype(str), predicted.astype(float), measured.astype(float), _fold_of(run))


def read_stage_tuning(run: Run) -> pd.DataFrame | None:
    """Read ``stage_tuning.csv``, which only channel masks have.

    Raises
    ------
    RecipeError
        The file is there and damaged.
    """
    path = run.path / "stage_tuning.csv"
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(
            path, dtype={"stage": str}, keep_default_na=False, na_values={"low": "", "high": ""}
        )
    except (ValueError, pd.errors.ParserError) as error:
        raise RecipeError(f"{str(path)!r} cannot be read as a table ({error}).") from error
    numeric = all(column in table and table[column].dtype.kind in "fi" for column in _STAGE_COLUMNS[1:])
    if "stage" not in table or not numeric:
        raise RecipeError(
            f"{str(path)!r} must have the columns {', '.join(_STAGE_COLUMNS)}, numbers in all but the first; "
            f"it has {', '.join(map(str, table.columns))}."
        )
    return table if len(table) else None


def _by_set(
    ids: np.ndarray, predicted: np.ndarray, measured: np.ndarray, fold_of: Mapping[str, int]
) -> list[Matrices]:
    folds = np.array([fold_of.get(name, 0) for name in ids.tolist()], dtype=int)
    known = np.isfinite(predicted)
    np.fill_diagonal(known, False)
    sets = stimulus_sets(ids)
    found = []
    for name in dict.fromkeys(sets.tolist()):
        rows = np.flatnonzero((sets == name) & known.any(axis=1))
        rows = rows[np.argsort(folds[rows], kind="stable")]
        if len(rows):
            square = np.ix_(rows, rows)
            found.append(Matrices(name, folds[rows], measured[square], predicted[square]))
    return found


def _fold_of(run: Run) -> dict[str, int]:
    """Return the fold that held each stimulus out; nothing where one was held out twice."""
    folds = run.record.get("folds") or []
    fold_of = {str(name): number for number, ids in enumerate(folds) for name in ids}
    return fold_of if len(fold_of) == sum(map(len, folds)) else {}


def _walk(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
