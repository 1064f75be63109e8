"""The official folders of the Algonauts 2023 challenge: ``algonauts2023:DIR``.

::

    subj01/training_split/training_fmri/{lh,rh}_training_fmri.npy       (images, vertices) float32
           training_split/training_images/train-0001_nsd-00013.png …    rows by ascending number
           test_split/test_images/test-0001_nsd-00845.png …             without responses, or
           test_split/test_fmri/{lh,rh}_test_fmri.npy                   with the organisers' release
           test_split/noise_ceiling/{lh,rh}_noise_ceiling.npy           (vertices,), likewise
           roi_masks/{lh,rh}.CLASS_challenge_space.npy, mapping_CLASS.npy
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featpipe.datasets._arrays import npy
from featpipe.datasets._checks import checked_ceiling
from featpipe.datasets._dataset import Dataset
from featpipe.datasets._mapping import read_mapping
from featpipe.datasets._recordings import Recording, join_recordings, union_of_stimuli
from featpipe.datasets._regions import REGIONS, region_order
from featpipe.datasets._subjects import Subjects, pick_subjects
from featpipe.datasets._surface import read_positions
from featpipe.errors import DatasetError
from featpipe.stimuli import StimulusSet

HEMISPHERES = ("lh", "rh")
_FOLDERS = {"train": "training", "test": "test"}  # training_split/training_images, test_split/test_images


def load_algonauts2023(
    place: str,
    *,
    subject: Subjects = None,
    target: str | None = None,
    split: str = "train",
    surface: str | Mapping[str, str] | None = None,
) -> Dataset:
    """Read one subject of the challenge, both hemispheres side by side, or several subjects side by side.

    Of several subjects the images are the union: an NSD id is one image, whoever saw it, and the responses of those
    who did not are NaN.

    Parameters
    ----------
    place : str
        The folder with ``subj01`` to ``subj08``, or the folder of one subject.
    subject : str, int or sequence of them, optional
        ``1`` or ``subj01``; needed where there are several. ``"1,2"``, ``[1, 2]`` or ``all`` joins them.
    target : str, optional
        Read only these targets: a mask, ``lh`` or ``rh``; of several subjects also one of theirs (``subj01.lh.V1v``).
    split : {"train", "test"}
        The test split has responses only in the organisers' release.
    surface : str or mapping, optional
        ``lh=FILE,rh=FILE``, surfaces of fsaverage, which give the targets their positions x, y, z.

    Returns
    -------
    Dataset
        Ids ``nsd-00013``; targets by hemisphere, vertex and, if it is there, noise ceiling, several subjects' also by
        subject; a mask such as ``lh.V1v`` (``subj01.lh.V1v``) per region and hemisphere that has vertices;
        ``test_stimuli`` where there are test images.

    Raises
    ------
    DatasetError
        When files are missing or do not fit together, or what is asked for does not fit in memory.
    """
    split = _split_name(split)
    found = [_recording(folder, split, surface) for folder in _subject_folders(place, subject)]
    return join_recordings(found, name="algonauts2023", target=target)


def load_algonauts2023_stimuli(place: str, *, subject: Subjects = None, split: str = "train") -> StimulusSet:
    """Open only the images of one split, of one subject or of several together."""
    split = _split_name(split)
    sets = {folder.name: _images(folder, split) for folder in _subject_folders(place, subject)}
    return union_of_stimuli(sets)


def algonauts2023_subjects(place: str) -> list[str]:
    """Return the names of the subjects that a folder of the challenge holds."""
    return [folder.name for folder in _subject_folders(place, "all")]


def algonauts2023_vertices(place: str, *, subject: str | int | None = None) -> dict[str, int]:
    """Return the number of vertices per hemisphere of one subject, as the training responses have them."""
    folder = _subject_folders(place, subject)[0]
    return {hemisphere: _fmri(folder, hemisphere, "train").shape[1] for hemisphere in HEMISPHERES}


def _recording(folder: Path, split: str, surface: str | Mapping[str, str] | None) -> Recording:
    """Find all there is about one subject, and leave the responses on the disk."""
    stimuli = _images(folder, split)
    sides = [_fmri(folder, hemisphere, split) for hemisphere in HEMISPHERES]
    for hemisphere, side in zip(HEMISPHERES, sides, strict=True):
        if len(side) != len(stimuli):
            raise DatasetError(
                f"{folder.name} has {len(stimuli)} {split} images and {len(side)} rows of {hemisphere} "
                "responses; the download may be incomplete."
            )
    targets = _targets(folder, {h: side.shape[1] for h, side in zip(HEMISPHERES, sides, strict=True)})
    if surface is not None:
        targets[["x", "y", "z"]] = _positions(folder, targets, surface)
    return Recording(
        subject=folder.name,
        stimuli=stimuli,
        sides=sides,
        targets=targets,
        masks=_masks(folder, targets),
        test_stimuli=_images(folder, "test") if _has_images(folder, "test") else None,
    )


def _split_name(split: str) -> str:
    if split not in _FOLDERS:
        raise DatasetError(f"The challenge has no split {split!r}, only train and test.")
    return split


def _subject_folders(place: str, subject: Subjects) -> list[Path]:
    root = Path(place).expanduser()
    if not root.is_dir():
        raise DatasetError(f"There is no folder {place!r}: write algonauts2023:DIR, DIR with subj01 inside.")
    if (root / "training_split").is_dir():
        root = root.resolve()
        return [root.parent / name for name in pick_subjects([root.name], subject, repr(place))]
    there = sorted(path.name for path in root.iterdir() if (path / "training_split").is_dir())
    if not there:
        raise DatasetError(
            f"{place!r} holds no subject of the challenge: none of its folders has a training_split."
        )
    return [root / name for name in pick_subjects(there, subject, repr(place))]


def _has_images(folder: Path, split: str) -> bool:
    return (folder / f"{_FOLDERS[split]}_split" / f"{_FOLDERS[split]}_images").is_dir()


def _images(folder: Path, split: str) -> StimulusSet:
    """Open the images of a split in the order of their numbers, under their NSD ids."""
    images = folder / f"{_FOLDERS[split]}_split" / f"{_FOLDERS[split]}_images"
    if not images.is_dir():
        raise DatasetError(f"There is no folder {str(images)!r} with the {split} images.")
    stimuli = StimulusSet.from_source(images)
    numbers: dict[str, tuple[int, str]] = {}
    for name in stimuli.ids:
        match = re.fullmatch(rf"{split}-(\d+)_(nsd-\d{{5}})", name)
        if match is None:
            raise DatasetError(f"{name!r} in {str(images)!r} is not named {split}-0001_nsd-00013 or alike.")
        numbers[name] = int(match[1]), match[2]
    order = sorted(stimuli.ids, key=lambda name: numbers[name][0])
    if same := [pair for pair in pairwise(order) if numbers[pair[0]][0] == numbers[pair[1]][0]]:
        raise DatasetError(
            f"{same[0][0]!r} and {same[0][1]!r} in {str(images)!r} have one number; which is first?"
        )
    return stimuli.select(order).rename({name: number[1] for name, number in numbers.items()})


def _fmri(folder: Path, hemisphere: str, split: str) -> np.ndarray:
    """Map the responses of one hemisphere, (n_images, n_vertices), without reading them."""
    name = _FOLDERS[split]
    path = folder / f"{name}_split" / f"{name}_fmri" / f"{hemisphere}_{name}_fmri.npy"
    if not path.exists():
        why = (
            "Only the organisers' release has responses to the test images; to predict them, "
            "`test_stimuli` of the training split is enough."
            if split == "test"
            else "The download may be incomplete."
        )
        raise DatasetError(f"There is no file {str(path)!r}. {why}")
    responses = npy(path)
    if responses.ndim != 2:
        raise DatasetError(f"{str(path)!r} has shape {responses.shape}; (images, vertices) is needed.")
    if responses.dtype.kind not in "fiu":
        raise DatasetError(f"{str(path)!r} holds values of type {responses.dtype}; real numbers are needed.")
    return responses


def _targets(folder: Path, vertices: dict[str, int]) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "hemisphere": np.repeat(list(vertices), list(vertices.values())),
        "vertex": np.concatenate([np.arange(count) for count in vertices.values()]),
        "target": np.arange(sum(vertices.values())),  # keeps the number of a target that is selected later
    }
    ceilings = folder / "test_split" / "noise_ceiling"
    if ceilings.is_dir():
        values = [_ceiling(ceilings / f"{h}_noise_ceiling.npy", count) for h, count in vertices.items()]
        # Some copies are in percent. With thousands of vertices the range tells, over both hemispheres.
        columns["noise_ceiling"] = checked_ceiling(np.concatenate(values), unit="auto")
    return pd.DataFrame(columns)


def _ceiling(path: Path, n_vertices: int) -> np.ndarray:
    if not path.exists():
        raise DatasetError(f"There is no file {str(path)!r} beside the ceiling of the other hemisphere.")
    values = np.asarray(npy(path), dtype=np.float64).ravel()
    if len(values) != n_vertices:
        raise DatasetError(f"{str(path)!r} holds {len(values)} ceilings for {n_vertices} vertices.")
    return values


def _positions(folder: Path, targets: pd.DataFrame, surface: str | Mapping[str, str]) -> np.ndarray:
    """Look up where each vertex is: (n_targets, 3)."""
    counts = targets["hemisphere"].value_counts()
    found = read_positions(surface, HEMISPHERES)
    parts = []
    for hemisphere in HEMISPHERES:
        path = _existing(folder / "roi_masks" / f"{hemisphere}.all-vertices_fsaverage_space.npy")
        kept = np.asarray(npy(path)).ravel() != 0
        if len(kept) != len(found[hemisphere]) or kept.sum() != counts[hemisphere]:
            raise DatasetError(
                f"{str(path)!r} marks {kept.sum()} of {len(kept)} vertices of fsaverage; {counts[hemisphere]} of "
                f"{len(found[hemisphere])} are needed, as there are responses."
            )
        parts.append(found[hemisphere][kept])
    return np.concatenate(parts)


def _masks(folder: Path, targets: pd.DataFrame) -> dict[str, np.ndarray]:
    """Read one mask per region and hemisphere; regions without a vertex are left out."""
    rois = folder / "roi_masks"
    if not rois.is_dir():
        raise DatasetError(
            f"{str(folder)!r} has no folder roi_masks; it belongs to the challenge's download."
        )
    found: dict[str, np.ndarray] = {}
    for kind in REGIONS:
        names = read_mapping(_existing(rois / f"mapping_{kind}.npy"))
        for hemisphere in HEMISPHERES:
            side = (targets["hemisphere"] == hemisphere).to_numpy()
            labels = _labels(rois / f"{hemisphere}.{kind}_challenge_space.npy", int(side.sum()), names)
            for number, name in names.items():
                if number != 0 and (labels == number).any():  # 0 is Unknown
                    mask = np.zeros(len(targets), dtype=bool)
                    mask[side] = labels == number
                    found[f"{hemisphere}.{name}"] = mask
    return {name: found[name] for name in region_order(found)}


def _labels(path: Path, n_vertices: int, names: dict[int, str]) -> np.ndarray:
    labels = np.asarray(npy(_existing(path)))
    if labels.shape != (n_vertices,):
        raise DatasetError(
            f"{str(path)!r} has shape {labels.shape}, the responses of that hemisphere have {n_vertices} "
            "vertices."
        )
    if unknown := sorted(set(np.unique(labels).tolist()) - set(names) - {0}):
        raise DatasetError(f"{str(path)!r} holds labels {unknown} that its mapping does not name.")
    return labels


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DatasetError(f"There is no file {str(path)!r}; it belongs to the challenge's download.")
    return path
