"""Fit a recipe: cross-validate it, fit it once more for use, and write the run folder."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold
from sklearn.pipeline import Pipeline

from featpipe.datasets import load_dataset
from featpipe.errors import FeatpipeError, RecipeError
from featpipe.extraction import Extraction, Means, Progress
from featpipe.features import JoinedFeatures
from featpipe.files import claimed
from featpipe.model_selection import (
    Evaluation,
    SetKFold,
    estimators_in,
    evaluate,
    fit_final,
    make_cv,
    merge_groups,
)
from featpipe.recipes import Recipe, tuner_of
from featpipe.runs._folder import RunFolder
from featpipe.runs._predict import named_as_cached, places, set_to_read
from featpipe.runs._record import AnyDataset, run_record
from featpipe.runs._seen_in_tuning import refuse_tuned_features
from featpipe.runs._tasks import Folds, Task, make_task
from featpipe.runs._tuned import WEIGHTS, forget_trainings, released, told, write_tuned
from featpipe.runs._workers import Place, computing
from featpipe.store import FeatureCache, Root, absolute, require_shared
from featpipe.workers import Tell, asked_workers


@dataclass(frozen=True)
class FitRequest:
    """What `fit` is asked for.

    Parameters
    ----------
    recipe : Recipe
        With its parameters set.
    data : str
        DATA, such as ``table:DIR``.
    out : str
        The run folder.
    cache : str
    subject, target : str, optional
        Which subject; which named group of targets.
    surface : str, optional
        Where the vertices of ``algonauts2023:`` lie: ``lh=FILE,rh=FILE``.
    cv : int or str, optional
        Overrides the recipe's folds and the data's splits.
    n_jobs : int
        Processes for the outer folds; -1 is one a processor.
    dask : str, optional
        Instead: how many workers to start here, or the address of a scheduler. They take folds, candidates of a
        search and regions.
    threads : int, optional
        BLAS threads of each task. Runs of equal threads have equal scores, wherever they were computed.
    extract : bool
        Extract what the recipe needs and the cache lacks.
    overwrite : bool
    trust : bool
        Execute code that the request names.
    device : str
        Of a tuner's network.
    given : mapping
        ``--set`` and ``--search`` as they were written, for the record.
    """

    recipe: Recipe
    data: str
    out: str
    cache: Root = "cache"
    subject: str | None = None
    target: str | None = None
    surface: str | None = None
    cv: int | str | None = None
    n_jobs: int = 1
    dask: str | None = None
    threads: int | None = None
    extract: bool = False
    overwrite: bool = False
    trust: bool = False
    device: str = "auto"
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n_jobs == 0:
            raise RecipeError("--jobs is 0; give a number of processes, or -1 for one a processor.")
        if self.threads is not None and self.threads < 1:
            raise RecipeError(f"--threads is {self.threads}; give the BLAS threads of each task, at least 1.")
        if self.dask is not None or self.n_jobs != 1:
            require_shared(self.cache, "--jobs" if self.dask is None else "--dask")
        if self.dask is not None:
            asked_workers(self.dask)
            if self.n_jobs != 1:
                raise RecipeError(
                    "--jobs and --dask are two ways to compute folds at a time; give one of them."
                )

    @property
    def cache_path(self) -> Root:
        """The cache as this machine's other processes find it, wherever they run."""
        return self.cache if self.dask is None else absolute(self.cache)


def fit(
    request: FitRequest,
    *,
    means: Means | None = None,
    progress: Progress | None = None,
    fold_progress: Progress | None = None,
    epoch_progress: Progress | None = None,
    tell: Tell | None = None,
) -> RunFolder:
    """Run a recipe end to end.

    The scores come from outer folds (or from the data's own test split) whose rows nothing was fitted,
    chosen or scaled on. The pipeline that is saved is then fitted on all rows, or on the training split
    where there is one.

    Parameters
    ----------
    request : FitRequest
    means : Means, optional
        How to extract, with ``request.extract``.
    progress : callable (images done, images in all), optional
    fold_progress : callable (folds done, folds in all), optional
    epoch_progress : callable (epochs done, epochs in all), optional
        Of a tuner's training, where it is in this process.
    tell : callable (text), optional
        Gets a line on dask's workers and dashboard.

    Returns
    -------
    RunFolder

    Raises
    ------
    RequestError
        Recipe, data and cache do not fit together, or a worker does not see them.
    WorkError
        The workers were lost.
    """
    began = time.perf_counter()
    recipe = request.recipe
    kind = request.data.partition(":")[0]
    if kind not in recipe.data:
        raise RecipeError(
            f"Recipe {recipe.name!r} takes {', '.join(recipe.data)} data, not {request.data!r}."
        )
    if request.extract:
        refuse_extraction(recipe)
    with claimed(Path(request.out)):
        folder = RunFolder.create(request.out, overwrite=request.overwrite)
        return _fit_into(folder, request, began, means, progress, fold_progress, epoch_progress, tell)


def refuse_extraction(recipe: Recipe) -> None:
    """Refuse to extract for a recipe that reads no cache; raises `RecipeError`."""
    if recipe.tuner is not None:
        raise RecipeError(
            f"Recipe {recipe.name!r} tunes a network and reads the images themselves: nothing has to be extracted. "
            f"Run `featpipe fit {recipe.name}`, then extract the tuned network with --model local:RUN/{WEIGHTS}."
        )


def _fit_into(
    folder: RunFolder,
    request: FitRequest,
    began: float,
    means: Means | None,
    progress: Progress | None,
    fold_progress: Progress | None,
    epoch_progress: Progress | None,
    tell: Tell | None,
) -> RunFolder:
    recipe = request.recipe
    dataset = _load(request)
    extracted = _extract(request, dataset, means, progress) if request.extract else None
    ready = time.perf_counter()
    task = make_task(dataset, recipe, request.target)
    cv = outer_folds(request, dataset)
    folds = _folds(cv, dataset, task)
    estimator = _estimator(request, dataset, task, folds, epoch_progress)
    _refuse_seen(estimator, recipe, dataset, folds)
    with _computing(request, task, tell) as place, _refusals_told():
        began_folds = time.perf_counter()
        evaluation = _evaluate(dataset, task, estimator, folds, place, fold_progress)
        evaluated = time.perf_counter()
        final, rows = _fit_final(estimator, dataset, task, place)
        times = {
            "extract": ready - began,
            "evaluate": evaluated - began_folds,
            "fit": time.perf_counter() - evaluated,
        }
    if (tuner := tuner_of(final)) is not None:
        write_tuned(folder, tuner)
    record = run_record(request, dataset, task, evaluation, str(cv), final, extracted, times) | place.record
    folder.write_json("run.json", record)
    results, tables = task.results(evaluation, folds)
    summary = results | _counts(dataset, evaluation, str(cv))
    if evaluation.chosen is not None:
        summary["chosen"] = _chosen(evaluation.chosen, final)
    folder.write_csv("scores.csv", task.tidy(evaluation))
    folder.write_csv("training.csv", pd.DataFrame({"id": dataset.ids[rows], "sha256": dataset.digests[rows]}))
    for name, table in tables.items():
        folder.write_csv(name, table)
    task.write_more(folder, evaluation, final)
    folder.write_pipeline(final)
    folder.write_json("summary.json", summary)  # last: a folder that has one is a finished run
    forget_trainings(folder)
    return folder


@contextmanager
def _refusals_told() -> Iterator[None]:
    """Say it as a wrong request where scikit-learn refuses the parameters or the data of a step."""
    try:
        yield
    except ValueError as error:
        frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
        if isinstance(error, FeatpipeError) or not frames[-1].startswith("sklearn."):
            raise
        raise RecipeError(
            f"A step of the pipeline cannot be fitted. {error} Change its parameter with --set, or what it is given."
        ) from error


def _computing(request: FitRequest, task: Task, tell: Tell | None) -> AbstractContextManager[Place]:
    return computing(
        task.y,
        out=request.out,
        cache=str(request.cache_path),
        dask=request.dask,
        n_jobs=request.n_jobs,
        threads=request.threads,
        tell=tell or (lambda text: None),
    )


def _load(request: FitRequest) -> AnyDataset:
    """Read the data; a target of RDMs only says which are scored, and the others may help to fit."""
    if request.recipe.predicts == "rdms":
        return load_dataset(request.data, subject=request.subject)
    how = {"subject": request.subject, "target": request.target, "surface": request.surface}
    return load_dataset(request.data, **how)


def _extract(
    request: FitRequest, dataset: AnyDataset, means: Means | None, progress: Progress | None
) -> list[Extraction]:
    orders = request.recipe.orders(trust=request.trust)
    from featpipe.extraction import extract  # torch, only where something is extracted

    cache = FeatureCache(request.cache)
    return [extract(order, dataset.stimuli, cache, means=means, progress=progress) for order in orders]


def undivided_groups(dataset: AnyDataset) -> np.ndarray | None:
    """Return the groups that no fold may divide: the data's own, and ids that show one image."""
    groups = merge_groups(dataset.groups, dataset.digests)
    return groups if len(np.unique(groups)) < len(groups) else None


def outer_folds(request: FitRequest, dataset: AnyDataset) -> str | int:
    """Return which outer folds are meant: those asked for, the data's test split, or the recipe's."""
    if request.cv is not None:
        return request.cv
    splits = set() if dataset.splits is None else set(dataset.splits)
    if "test" in splits and "train" not in splits:
        raise RecipeError(
            f"{request.data} has stimuli labelled 'test' and none labelled 'train', so that nothing may be fitted. "
            "Label those to fit in splits.csv, or say --cv 5 to divide all stimuli into folds."
        )
    return "splits" if {"train", "test"} <= splits else request.recipe.cv


def _estimator(
    request: FitRequest, dataset: AnyDataset, task: Task, folds: Folds, epoch_progress: Progress | None
) -> BaseEstimator:
    """Return the pipeline, told what to read and what to fit to, in its search if the recipe has one."""
    recipe = request.recipe
    pipeline = clone(recipe.pipeline).set_params(**_where(request, dataset, epoch_progress), **task.params)
    return _searching(pipeline, recipe, undivided_groups(dataset), folds, task)


def _refuse_seen(estimator: BaseEstimator, recipe: Recipe, dataset: AnyDataset, folds: Folds) -> None:
    """Refuse features of a network that was tuned on stimuli that are scored; raises `RecipeError`."""
    pipeline = getattr(estimator, "estimator", estimator)
    if tuner_of(pipeline) is None:
        refuse_tuned_features(pipeline[0], recipe.pipeline[0], dataset, folds)


def _where(request: FitRequest, dataset: AnyDataset, epoch_progress: Progress | None) -> dict[str, Any]:
    """Return the parameters of the first step that say where features, or images, are read."""
    tuner = request.recipe.tuner
    if tuner is not None:
        here = request.n_jobs == 1 and request.dask is None
        how: dict[str, Any] = {"out": request.out, "device": request.device, "trust": request.trust}
        how["progress"] = epoch_progress if here else None
        return told(tuner, dataset.stimuli, **how)
    return {
        **places(request.cache_path),
        "features__stimuli": set_to_read(dataset.stimuli, request.cache),
        **named_as_cached(request.recipe.pipeline, trust=request.trust),
    }


def _evaluate(
    dataset: AnyDataset,
    task: Task,
    estimator: BaseEstimator,
    folds: Folds,
    place: Place,
    progress: Progress | None,
) -> Evaluation:
    return evaluate(
        estimator,
        dataset.ids,
        place.y,
        cv=folds,
        scoring=task.scoring,
        groups=undivided_groups(dataset),
        sample_weight=task.weight,
        target_names=task.names,
        n_jobs=place.n_jobs,
        threads=place.threads,
        progress=progress,
        return_predictions=task.keep_predictions,
    )


def _folds(cv: str | int, dataset: AnyDataset, task: Task) -> Folds:
    """Return the outer folds; no image is on both sides of one, under whatever ids it goes."""
    labels = undivided_groups(dataset)
    if cv == "group":  # equal images alone are no groups to leave out
        labels = None if dataset.groups is None else merge_groups(dataset.groups, dataset.digests)
    chosen = make_cv(
        cv, dataset.n_stimuli, groups=labels, splits=dataset.splits, ids=dataset.ids, by_set=task.by_set
    )
    folds = chosen if isinstance(chosen, list) else list(chosen.split(dataset.ids, groups=labels))
    if max(len(test) for _, test in folds) < 2:
        raise RecipeError(
            f"Folds {cv!r} score a single stimulus each, of which there is no correlation; at least two are needed. "
            "Choose fewer folds, such as --cv 5."
        )
    for train, test in folds:
        shared = np.isin(dataset.digests[test], dataset.digests[train])
        if shared.any():
            raise RecipeError(
                f"Folds {cv!r} would score {shared.sum()} images that they are fitted on, under the same or another "
                f"id, first {str(dataset.ids[test][shared][0])!r}. Leave these rows out, or choose --cv 5, which "
                "keeps equal images together."
            )
    return folds


def _searching(
    pipeline: Pipeline, recipe: Recipe, groups: np.ndarray | None, folds: Folds, task: Task
) -> BaseEstimator:
    if not recipe.search:
        return pipeline
    inner: Any
    if groups is None and task.by_set:
        inner = SetKFold(4)
    elif groups is None:
        inner = KFold(5, shuffle=True, random_state=0)
    else:
        inner = GroupKFold(min([5, *(len(np.unique(groups[train])) for train, _ in folds)]))
    return GridSearchCV(
        pipeline,
        dict(recipe.search),
        scoring=task.scorer(recipe.search_scoring),
        cv=inner,
        error_score="raise",  # a candidate that cannot be fitted is a wrong request, not a bad score
    )


def _fit_final(
    estimator: BaseEstimator, dataset: AnyDataset, task: Task, place: Place
) -> tuple[Pipeline, np.ndarray]:
    """Fit on every row that a user may predict from: the training split, or all rows."""
    has_test = dataset.splits is not None and "train" in dataset.splits
    rows = np.flatnonzero(dataset.splits == "train") if has_test else np.arange(dataset.n_stimuli)
    fitted = fit_final(
        estimator,
        dataset.ids,
        place.y,
        rows=rows,
        groups=undivided_groups(dataset),
        sample_weight=task.weight,
    )
    pipeline = getattr(fitted, "best_estimator_", fitted)
    _forget_routing(pipeline)
    _release(pipeline)
    return pipeline, rows


_NO_MIRROR = {"mirror": None, "mirror_size": None}


def _release(pipeline: Pipeline) -> None:
    """Let the saved pipeline read new images: in any stimulus set, without augmented views and our own mirror."""
    if tuner_of(pipeline) is not None:
        released(pipeline)
        return
    features = pipeline[0]
    features.set_params(stimuli=None, **_NO_MIRROR)
    parts = [("", features)]
    if isinstance(features, JoinedFeatures):
        parts = [*features.parts, *features.parts_]
    for _, part in parts:
        part.set_params(stimuli=None, views=0, **_NO_MIRROR)


def _forget_routing(part: Any) -> None:
    """Drop what routed weights and groups to each step: it refers to itself, which no file can hold."""
    for estimator in estimators_in(part, vars):
        vars(estimator).pop("_metadata_request", None)


def _counts(dataset: AnyDataset, evaluation: Evaluation, cv: str) -> dict[str, Any]:
    return {
        "n_stimuli": dataset.n_stimuli,
        "n_scored": sum(map(len, evaluation.test_ids)),
        "n_folds": evaluation.n_folds,
        "cv": cv,
    }


def _chosen(folds: Sequence[Mapping[str, Any]], final: Pipeline) -> dict[str, Any]:
    """Return what a search chose in each outer fold, and for the saved pipeline, as JSON can hold it."""
    params = final.get_params()
    chosen = {"folds": list(folds), "saved": {name: params[name] for name in folds[0]}}
    return dict(
        json.loads(json.dumps(chosen, default=lambda v: v.tolist() if hasattr(v, "tolist") else repr(v)))
    )
