"""What is predicted: responses of many targets, or the RDMs of many subjects. Each knows its scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline

from featpipe.datasets import Dataset, RDMDataset
from featpipe.errors import DatasetError, RecipeError
from featpipe.memory import available_memory
from featpipe.model_selection import Evaluation, get_scorer
from featpipe.recipes import Recipe
from featpipe.rsa import RDM_METRICS, RDMs, measured_labels, rdm_nulls_summary
from featpipe.runs._folder import RunFolder
from featpipe.runs._held_out import write_held_out
from featpipe.runs._summary import (
    infer,
    summarise,
    summarise_rdms,
    target_names,
    target_table,
    tidy,
    tidy_rdms,
)

Folds = list[tuple[np.ndarray, np.ndarray]]


class Task(Protocol):
    """The target of a fit, with what depends on its kind."""

    @property
    def kind(self) -> str:
        """``responses`` or ``rdms``."""

    @property
    def by_set(self) -> bool:
        """Whether folds hold their share of every stimulus set."""

    @property
    def keep_predictions(self) -> bool:
        """Whether the summary needs the held-out predictions."""

    @property
    def y(self) -> Any:
        """What estimators are fitted to: sliced by ``y[rows, ...]``."""

    @property
    def weight(self) -> np.ndarray | None:
        """Weight of each stimulus in the fit."""

    @property
    def scoring(self) -> Any:
        """Metrics, as `evaluate` takes them."""

    @property
    def names(self) -> list[str]:
        """One name per column of the scores."""

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the pipeline that follow from the target."""

    def scorer(self, name: str) -> Any:
        """What a search inside the training sets looks at: callable (estimator, X, y) -> float."""

    def results(self, evaluation: Evaluation, folds: Folds) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
        """Scores put together, as ``summary.json`` has them, and more tables by the name of their file."""

    def tidy(self, evaluation: Evaluation) -> pd.DataFrame:
        """A row per target, fold and metric."""

    def write_more(self, folder: RunFolder, evaluation: Evaluation, final: Pipeline) -> None:
        """Write what only this kind of run has."""


@dataclass(frozen=True)
class ResponseTask:
    """Predict responses: a score per target."""

    dataset: Dataset
    recipe: Recipe
    kind: str = "responses"
    by_set: bool = False

    @property
    def keep_predictions(self) -> bool:
        """As large as the responses: where memory is short, scores go without intervals and p-values."""
        return self.dataset.responses.nbytes <= available_memory() // 4

    @property
    def y(self) -> np.ndarray:
        return self.dataset.responses

    @property
    def weight(self) -> np.ndarray | None:
        return self.dataset.n_repeats

    @property
    def scoring(self) -> tuple[str, ...]:
        return self.recipe.scoring

    @property
    def names(self) -> list[str]:
        return [str(name) for name in target_names(self.dataset)]

    @property
    def params(self) -> dict[str, Any]:
        """Regions and positions of the targets, for whatever parameter of these names was left open."""
        known = {"rois": _positions_of_masks(self.dataset), "positions": _coordinates(self.dataset)}
        asked = {k: k.rpartition("__")[2] for k, v in self.recipe.pipeline.get_params().items() if v is None}
        return {k: known[name] for k, name in asked.items() if known.get(name) is not None}

    def scorer(self, name: str) -> Any:
        return get_scorer(name)

    def results(self, evaluation: Evaluation, folds: Folds) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
        rows = np.unique(np.concatenate([test for _, test in folds]))
        inference = infer(self.dataset, evaluation, folds)
        how: dict[str, Any] = {"rows": rows, "inference": inference}
        found = summarise(evaluation.scores, self.dataset, pooled_r=evaluation.pooled_r, **how)
        counts = {
            "n_targets": self.dataset.n_targets,
            "constant_predictions": int(evaluation.constant_predictions.sum()),
            "constant_responses": int(evaluation.constant_responses.sum()),
        }
        return found | counts, {"targets.csv": target_table(evaluation.scores, self.dataset, **how)}

    def tidy(self, evaluation: Evaluation) -> pd.DataFrame:
        return tidy(evaluation.scores, self.dataset)

    def write_more(self, folder: RunFolder, evaluation: Evaluation, final: Pipeline) -> None:
        """Write held-out predictions beside the responses, where they are few: runs are compared by them."""
        if evaluation.predictions is not None:
            write_held_out(folder, self.dataset, evaluation)


@dataclass(frozen=True)
class RDMTask:
    """Predict the RDMs of one target in all subjects; others may take part in the fit.

    Parameters
    ----------
    dataset : RDMDataset
        With all its targets.
    target : str
        The one that is scored.
    train_on : mapping of str to sequence or mapping, or None
        By parameter of the pipeline, the targets that its step is fitted to.
    open : frozenset of str
        Parameters of the pipeline that are None.
    """

    dataset: RDMDataset
    target: str
    train_on: Mapping[str, Any]
    open: frozenset[str] = frozenset()
    kind: str = "rdms"
    by_set: bool = True
    keep_predictions: bool = True

    @property
    def y(self) -> RDMs:
        needed = {self.target, *(name for names in self.train_on.values() for name in _several(names))}
        return self.dataset.rdms.select(targets=[n for n in self.dataset.target_names if n in needed])

    @property
    def weight(self) -> None:
        return None

    @property
    def scoring(self) -> dict[str, Any]:
        return {name: partial(_of_target, metric, self.target) for name, metric in RDM_METRICS.items()}

    @property
    def names(self) -> list[str]:
        return [" ".join(label) for label in self._labels]

    @property
    def params(self) -> dict[str, Any]:
        own = {name: [self.target] for name, targets in self.train_on.items() if targets is None}
        chosen = {k.replace("__train_on", "__validate_on"): v for k, v in self.train_on.items()}
        return own | {
            k: [self.target] for k, v in chosen.items() if k in self.open and self.target in _several(v)
        }

    def scorer(self, name: str) -> Any:
        """Look at the target alone: others may take part in the fit, and would choose for themselves."""
        return partial(_score_of_target, get_scorer(name), self.target)

    @property
    def _labels(self) -> list[tuple[str, str]]:
        return measured_labels(self.dataset.rdms.select(targets=[self.target]))

    def results(self, evaluation: Evaluation, folds: Folds) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
        found = summarise_rdms(evaluation.scores, self._labels)
        blocks = np.full(self.dataset.n_stimuli, -1)
        for number, (_, test) in enumerate(folds):
            blocks[test] = number
        measured = self.dataset.rdms.select(targets=[self.target])
        nulls = rdm_nulls_summary(measured, evaluation.predictions, blocks=blocks)
        return found | {"nulls": nulls, "target": self.target, "n_targets": len(self._labels)}, {}

    def tidy(self, evaluation: Evaluation) -> pd.DataFrame:
        return tidy_rdms(evaluation.scores, self._labels)

    def write_more(self, folder: RunFolder, evaluation: Evaluation, final: Pipeline) -> None:
        """Write the held-out RDM beside the measured mean, and a mask's tuning to the stages of the network."""
        measured = self.dataset.rdms.select(targets=[self.target]).mean()
        predicted = evaluation.predictions.take(measured.ids)
        folder.write_arrays(
            "rdms.npz", ids=measured.ids, predicted=predicted.values[0], measured=measured.values[0]
        )
        for _, step in final.steps:
            if hasattr(step, "stage_tuning_"):
                folder.write_csv("stage_tuning.csv", step.stage_tuning_.rename(columns={"layer": "stage"}))


def make_task(dataset: Dataset | RDMDataset, recipe: Recipe, target: str | None) -> Task:
    """Return what is to be predicted.

    Raises
    ------
    RecipeError
        The recipe predicts responses and the data hold RDMs, or the other way round.
    DatasetError
        Several RDM targets, and none was chosen.
    """
    wants_rdms = recipe.predicts == "rdms"
    if wants_rdms != isinstance(dataset, RDMDataset):
        came, wanted = ("RDMs", "responses") if not wants_rdms else ("responses", "RDMs")
        raise RecipeError(f"Recipe {recipe.name!r} predicts {wanted}, but {dataset.name!r} holds {came}.")
    if isinstance(dataset, Dataset):
        return ResponseTask(dataset, recipe)
    if recipe.tuner is None and recipe.pipeline[0].output != "blocks":
        raise RecipeError(
            "Recipes of RDMs need layers that know their ids: features__output is "
            f"{recipe.pipeline[0].output!r}; set it to 'blocks'."
        )
    params = recipe.pipeline.get_params()
    train_on = {k: v for k, v in params.items() if k.endswith("__train_on")}
    _check_trained_on(dataset, train_on)
    left_open = frozenset(name for name, value in params.items() if value is None)
    return RDMTask(dataset, chosen_target(dataset, target), train_on, left_open)


def _positions_of_masks(dataset: Dataset) -> dict[str, np.ndarray] | None:
    """Return the targets of each region, by their numbers: they travel to workers with the pipeline."""
    return {name: np.flatnonzero(mask).astype(np.int32) for name, mask in dataset.masks.items()} or None


def _coordinates(dataset: Dataset) -> np.ndarray | None:
    """Return where the targets lie, (n_targets, 3), if that is known."""
    axes = ["x", "y", "z"]
    return dataset.targets[axes].to_numpy(dtype=np.float64) if set(axes) <= set(dataset.targets) else None


def _check_trained_on(dataset: RDMDataset, train_on: Mapping[str, Any]) -> None:
    for parameter, names in train_on.items():
        wanted = list(_several(names))
        if missing := [name for name in wanted if name not in dataset.target_names]:
            raise DatasetError(
                f"The recipe is fitted to {', '.join(wanted)}, and {dataset.name!r} has no {missing[0]}, only "
                f"{', '.join(dataset.target_names)}. Name what there is, such as "
                f"--set {parameter}='[\"{dataset.target_names[0]}\"]'."
            )


def chosen_target(dataset: RDMDataset, target: str | None) -> str:
    """Return the target that is asked for, or the only one there is."""
    names = list(dataset.target_names)
    if target is None and len(names) == 1:
        return names[0]
    if target not in names:
        came = "Several targets are there" if target is None else f"There is no target {target!r}"
        raise DatasetError(f"{came} in {dataset.name!r}. Choose one with --target: {', '.join(names)}.")
    return target


def _of_target(metric: Any, target: str, y_true: RDMs, y_pred: RDMs) -> np.ndarray:
    """Score one target of those that a model was fitted to."""
    return np.asarray(metric(y_true.select(targets=[target]), y_pred))


def _score_of_target(scorer: Any, target: str, estimator: Any, X: np.ndarray, y: RDMs) -> float:
    return float(scorer(estimator, X, y.select(targets=[target])))


def _several(names: Any) -> Iterable[str]:
    """Return the targets that a step is fitted to, of which one may be given as text."""
    return [names] if isinstance(names, str) else names or ()
