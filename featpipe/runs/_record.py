"""What a run's ``run.json`` says."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sklearn.pipeline import Pipeline

from featpipe.datasets import Dataset, RDMDataset
from featpipe.extraction import Extraction
from featpipe.features import CachedFeatures, arrays_of, parts_of
from featpipe.model_selection import Evaluation
from featpipe.models import resolve
from featpipe.recipes import tuner_of
from featpipe.runs._predict import set_to_read
from featpipe.runs._tasks import RDMTask, Task
from featpipe.runs._tuned import network_request, tuner_record
from featpipe.spec import from_anywhere
from featpipe.store import Root, absolute

if TYPE_CHECKING:
    from featpipe.runs._fit import FitRequest

AnyDataset = Dataset | RDMDataset

_LIBRARIES = ("featpipe", "numpy", "scipy", "scikit-learn", "pandas", "zarr", "joblib")


def run_record(
    request: FitRequest,
    dataset: AnyDataset,
    task: Task,
    evaluation: Evaluation,
    cv: str,
    final: Pipeline,
    extracted: Sequence[Extraction] | None,
    times: Mapping[str, float],
) -> dict[str, Any]:
    """Return what ``run.json`` holds: all that is needed to do the run again."""
    recipe = request.recipe
    return {
        "format": 1,
        "recipe": {"name": recipe.name, "path": recipe.path, "sha256": recipe.sha256},
        "kind": task.kind,
        "summary": recipe.summary,
        "citation": recipe.citation,
        "data": {
            "given": request.data,
            "name": dataset.name,
            "subject": getattr(dataset, "subject", None),
            "surface": request.surface,
            "target": task.target if isinstance(task, RDMTask) else request.target,
            "stimuli": dataset.stimuli.digest,
            "n_stimuli": dataset.n_stimuli,
            "n_targets": len(task.names),
        },
        "targets": task.names,
        "cache": None if recipe.tuner is not None else _cache_of(request),
        "given": dict(request.given),
        "cv": cv,
        "folds": [list(map(str, ids)) for ids in evaluation.test_ids],
        **_inputs(request, dataset, final),
        "pipeline": {name: repr(step) for name, step in final.steps},
        "extraction": None
        if extracted is None
        else [
            {"computed": done.n_computed, "reused": done.n_reused, "device": done.device}
            for done in extracted
        ],
        "seconds": {name: round(value, 3) for name, value in times.items()},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in _LIBRARIES} | {"python": platform.python_version()},
        "target_batch": {k: v for k, v in final.get_params().items() if k.endswith("target_batch")},
    }


def _cache_of(request: FitRequest) -> str:
    """Return where the cache is found again: a URL, or a folder's whole path; a mirror is this machine's own."""
    return str(absolute(request.cache))


def _inputs(request: FitRequest, dataset: AnyDataset, final: Pipeline) -> dict[str, Any]:
    """Return the features that were read, or what became of the network that read images."""
    if (tuner := tuner_of(final)) is None:
        read = set_to_read(dataset.stimuli, request.cache)
        return {"features": features_record(final, request.cache, read)}
    asked = replace(network_request(tuner), trust=request.trust)
    return {"features": [], "tuner": tuner_record(tuner, resolve(asked).weights)}


def features_record(pipeline: Pipeline, cache: Root, stimuli: str) -> list[dict[str, Any]]:
    """Return the features that a fitted pipeline reads: spec, cache key, and how they were asked for."""
    features = pipeline[0]
    records = []
    for (name, part), spec, shape in zip(
        _part_of_each(features), features.specs_, features.row_shapes_, strict=True
    ):
        array = arrays_of(cache, spec, stimuli)[0]
        provenance = array.provenance
        records.append(
            {
                "part": name,
                "key": array.key,
                "spec": spec.to_json(),
                "row_shape": list(shape),
                "values": math.prod(shape),
                "model_asked": from_anywhere(provenance.get("model_asked") or part.model or spec.model),
                "weights_asked": provenance.get("weights_asked", ""),
                "weights_label": provenance.get("weights_label", ""),
            }
        )
    return records


def _part_of_each(features: Any) -> list[tuple[str, CachedFeatures]]:
    """Return the name and the part that each layer came from."""
    return [(name, part) for name, part in parts_of(features) for _ in part.specs_]
