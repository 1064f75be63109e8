"""Fit a recipe: cross-validate it, fit it once more for use, and write the run folder."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_info

from featpipe.datasets import Dataset, load_dataset
from featpipe.errors import RecipeError
from featpipe.extraction import Extraction, Means, Progress
from featpipe.features import arrays_of
from featpipe.model_selection import (
    Evaluation,
    evaluate,
    fit_final,
    get_scorer,
    make_cv,
    merge_groups,
)
from featpipe.recipes import Recipe
from featpipe.runs._folder import RunFolder
from featpipe.runs._predict import set_to_read
from featpipe.runs._summary import summarise, target_names, tidy
from featpipe.spec import from_anywhere
from featpipe.store import FeatureCache

Folds = list[tuple[np.ndarray, np.ndarray]]

_LIBRARIES = ("featpipe", "numpy", "scipy", "scikit-learn", "pandas", "zarr", "joblib")


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
    cv : int or str, optional
        Overrides the recipe's folds and the data's splits.
    n_jobs : int
        Processes for the outer folds; -1 is one a processor.
    extract : bool
        Extract what the recipe needs and the cache lacks.
    overwrite : bool
    given : mapping
        ``--set`` and ``--search`` as they were written, for the record.
    """

    recipe: Recipe
    data: str
    out: str
    cache: str = "cache"
    subject: str | None = None
    target: str | None = None
    cv: int | str | None = None
    n_jobs: int = 1
    extract: bool = False
    overwrite: bool = False
    trust: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n_jobs == 0:
            raise RecipeError("--jobs is 0; give a number of processes, or -1 for one a processor.")


def fit(request: FitRequest, *, means: Means | None = None, progress: Progress | None = None) -> RunFolder:
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

    Returns
    -------
    RunFolder

    Raises
    ------
    RequestError
        Recipe, data and cache do not fit together.
    """
    began = time.perf_counter()
    recipe = request.recipe
    kind = request.data.partition(":")[0]
    if kind not in recipe.data:
        raise RecipeError(
            f"Recipe {recipe.name!r} takes {', '.join(recipe.data)} data, not {request.data!r}."
        )
    folder = RunFolder.create(request.out, overwrite=request.overwrite)
    dataset = load_dataset(request.data, subject=request.subject, target=request.target)
    extracted = _extract(request, dataset, means, progress) if request.extract else None
    ready = time.perf_counter()
    evaluation, estimator, cv = _evaluate(request, dataset)
    evaluated = time.perf_counter()
    final, rows = _fit_final(estimator, dataset)
    times = {
        "extract": ready - began,
        "evaluate": evaluated - ready,
        "fit": time.perf_counter() - evaluated,
    }
    record = _record(request, dataset, evaluation, cv, final, extracted, times)
    folder.write_json("run.json", record)
    _write(folder, dataset, evaluation, cv, final, rows)
    return folder


def _extract(
    request: FitRequest, dataset: Dataset, means: Means | None, progress: Progress | None
) -> Extraction:
    order = request.recipe.order(trust=request.trust)
    from featpipe.extraction import extract  # torch, only where something is extracted

    return extract(order, dataset.stimuli, FeatureCache(request.cache), means=means, progress=progress)


def undivided_groups(dataset: Dataset) -> np.ndarray | None:
    """Return the groups that no fold may divide: the data's own, and ids that show one image."""
    groups = merge_groups(dataset.groups, dataset.digests)
    return groups if len(np.unique(groups)) < len(groups) else None


def outer_folds(request: FitRequest, dataset: Dataset) -> str | int:
    """Return which outer folds are meant: those asked for, the data's test split, or the recipe's."""
    if request.cv is not None:
        return request.cv
    splits = set() if dataset.splits is None else set(dataset.splits)
    return "splits" if {"train", "test"} <= splits else request.recipe.cv


def _evaluate(request: FitRequest, dataset: Dataset) -> tuple[Evaluation, BaseEstimator, str]:
    recipe, cv = request.recipe, outer_folds(request, dataset)
    groups = undivided_groups(dataset)
    folds = _folds(cv, dataset, groups)
    where = {
        "features__cache": request.cache,
        "features__stimuli": set_to_read(dataset.stimuli, request.cache),
    }
    estimator = _searching(clone(recipe.pipeline).set_params(**where), recipe, groups, folds)
    evaluation = evaluate(
        estimator,
        dataset.ids,
        dataset.responses,
        cv=folds,
        scoring=recipe.scoring,
        groups=groups,
        sample_weight=dataset.n_repeats,
        target_names=target_names(dataset),
        n_jobs=request.n_jobs,
    )
    return evaluation, estimator, str(cv)


def _folds(cv: str | int, dataset: Dataset, groups: np.ndarray | None) -> Folds:
    """Return the outer folds; no image is on both sides of one, under whatever ids it goes."""
    labels = groups
    if cv == "group":  # equal images alone are no groups to leave out
        labels = None if dataset.groups is None else merge_groups(dataset.groups, dataset.digests)
    chosen = make_cv(cv, dataset.n_stimuli, groups=labels, splits=dataset.splits, ids=dataset.ids)
    folds = chosen if isinstance(chosen, list) else list(chosen.split(dataset.ids, groups=labels))
    for train, test in folds:
        shared = np.isin(dataset.digests[test], dataset.digests[train])
        if shared.any():
            raise RecipeError(
                f"Folds {cv!r} would score {shared.sum()} images that they are fitted on, under the same or another "
                f"id, first {str(dataset.ids[test][shared][0])!r}. Leave these rows out, or choose --cv 5, which "
                "keeps equal images together."
            )
    return folds


def _searching(pipeline: Pipeline, recipe: Recipe, groups: np.ndarray | None, folds: Folds) -> BaseEstimator:
    if not recipe.search:
        return pipeline
    if groups is None:
        inner = KFold(5, shuffle=True, random_state=0)
    else:
        inner = GroupKFold(min([5, *(len(np.unique(groups[train])) for train, _ in folds)]))
    return GridSearchCV(
        pipeline,
        dict(recipe.search),
        scoring=get_scorer(recipe.search_scoring),
        cv=inner,
        error_score="raise",  # a candidate that cannot be fitted is a wrong request, not a bad score
    )


def _fit_final(estimator: BaseEstimator, dataset: Dataset) -> tuple[Pipeline, np.ndarray]:
    """Fit on every row that a user may predict from: the training split, or all rows."""
    has_test = dataset.splits is not None and "train" in dataset.splits
    rows = np.flatnonzero(dataset.splits == "train") if has_test else np.arange(dataset.n_stimuli)
    fitted = fit_final(
        estimator,
        dataset.ids,
        dataset.responses,
        rows=rows,
        groups=undivided_groups(dataset),
        sample_weight=dataset.n_repeats,
    )
    pipeline = getattr(fitted, "best_estimator_", fitted)
    _forget_routing(pipeline)
    return pipeline.set_params(features__stimuli=None), rows


def _forget_routing(part: Any) -> None:
    """Drop what routed weights and groups to each step: it refers to itself, which no file can hold."""
    vars(part).pop("_metadata_request", None)
    held = [step for _, step in part.steps] if isinstance(part, Pipeline) else vars(part).values()
    for inner in held:
        if isinstance(inner, BaseEstimator):
            _forget_routing(inner)


def _write(
    folder: RunFolder,
    dataset: Dataset,
    evaluation: Evaluation,
    cv: str,
    final: Pipeline,
    rows: np.ndarray,
) -> None:
    summary = summarise(evaluation.scores, dataset, pooled_r=evaluation.pooled_r)
    summary |= {
        "n_stimuli": dataset.n_stimuli,
        "n_scored": sum(map(len, evaluation.test_ids)),
        "n_targets": dataset.n_targets,
        "n_folds": evaluation.n_folds,
        "cv": cv,
        "constant_predictions": int(evaluation.constant_predictions.sum()),
        "constant_responses": int(evaluation.constant_responses.sum()),
    }
    if evaluation.chosen is not None:
        summary["chosen"] = _chosen(evaluation.chosen, final)
    folder.write_csv("scores.csv", tidy(evaluation.scores, dataset))
    training = pd.DataFrame({"id": dataset.ids[rows], "sha256": dataset.digests[rows]})
    folder.write_csv("training.csv", training)
    folder.write_pipeline(final)
    folder.write_json("summary.json", summary)  # last: a folder that has one is a finished run


def _chosen(folds: Sequence[Mapping[str, Any]], final: Pipeline) -> dict[str, Any]:
    """Return what a search chose in each outer fold, and for the saved pipeline, as JSON can hold it."""
    params = final.get_params()
    chosen = {"folds": list(folds), "saved": {name: params[name] for name in folds[0]}}
    return dict(
        json.loads(json.dumps(chosen, default=lambda v: v.tolist() if hasattr(v, "tolist") else repr(v)))
    )


def _record(
    request: FitRequest,
    dataset: Dataset,
    evaluation: Evaluation,
    cv: str,
    final: Pipeline,
    extracted: Extraction | None,
    times: Mapping[str, float],
) -> dict[str, Any]:
    recipe = request.recipe
    return {
        "format": 1,
        "recipe": {"name": recipe.name, "path": recipe.path, "sha256": recipe.sha256},
        "summary": recipe.summary,
        "citation": recipe.citation,
        "data": {
            "given": request.data,
            "name": dataset.name,
            "subject": dataset.subject,
            "target": request.target,
            "stimuli": dataset.stimuli.digest,
            "n_stimuli": dataset.n_stimuli,
            "n_targets": dataset.n_targets,
        },
        "targets": [str(name) for name in target_names(dataset)],
        "cache": os.path.abspath(request.cache),
        "given": dict(request.given),
        "cv": cv,
        "folds": [list(map(str, ids)) for ids in evaluation.test_ids],
        "features": features_record(final, request.cache, set_to_read(dataset.stimuli, request.cache)),
        "pipeline": {name: repr(step) for name, step in final.steps},
        "extraction": None
        if extracted is None
        else {
            "computed": extracted.n_computed,
            "reused": extracted.n_reused,
            "device": extracted.device,
        },
        "seconds": {name: round(value, 3) for name, value in times.items()},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in _LIBRARIES} | {"python": platform.python_version()},
        "jobs": request.n_jobs,  # divides the threads among folds, and so decides the last digits
        "threads": {pool["user_api"]: pool["num_threads"] for pool in threadpool_info()},
    }


def features_record(pipeline: Pipeline, cache: str, stimuli: str) -> list[dict[str, Any]]:
    """Return the features that a fitted pipeline reads: spec, cache key, and how they were asked for."""
    records = []
    for spec, shape in zip(pipeline[0].specs_, pipeline[0].row_shapes_, strict=True):
        array = arrays_of(cache, spec, stimuli)[0]
        provenance = array.provenance
        records.append(
            {
                "key": array.key,
                "spec": spec.to_json(),
                "row_shape": list(shape),
                "values": math.prod(shape),
                "model_asked": from_anywhere(
                    provenance.get("model_asked") or pipeline[0].model or spec.model
                ),
                "weights_asked": provenance.get("weights_asked", ""),
                "weights_label": provenance.get("weights_label", ""),
            }
        )
    return records
