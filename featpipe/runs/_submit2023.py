"""Hand in predictions to the Algonauts 2023 challenge: ``subj0X/{lh,rh}_pred_test.npy`` in a zip."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.datasets import load_stimuli, parse_data, subjects_of
from featpipe.errors import RecipeError, RequestError, WorkError
from featpipe.extraction import Means, Progress
from featpipe.files import written_whole
from featpipe.runs._predict import predict
from featpipe.runs._subjects import SubjectRun, runs_by_subject
from featpipe.stimuli import StimulusSet

HEMISPHERES = ("lh", "rh")
SUBJECTS = tuple(f"subj{number:02d}" for number in range(1, 9))
_LEVEL = 1  # the last digits of a prediction hardly shrink, however long one tries


def submit_algonauts2023(
    runs: Sequence[str],
    data: str,
    out: str,
    *,
    partial: bool = False,
    cache: str | None = None,
    mirror: str | None = None,
    mirror_size: int | None = None,
    means: Means | None = None,
    progress: Progress | None = None,
    trust: bool = False,
) -> dict[str, int]:
    """Predict every subject's test images with its run and write the file that the challenge takes.

    The file is read back and compared with the folder of the data before it appears under its name.

    Parameters
    ----------
    runs : sequence of str
        One run folder a subject, a run of several subjects, or a folder of runs (``fit --subject all``).
    data : str
        ``algonauts2023:DIR``.
    out : str
        The ``.zip``.
    partial : bool
        Let fewer than the eight subjects do.
    cache, mirror, mirror_size, means, progress, trust
        See `predict`.

    Returns
    -------
    dict of str to int
        Number of test images by subject.

    Raises
    ------
    RecipeError
        A subject has no run, or a run predicts other targets than all vertices.
    WorkError
        Predictions are not finite, or the file that was written is not as it should be.

    Warns
    -----
    UserWarning
        When a run was fitted on some of the images.
    """
    found = runs_by_subject(runs, data)
    if not partial:
        _refuse_missing(found, data)
    images = {name: load_stimuli(data, subject=name, split="test") for name in found}
    for name, part in found.items():
        _warn_of_training_images(part, images[name])
    wanted = {
        f"{name}/{hemisphere}_pred_test.npy": (len(images[name]), part.n_vertices[hemisphere])
        for name, part in found.items()
        for hemisphere in HEMISPHERES
    }
    where = {"cache": cache, "mirror": mirror, "mirror_size": mirror_size}
    how: dict[str, Any] = {**where, "means": means, "progress": progress, "trust": trust}
    with written_whole(Path(out)) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
            for name, part in found.items():
                predicted = predict(part.run, images[name], **how)
                _write_subject(archive, part, np.asarray(predicted)[:, part.columns])
        file.flush()
        check_submission(file.name, wanted)
    return {name: len(stimuli) for name, stimuli in images.items()}


def check_submission(path: str, wanted: Mapping[str, tuple[int, int]]) -> None:
    """Refuse a zip that does not hold exactly these finite float32 arrays.

    Raises
    ------
    WorkError
        Names the first member that differs.
    """
    with zipfile.ZipFile(path) as archive:
        if (names := archive.namelist()) != list(wanted):
            raise WorkError(f"The submission holds {', '.join(names)}, not {', '.join(wanted)}.")
        for name, shape in wanted.items():
            values = read_member(archive, name)
            if values.dtype != np.float32 or values.shape != shape or not np.isfinite(values).all():
                raise WorkError(
                    f"{name} holds {values.dtype} of shape {values.shape}; finite float32 of shape {shape} is needed."
                )


def read_submission(path: str) -> dict[str, np.ndarray]:
    """Read a submission: by subject, predictions of shape (n_images, n_vertices), left hemisphere first.

    Raises
    ------
    RequestError
        The file is no zip with ``subj0X/{lh,rh}_pred_test.npy`` inside.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            subjects = sorted({name.partition("/")[0] for name in archive.namelist()} & set(SUBJECTS))
            if not subjects:
                raise RequestError(f"{path} has no folder subj01 to subj08 inside; it is no submission.")
            return {
                subject: np.concatenate(
                    [
                        read_member(archive, f"{subject}/{hemisphere}_pred_test.npy")
                        for hemisphere in HEMISPHERES
                    ],
                    axis=1,
                )
                for subject in subjects
            }
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"{path} cannot be read as a submission ({error}): a zip with subj01/lh_pred_test.npy, "
            "subj01/rh_pred_test.npy and so on. `featpipe submit` writes one."
        ) from error


def read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read a ``.npy`` member of a zip, no pickles."""
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _refuse_missing(found: Mapping[str, SubjectRun], data: str) -> None:
    missing = [name for name in SUBJECTS if name not in found]
    if not missing:
        return
    there = subjects_of(data)
    absent = [name for name in missing if name not in there]
    raise RecipeError(
        f"There is no run of {', '.join(missing)}"
        + (f", and {parse_data(data)[1]!r} does not hold {', '.join(absent)}" if absent else "")
        + ". The challenge takes all eight subjects: give a run of each, or say --partial."
    )


def _write_subject(archive: zipfile.ZipFile, part: SubjectRun, predicted: np.ndarray) -> None:
    if not np.isfinite(predicted).all():
        bad = int((~np.isfinite(predicted)).sum())
        raise WorkError(
            f"{bad} predictions of {part.run.path} for {part.subject} are not finite; nothing was written. Look for "
            "features that overflow, or fit the run again."
        )
    start = 0
    for hemisphere, count in part.n_vertices.items():
        values = np.ascontiguousarray(predicted[:, start : start + count], dtype=np.float32)
        # opened by name, a member has the date of 1980: equal predictions give equal bytes
        with archive.open(f"{part.subject}/{hemisphere}_pred_test.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, values, allow_pickle=False)
        start += count


def _warn_of_training_images(part: SubjectRun, stimuli: StimulusSet) -> None:
    seen = part.run.trained_on(stimuli.sha256)
    if seen.any():
        warnings.warn(
            f"{seen.sum()} of {len(seen)} test images of {part.subject} were in the training set of {part.run.path}, "
            f"first {stimuli.ids[int(seen.argmax())]!r}. A challenge is about images that were never seen.",
            UserWarning,
            stacklevel=3,
        )
