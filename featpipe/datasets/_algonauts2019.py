"""The official folders of the Algonauts 2019 challenge: ``algonauts2019:DIR``.

::

    Training_Data/92_Image_Set/92images/image_01.jpg …   their order is that of rows and columns
                               target_fmri.mat           EVC_RDMs, IT_RDMs (15, 92, 92)
                               target_meg.mat            MEG_RDMs_early, MEG_RDMs_late (15, 20, 92, 92)
                  118_Image_Set/…                        likewise
    Test_Data/78_Image_Set/78images/…                    without targets, or with them to be scored

DIR is any of these folders. ``.npz`` files of the same names, or a ``.npy`` per variable, are read where there
is no ``.mat``; ``target_meg_timeavg`` (15, n, n), averaged over time, where there is no ``target_meg``. Letter
case does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featpipe.datasets._rdm_dataset import RDMDataset, no_target
from featpipe.datasets._rdm_values import checked_rdms
from featpipe.datasets._rows import sorted_rows
from featpipe.errors import DatasetError, RequestError
from featpipe.rsa import RDMs, concat, stack
from featpipe.rsa._arrays import SUFFIXES, read_arrays
from featpipe.rsa._challenge import CHALLENGE_VARIABLES
from featpipe.stimuli import StimulusSet, join_stimuli

_FILES = {
    "EVC": ("target_fmri", "EVC_RDMs"),
    "IT": ("target_fmri", "IT_RDMs"),
    "MEG-early": ("target_meg", "MEG_RDMs_early", "target_meg_timeavg"),
    "MEG-late": ("target_meg", "MEG_RDMs_late", "target_meg_timeavg"),
}
_SPLITS = ("train", "test")
_TEST_SET = "78"  # the challenge's, also where it lies beside the training sets


@dataclass(frozen=True)
class ImageSet:
    """The folder of one image set, and the file that holds each target."""

    folder: Path
    targets: Mapping[str, Path]

    @property
    def name(self) -> str:
        """What stands before ``/`` in the ids: ``92`` of ``92_Image_Set``."""
        if match := _set_name(self.folder):
            return match
        images = self.images.name
        number = re.match(r"(\d+)_?images", images, re.IGNORECASE)
        return number[1] if number else self.folder.resolve().name

    @property
    def images(self) -> Path:
        """The folder or archive with the images; raises `DatasetError` where it is not clear."""
        found = [path for path in _listed(self.folder) if _is_images(path)]
        if len(found) > 1:
            raise DatasetError(
                f"{str(self.folder)!r} has several folders of images, {', '.join(p.name for p in found)}; keep one."
            )
        return found[0] if found else self.folder

    def stimuli(self) -> StimulusSet:
        return StimulusSet.from_source(self.images)

    def rdms(self, targets: Sequence[str], ids: Sequence[str]) -> RDMs:
        """Read targets over all stimuli of the set, whose images have these ids."""
        arrays = {path: read_arrays(path) for path in dict.fromkeys(self.targets[t] for t in targets)}
        parts = [
            checked_rdms(
                _variable(arrays[path], CHALLENGE_VARIABLES[target], path), ids,
                target=target, where=f"{CHALLENGE_VARIABLES[target]} in {str(path)!r}",
            )
            for target in targets
            for path in [self.targets[target]]
        ]  # fmt: skip
        return stack(parts)


def load_algonauts2019(
    place: str, *, subject: str | int | None = None, target: str | None = None, split: str | None = None
) -> RDMDataset:
    """Read the RDMs of all image sets of a folder as one, pairs across the sets NaN.

    Parameters
    ----------
    place : str
        The folder with ``Training_Data`` (and ``Test_Data``), one of these, or one image set.
    subject : str or int, optional
        Keep one of "01" to "15". Those of fMRI and those of MEG are different people.
    target : {"EVC", "IT", "MEG-early", "MEG-late"}, optional
        All that there are by default.
    split : {"train", "test"}, optional
        Image sets in a folder such as ``Test_Data`` are the test split; where sets lie side by side, those
        without targets and the challenge's own, ``78``. None is the training split where there is one. One
        image set alone is read whatever the split.

    Returns
    -------
    RDMDataset
        Ids ``92/image_01``; MEG with a time axis as one RDM per subject and time. ``test_stimuli`` are the
        images of the test split.

    Raises
    ------
    DatasetError
        When files are missing, damaged or do not fit together; names the file.
    """
    sets = _image_sets(place)
    chosen = _of_split(sets, split, place)
    targets = _common_targets(chosen, target, place)
    stimuli, parts = {}, []
    for part in chosen:
        stimuli[part.name] = part.stimuli()
        ids = sorted_rows(stimuli[part.name].ids, str(part.folder))
        parts.append(part.rdms(targets, [f"{part.name}/{i}" for i in ids]))
    rdms = _joined(parts, chosen)
    test = [] if chosen == sets["test"] else sets["test"]
    dataset = RDMDataset(
        name="algonauts2019",
        stimuli=join_stimuli(stimuli, name="algonauts2019"),
        ids=rdms.ids,
        rdms=rdms,
        test_stimuli=_joined_stimuli(test, "algonauts2019-test") if test else None,
    )
    return dataset if subject is None else dataset.select_subject(subject)


def load_algonauts2019_stimuli(place: str, *, split: str | None = None) -> StimulusSet:
    """Open only the images of one split, also where there are no targets."""
    chosen = _of_split(_image_sets(place), split, place)
    return _joined_stimuli(chosen, "algonauts2019")


def _joined_stimuli(sets: Sequence[ImageSet], name: str) -> StimulusSet:
    return join_stimuli({part.name: part.stimuli() for part in sets}, name=name)


# Which folders are meant


def _image_sets(place: str) -> dict[str, list[ImageSet]]:
    """Find the image sets of each split, by name; a set alone belongs to both."""
    root = Path(place).expanduser()
    if not root.is_dir():
        raise DatasetError(
            f"There is no folder {place!r}: write algonauts2019:DIR, DIR with Training_Data or an image set inside."
        )
    if _is_set(root):
        alone = [ImageSet(root, _target_files(root))]
        return {"train": alone, "test": alone}
    found: dict[str, list[ImageSet]] = {split: [] for split in _SPLITS}
    for folder, above in _set_folders(root):
        part = ImageSet(folder, _target_files(folder))
        found["test" if _is_test(part, above) else "train"].append(part)
    if not any(found.values()):
        raise DatasetError(
            f"{place!r} holds no image set of the challenge: there is no Training_Data, no Test_Data and no folder "
            "such as 92_Image_Set with images and target_fmri.mat inside."
        )
    for sets in found.values():
        sets.sort(key=lambda part: (len(part.name), part.name))
        if len({part.name for part in sets}) < len(sets):
            names = ", ".join(str(part.folder) for part in sets)
            raise DatasetError(f"Two image sets have one name among {names}; keep one of them.")
    return found


def _set_folders(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield each image set of a folder, and of the folders in it that are named as splits, with what it lies in."""
    for path in _listed(root):
        if not path.is_dir():
            continue
        if _set_name(path) or (_named_as_split(root) and _is_set(path)):
            yield path, root.resolve().name
        elif _named_as_split(path):
            yield from (
                [(path, path.name)]
                if _is_set(path)
                else [(inner, path.name) for inner in _listed(path) if _set_name(inner) or _is_set(inner)]
            )


def _named_as(split: str, name: str) -> bool:
    """Whether a folder is called ``Test_Data``, ``test`` or alike, and no other word that starts so."""
    return bool(
        re.fullmatch(rf"{split}(ing)?([ _-]?(data|set|split|images?[ _-]?set))?", name, re.IGNORECASE)
    )


def _named_as_split(folder: Path) -> bool:
    return any(_named_as(split, folder.resolve().name) for split in _SPLITS)


def _is_test(part: ImageSet, above: str) -> bool:
    """Tell by the folder that a set lies in; beside others, by its name and by its lack of targets."""
    if any(_named_as(split, above) for split in _SPLITS):
        return _named_as("test", above)
    return part.name == _TEST_SET or _named_as("test", part.folder.name) or not part.targets


def _is_set(path: Path) -> bool:
    """Whether a folder is one image set: by its targets, its folder of images, or its name."""
    if not path.is_dir():
        return False
    return bool(_set_name(path) or _target_files(path)) or any(map(_is_images, _listed(path)))


def _set_name(path: Path) -> str | None:
    match = re.fullmatch(r"(.+?)_?image_?set", path.resolve().name, re.IGNORECASE)
    return match[1] if match and path.is_dir() else None


def _is_images(path: Path) -> bool:
    return bool(re.fullmatch(r"\d*_?images(\.zip|\.tar)?", path.name, re.IGNORECASE))


def _target_files(folder: Path) -> dict[str, Path]:
    """Return the file of each target that a folder has; the first ending and name of those that are read."""
    there = {path.name.casefold(): path for path in _listed(folder) if path.is_file()}
    found = {}
    for target, stems in _FILES.items():
        names = [f"{stem}{suffix}".casefold() for stem in stems for suffix in SUFFIXES]
        if name := next((name for name in names if name in there), None):
            found[target] = there[name]
    return found


def _listed(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _of_split(sets: Mapping[str, list[ImageSet]], split: str | None, place: str) -> list[ImageSet]:
    if split is not None and split not in _SPLITS:
        raise DatasetError(f"The challenge has no split {split!r}, only train and test.")
    chosen = sets[split] if split else sets["train"] or sets["test"]
    if not chosen:
        there = ", ".join(part.folder.name for part in sets["train"] or sets["test"])
        folder = "Test_Data" if split == "test" else "Training_Data"
        raise DatasetError(
            f"{place!r} has no {split} split, no image set in a folder {folder}; there is {there}."
        )
    return chosen


# What the files hold


def _common_targets(sets: Sequence[ImageSet], target: str | None, place: str) -> list[str]:
    """Return the targets to read, which all sets must have."""
    if target is not None and target not in CHALLENGE_VARIABLES:
        raise DatasetError(no_target("algonauts2019", target, list(CHALLENGE_VARIABLES)))
    there = [name for name in CHALLENGE_VARIABLES if any(name in part.targets for part in sets)]
    wanted = there if target is None else [target]
    for part in sets:
        lacking = [name for name in wanted if name not in part.targets]
        if not part.targets or lacking:
            what = f"targets {', '.join(lacking)}" if part.targets else "targets"
            files = " or ".join(f"{_FILES[name][0]}.mat" for name in lacking[:1] or ["EVC", "MEG-early"])
            others = [name for name in there if all(name in p.targets for p in sets)]
            choice = f"choose a target that all sets have ({', '.join(others)}), or " if others else ""
            raise DatasetError(
                f"{str(part.folder)!r} has no {what}: there is no {files}. To read RDMs {choice}put the file there; "
                "to predict its images, their folder is enough."
            )
    return wanted


def _variable(arrays: Mapping[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    by_name = {key.casefold(): value for key, value in arrays.items()}
    if name.casefold() not in by_name:
        raise DatasetError(
            f"{str(path)!r} holds no variable {name} of numbers, only {', '.join(arrays) or 'none'}. The "
            "challenge's own file has it."
        )
    return by_name[name.casefold()]


def _joined(parts: Sequence[RDMs], sets: Sequence[ImageSet]) -> RDMs:
    try:
        return concat(parts)
    except RequestError as error:
        names = " and ".join(part.folder.name for part in sets)
        raise DatasetError(
            f"{names} cannot be joined: {error} Choose a target that was measured alike in all, or load one set."
        ) from error
