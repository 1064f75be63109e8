"""Score predicted RDMs, and hand them in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import natsort
import numpy as np

from featpipe.datasets import RDMDataset
from featpipe.errors import RecipeError, RequestError
from featpipe.extraction import Means, Progress
from featpipe.rsa import (
    RDM_METRICS,
    RDMs,
    algonauts2019_scores,
    challenge_variable,
    measured_labels,
    rdm_nulls_summary,
    read_challenge_rdms,
    write_challenge_rdms,
    write_submission,
)
from featpipe.runs._folder import RunFolder
from featpipe.runs._predict import predict
from featpipe.runs._seen import refuse_seen
from featpipe.runs._summary import summarise_rdms
from featpipe.stimuli import StimulusSet

TRACKS = {"fmri": ("EVC", "IT"), "meg": ("MEG-early", "MEG-late")}


def score_rdms(
    source: str,
    dataset: RDMDataset,
    target: str | None,
    *,
    cache: str | None = None,
    mirror: str | None = None,
    mirror_size: int | None = None,
    means: Means | None = None,
    progress: Progress | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Score a run folder, or a file of predicted RDMs, on measured RDMs; see `score`."""
    has_ids = True
    if Path(source).is_dir():
        run = RunFolder.open(source)
        stimuli = dataset.stimuli.select(dataset.ids.tolist())
        predicted = predict(
            run,
            stimuli,
            cache=cache,
            mirror=mirror,
            mirror_size=mirror_size,
            means=means,
            progress=progress,
            trust=trust,
        )
        assert isinstance(predicted, RDMs), "runs of responses were refused"
        predictions = {str(run.read_json("run.json")["data"]["target"]): predicted}
    else:
        found = read_challenge_rdms(source)
        has_ids = found.ids is not None
        ids = None if found.ids is None else _full_ids(found.ids, dataset)
        if ids is not None and found.in_training is not None:
            refuse_seen(dataset, np.isin(dataset.ids, ids[found.in_training]), "the run that made them")
        predictions = {name: _joined(name, matrix, ids, dataset) for name, matrix in found.rdms.items()}
    if target is not None:
        if target not in predictions:
            raise RequestError(
                f"The predictions are of {', '.join(predictions) or 'nothing'}, not of --target {target}. Name one "
                "that they are of."
            )
        predictions = {target: predictions[target]}
    scores = _scores(dataset, predictions)
    if not has_ids:
        warnings.warn(
            f"{source} holds no ids: its rows were taken in the natural order of the images of {dataset.name!r}, "
            f"first {str(dataset.ids[0])!r}, last {str(dataset.ids[-1])!r}.",
            UserWarning,
            stacklevel=2,
        )
    return scores


def _joined(name: str, matrix: np.ndarray, ids: np.ndarray | None, dataset: RDMDataset) -> RDMs:
    """Return a predicted RDM by the ids of the data; without ids in the file its rows are taken in their order."""
    if ids is not None:
        return RDMs(matrix, ids).take(dataset.ids)
    if len(matrix) != dataset.n_stimuli:
        raise RequestError(
            f"The RDM of {name} has {len(matrix)} stimuli and no ids, {dataset.name!r} has {dataset.n_stimuli}. Score "
            "it on the images that it was made for."
        )
    return RDMs(matrix, dataset.ids)


def _full_ids(ids: np.ndarray, dataset: RDMDataset) -> np.ndarray:
    """Return ids as ``SET/NAME`` where the data are one such set, and the images were predicted from its folder."""
    sets = set(dataset.rdms.sets.tolist())
    if len(sets) != 1 or any("/" in name for name in ids.tolist()):
        return ids
    prefix = f"{sets.pop()}/"
    return ids if prefix == "/" else np.array([prefix + name for name in ids.tolist()])


def _scores(dataset: RDMDataset, predictions: Mapping[str, RDMs]) -> dict[str, Any]:
    known = {name: rdms for name, rdms in predictions.items() if name in dataset.target_names}
    if not known:
        raise RequestError(
            f"The predictions are of {', '.join(predictions) or 'nothing'}; {dataset.name!r} has "
            f"{', '.join(dataset.target_names)}. Predict one of these targets."
        )
    labels: list[tuple[str, str]] = []
    nulls: dict[str, Any] = {"targets": {}}
    columns: dict[str, list[np.ndarray]] = {metric: [] for metric in RDM_METRICS}
    for name, rdms in known.items():
        measured = dataset.rdms.select(targets=[name])
        labels += measured_labels(measured)
        chance = rdm_nulls_summary(measured, rdms)
        nulls = chance | {"targets": nulls["targets"] | chance["targets"]}
        for metric, function in RDM_METRICS.items():
            columns[metric].append(function(measured, rdms))
    scores = {metric: np.concatenate(values)[None] for metric, values in columns.items()}
    return summarise_rdms(scores, labels) | {
        "nulls": nulls,
        "official": algonauts2019_scores(dataset.rdms, known),
        "n_stimuli": dataset.n_stimuli,
        "n_targets": len(labels),
        "n_folds": 1,
    }


def write_predicted_rdms(
    path: str | Path, run: RunFolder, predicted: RDMs, *, in_training: np.ndarray | None = None
) -> str:
    """Write a run's predicted RDM under the challenge's name for its target, with ids; return the name.

    Parameters
    ----------
    path : path
        ``.npz`` or ``.mat``.
    run : RunFolder
    predicted : RDMs with one RDM
    in_training : array of bool, shape (n_stimuli,), optional
        Images that the run was fitted on: `score` refuses them.
    """
    target = str(run.read_json("run.json")["data"]["target"])
    name = challenge_variable(target)
    write_challenge_rdms(path, {target: predicted.values[0]}, predicted.ids, in_training=in_training)
    return name


def submit(
    runs: Sequence[str],
    stimuli: StimulusSet,
    out: str,
    *,
    cache: str | None = None,
    mirror: str | None = None,
    mirror_size: int | None = None,
    means: Means | None = None,
    progress: Progress | None = None,
    trust: bool = False,
) -> str:
    """Predict the challenge's images with the runs of one track and write what is handed in.

    Parameters
    ----------
    runs : sequence of str
        One run folder per target of the track: EVC and IT (fMRI), or MEG-early and MEG-late.
    stimuli : StimulusSet
        The images, whose natural order is that of rows and columns.
    out : str
        The ``.zip``.
    cache, mirror, mirror_size, means, progress, trust
        See `predict`.

    Returns
    -------
    str
        The track, ``fmri`` or ``meg``.

    Raises
    ------
    RecipeError
        The runs are not one per target of a track.

    Warns
    -----
    UserWarning
        When a run was fitted on some of the images.
    """
    folders = {_target_of(run): run for run in map(RunFolder.open, runs)}
    track = next((name for name, targets in TRACKS.items() if folders.keys() == set(targets)), None)
    if track is None or len(folders) != len(runs):
        raise RecipeError(
            "A submission needs one run per target of a track, EVC and IT or MEG-early and MEG-late; given are runs "
            f"of {', '.join(map(_target_of, map(RunFolder.open, runs)))}."
        )
    ordered = stimuli.select(list(natsort.natsorted(stimuli.ids)))
    where = {"cache": cache, "mirror": mirror, "mirror_size": mirror_size}
    how: dict[str, Any] = {**where, "means": means, "progress": progress, "trust": trust}
    rdms = {}
    for target in TRACKS[track]:
        _warn_of_training_images(folders[target], ordered)
        predicted = predict(folders[target], ordered, **how)
        assert isinstance(predicted, RDMs), "a run of RDMs predicts RDMs"
        rdms[target] = predicted.values[0]
    write_submission(out, track, rdms)
    return track


def _warn_of_training_images(run: RunFolder, stimuli: StimulusSet) -> None:
    seen = run.trained_on(stimuli.sha256)
    if seen.any():
        warnings.warn(
            f"{seen.sum()} of {len(seen)} images were in the training set of {run.path}, first "
            f"{stimuli.ids[int(seen.argmax())]!r}. A challenge is about images that were never seen: check --images.",
            UserWarning,
            stacklevel=3,
        )


def _target_of(run: RunFolder) -> str:
    record = run.read_json("run.json")
    if record.get("kind") != "rdms":
        raise RecipeError(f"{run.path} predicts responses; a submission to Algonauts 2019 is made of RDMs.")
    return str(record["data"]["target"])
