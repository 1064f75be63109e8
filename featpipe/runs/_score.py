"""Score a saved run, or a file of predictions, on data that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.datasets import (
    Dataset,
    RDMDataset,
    algonauts2023_vertices,
    load_dataset,
    parse_data,
    pick_subjects,
)
from featpipe.errors import RequestError
from featpipe.extraction import Means, Progress
from featpipe.runs._folder import RunFolder
from featpipe.runs._predict import predict
from featpipe.runs._prediction_files import Predictions, read_predictions
from featpipe.runs._score_rdms import score_rdms
from featpipe.runs._scored import Scored, together
from featpipe.runs._seen import refuse_seen
from featpipe.runs._subjects import run_folders
from featpipe.runs._submit2023 import read_submission
from featpipe.runs._summary import target_names


def score(
    source: str | Sequence[str],
    data: str,
    *,
    subject: str | None = None,
    target: str | None = None,
    cache: str | None = None,
    mirror: str | None = None,
    mirror_size: int | None = None,
    means: Means | None = None,
    progress: Progress | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Score a run folder or a file of predictions on a dataset, or runs of several subjects together.

    Of data with splits the test split is scored. Images that the pipeline was fitted on are refused, also in
    a file of predictions that `featpipe predict` made.

    Parameters
    ----------
    source : str or sequence of str
        A run folder, or a file that `write_predictions` made; of ``algonauts2023:`` also a submission (``.zip``).
        Several run folders, or a folder of runs, are of one subject each.
    data : str
        DATA.
    subject, target : str, optional
        As in `fit`; a run's own are the default.
    cache, mirror, mirror_size, means, progress, trust
        See `predict`.

    Returns
    -------
    dict
        As ``summary.json``, see `summarise`; one fold. ``algonauts2023`` is the official score where the data have
        ceilings, see `algonauts2023_score`. Of several subjects, see `subjects_summary`.

    Raises
    ------
    RequestError
        Ids or targets do not match, or images were in the training set.
    """
    sources = run_folders([source] if isinstance(source, str) else source)
    if len(sources) == 1 and sources[0].endswith(".zip") and parse_data(data)[0] == "algonauts2023":
        return together(_scored_submission(sources[0], data, subject, target))
    where = {"cache": cache, "mirror": mirror, "mirror_size": mirror_size}
    how: dict[str, Any] = {**where, "means": means, "progress": progress, "trust": trust}
    if len(sources) > 1:
        _refuse_together(sources)
        return together(_of_responses(_score_one(one, data, subject, target, **how), one) for one in sources)
    found = _score_one(sources[0], data, subject, target, **how)
    return found.summary() if isinstance(found, Scored) else found


def _score_one(
    source: str, data: str, subject: str | None, target: str | None, **how: Any
) -> Scored | dict[str, Any]:
    """Score one run folder or file of predictions: responses, or the summary of RDMs."""
    run = RunFolder.open(source) if Path(source).is_dir() else None
    if run is not None:
        recorded = run.read_json("run.json")["data"]
        _refuse_another_target(run, recorded["target"], target)
        asked, subject, target = subject, subject or recorded["subject"], target or recorded["target"]
    dataset = _held_out(data, subject, target)
    if run is not None and asked is not None:
        _refuse_another_subject(run, recorded["subject"], dataset)
    if run is not None and (run.kind == "rdms") != isinstance(dataset, RDMDataset):
        came, wanted = ("RDMs", "responses") if run.kind == "rdms" else ("responses", "RDMs")
        raise RequestError(f"{source} predicts {came}, but {dataset.name!r} holds {wanted}.")
    if isinstance(dataset, RDMDataset):
        if run is not None:
            refuse_seen(dataset, run.trained_on(dataset.digests.tolist()), str(run.path))
        return score_rdms(source, dataset, target, **how)
    predictions: Any
    if run is None:
        read = read_predictions(source)
        predictions, names = _aligned(read, dataset), read.targets
    else:
        _refuse_training_images(run, dataset)
        stimuli = dataset.stimuli.select(dataset.ids.tolist())
        predictions = predict(run, stimuli, **how)
        names = run.target_names()
    return _scored(dataset, predictions, names)


def _of_responses(found: Scored | dict[str, Any], source: str) -> Scored:
    if isinstance(found, Scored):
        return found
    raise RequestError(f"{source} predicts RDMs, which are scored one run at a time. Give that run alone.")


def _refuse_together(sources: Sequence[str]) -> None:
    """Refuse runs that cannot be scored together, before the first of them is."""
    owner: dict[str, str] = {}
    for run in (RunFolder.open(source) for source in sources if Path(source).is_dir()):
        if run.kind == "rdms":
            _of_responses({}, str(run.path))
        subject = str(run.read_json("run.json")["data"]["subject"])
        if subject in owner:
            raise RequestError(
                f"{owner[subject]} and {run.path} are both of subject {subject}. Give one run a subject."
            )
        owner[subject] = str(run.path)


def _scored_submission(path: str, data: str, subject: str | None, target: str | None) -> Iterator[Scored]:
    """Score every subject of a submission zip, whose rows are the test images in their order."""
    predictions = read_submission(path)
    chosen = list(predictions) if subject is None else pick_subjects(list(predictions), subject, path)
    for name in chosen:
        dataset = load_dataset(data, subject=name, target=target, split="test")
        assert isinstance(dataset, Dataset), "the challenge is of responses"
        whole = (dataset.n_stimuli, sum(algonauts2023_vertices(parse_data(data)[1], subject=name).values()))
        if predictions[name].shape != whole or not np.isfinite(predictions[name]).all():
            raise RequestError(
                f"{path} predicts {name} with shape {predictions[name].shape}; finite numbers for (images, vertices) "
                f"{whole} are needed."
            )
        yield _scored(dataset, predictions[name][:, dataset.targets["target"].to_numpy()], None)


def _held_out(data: str, subject: str | None, target: str | None) -> Dataset | RDMDataset:
    """Return the test split, or all rows of data that have none."""
    if parse_data(data)[0] == "algonauts2023":  # train and test are different files
        return load_dataset(data, subject=subject, target=target, split="test")
    dataset = load_dataset(data, subject=subject, target=target)
    if isinstance(dataset, RDMDataset) and dataset.test_stimuli is not None:
        return load_dataset(data, subject=subject, target=target, split="test")
    has_test = dataset.splits is not None and "test" in dataset.splits
    return dataset.select_split("test") if has_test else dataset


def _scored(dataset: Dataset, predictions: np.ndarray, names: Sequence[str] | None) -> Scored:
    predictions = predictions[:, None] if predictions.ndim == 1 else predictions
    if predictions.shape != dataset.responses.shape:
        raise RequestError(
            f"Predictions have {predictions.shape[1]} targets, {dataset.name!r} has {dataset.n_targets}. "
            "Score them on the subject and target that they were made for (--subject, --target)."
        )
    _refuse_other_names(dataset, names)
    return Scored.of(dataset, predictions)


def _aligned(read: Predictions, dataset: Dataset) -> np.ndarray:
    """Return predictions in the dataset's order, joined by id; refuse those of training images."""
    row = {str(name): position for position, name in enumerate(read.ids)}
    if len(row) != len(read.ids):
        raise RequestError("The file of predictions has an id twice; each stimulus must be predicted once.")
    missing = [name for name in dataset.ids.tolist() if name not in row]
    if missing:
        raise RequestError(
            f"{len(missing)} of {dataset.n_stimuli} stimuli of {dataset.name!r} have no prediction, "
            f"first {missing[0]!r}. Predict the images that are scored."
        )
    rows = np.array([row[name] for name in dataset.ids.tolist()])
    if read.in_training is not None:
        refuse_seen(dataset, read.in_training[rows], "the run that made these predictions")
    return read.values[rows]


def _refuse_another_subject(run: RunFolder, fitted: str | None, dataset: Dataset | RDMDataset) -> None:
    """Refuse responses of one subject for those of another: a voxel's number means nothing in another head."""
    given = getattr(dataset, "subject", None)
    if isinstance(dataset, Dataset) and fitted and given and fitted != given:
        raise RequestError(
            f"{run.path} predicts the responses of {fitted}, which --subject would compare with those of {given}. "
            f"Leave --subject out, or fit a run for {given}."
        )


def _refuse_another_target(run: RunFolder, fitted: str | None, asked: str | None) -> None:
    if fitted and asked and fitted != asked:
        raise RequestError(
            f"{run.path} predicts the targets {fitted}, which --target {asked} would compare with others. Leave "
            f"--target out, or fit a run for {asked}."
        )


def _refuse_other_names(dataset: Dataset, names: Sequence[str] | None) -> None:
    """Refuse predictions whose targets go by other names than the data's; against names, bare numbers say nothing."""
    wanted = [str(name) for name in target_names(dataset)]
    if names is None or list(names) == wanted:
        return
    numbers = [str(position) for position in range(len(wanted))]
    if numbers in (list(names), wanted) and not all(name.isdecimal() for name in (*names, *wanted)):
        return
    came, right = next(pair for pair in zip(names, wanted, strict=True) if pair[0] != pair[1])
    raise RequestError(
        f"Predictions are of target {came!r} where {dataset.name!r} has {right!r}. Score them on the subject and "
        "target that they were made for (--subject, --target), with targets of the same names in the same order."
    )


def _refuse_training_images(run: RunFolder, dataset: Dataset) -> None:
    refuse_seen(dataset, run.trained_on(dataset.digests.tolist()), str(run.path))
