"""Responses that lie on the disk, subject by subject, and the one array that is read of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from featpipe.datasets._checks import some
from featpipe.datasets._dataset import Dataset, named_targets
from featpipe.errors import DatasetError
from featpipe.memory import available_memory
from featpipe.stimuli import StimulusSet, join_stimuli

_ROWS_AT_ONCE = 256
_GB = 1e9


@dataclass(frozen=True)
class Recording:
    """One subject's responses, found and not read.

    Parameters
    ----------
    subject : str
    stimuli : StimulusSet
        In the order of the rows of responses.
    sides : sequence of mapped arrays of shape (n_stimuli, n)
        Stand side by side.
    targets : DataFrame of n_targets rows
    masks : mapping of str to ndarray of bool, shape (n_targets,)
    test_stimuli : StimulusSet or None
    columns : ndarray of int, shape (n_chosen,), optional
        The targets that are meant; all by default.
    """

    subject: str
    stimuli: StimulusSet
    sides: Sequence[np.ndarray]
    targets: pd.DataFrame
    masks: Mapping[str, np.ndarray]
    test_stimuli: StimulusSet | None = None
    columns: np.ndarray | None = None

    @property
    def n_chosen(self) -> int:
        """Number of targets that are meant."""
        return len(self.targets)

    def choose(self, name: str) -> Recording:
        """Return the recording with one named group of targets; see `named_targets`."""
        mask = named_targets(name, self.targets, self.masks, self.subject)
        return replace(
            self,
            targets=self.targets[mask].reset_index(drop=True),
            masks={label: kept[mask] for label, kept in self.masks.items() if kept[mask].any()},
            columns=np.flatnonzero(mask),
        )

    def rows(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (rows, responses of shape (n_rows, n_chosen)), few enough rows for little memory."""
        for start in range(0, len(self.stimuli), _ROWS_AT_ONCE):
            part = slice(start, min(start + _ROWS_AT_ONCE, len(self.stimuli)))
            block = np.concatenate([_read(side, part) for side in self.sides], axis=1)
            yield part, block if self.columns is None else block[:, self.columns]


def join_recordings(recordings: Sequence[Recording], *, name: str, target: str | None = None) -> Dataset:
    """Read one recording, or several side by side over the union of their images.

    Parameters
    ----------
    recordings : sequence of Recording, at least one
    name : str
    target : str, optional
        A named group of targets, of all subjects that have it, or with the subject before a dot of this one.

    Returns
    -------
    Dataset
        Of several subjects: NaN where a subject did not see an image; masks ``SUBJECT.MASK``.

    Raises
    ------
    DatasetError
        No subject has the target, one id has two images, or the responses do not fit in memory.
    """
    chosen = _chosen(recordings, target, name)
    stimuli = union_of_stimuli({part.subject: part.stimuli for part in chosen})
    alone = len(recordings) == 1
    tests = {part.subject: part.test_stimuli for part in chosen if part.test_stimuli is not None}
    return Dataset(
        name=name,
        stimuli=stimuli,
        ids=np.asarray(stimuli.ids),
        responses=_read_all(chosen, stimuli),
        targets=chosen[0].targets if alone else _joined_targets(chosen),
        masks=chosen[0].masks if alone else _joined_masks(chosen),
        subject=",".join(part.subject for part in recordings),
        test_stimuli=union_of_stimuli(tests) if tests else None,
    )


def union_of_stimuli(sets: Mapping[str, StimulusSet]) -> StimulusSet:
    """Return the images of several subjects by ascending id, each once.

    Raises
    ------
    DatasetError
        Two subjects have different images under one id.
    """
    if len(sets) == 1:
        return next(iter(sets.values()))
    first: dict[str, tuple[str, str]] = {}
    for subject, stimuli in sets.items():
        for i, sha256 in zip(stimuli.ids, stimuli.sha256, strict=True):
            owner, seen = first.setdefault(i, (subject, sha256))
            if seen != sha256:
                raise DatasetError(
                    f"{i} is one image for {owner} and another for {subject}. An NSD id is one image: download the "
                    "images of these subjects again, or read the subjects one by one."
                )
    union = join_stimuli(sets, name=",".join(sets)).select(f"{first[i][0]}/{i}" for i in sorted(first))
    return union.rename(lambda i: i.partition("/")[2])


def _chosen(recordings: Sequence[Recording], target: str | None, name: str) -> list[Recording]:
    """Return the recordings that have the target, with nothing else in them."""
    if target is None:
        return list(recordings)
    owner, _, rest = target.partition(".")
    named = [part for part in recordings if part.subject == owner]
    if named:
        return [named[0].choose(rest) if rest else named[0]]
    if len(recordings) == 1:
        return [recordings[0].choose(target)]
    found = []
    for part in recordings:
        try:
            found.append(part.choose(target))
        except DatasetError:  # a region that one subject lacks
            continue
    if not found:
        known = list(dict.fromkeys(mask for part in recordings for mask in part.masks))
        raise DatasetError(
            f"None of {', '.join(part.subject for part in recordings)} of {name!r} has a group of targets {target!r}. "
            f"There are {some(known, 8)}, each also of one subject, such as {recordings[0].subject}.{known[0]}."
        )
    return found


def _read_all(recordings: Sequence[Recording], stimuli: StimulusSet) -> np.ndarray:
    """Read the responses into one float32 array: (n_stimuli, n_targets)."""
    n_targets = sum(part.n_chosen for part in recordings)
    _refuse_too_large(recordings, len(stimuli), n_targets)
    complete = len(recordings) == 1
    responses = np.empty((len(stimuli), n_targets), dtype=np.float32)
    if not complete:
        responses.fill(np.nan)
    place = stimuli.manifest.rows
    start = 0
    for part in recordings:
        columns = slice(start, start := start + part.n_chosen)
        at = np.array([place[i] for i in part.stimuli.ids])
        for rows, block in part.rows():
            with np.errstate(over="ignore"):  # found as infinity by the dataset
                responses[at[rows], columns] = block
    return responses


def _refuse_too_large(recordings: Sequence[Recording], n_stimuli: int, n_targets: int) -> None:
    needed, free = n_stimuli * n_targets * np.dtype(np.float32).itemsize, available_memory()
    if needed > free:
        region = next(iter(recordings[0].masks), "lh")
        fewer = ", or fewer subjects" if len(recordings) > 1 else ""
        raise DatasetError(
            f"The responses of {', '.join(part.subject for part in recordings)}, {n_stimuli} images × {n_targets} "
            f"targets, take {needed / _GB:.2f} GB, and {free / _GB:.2f} GB of memory are free. Choose some with "
            f"--target, such as --target {region}{fewer}."
        )


def _joined_targets(recordings: Sequence[Recording]) -> pd.DataFrame:
    tables = []
    for part in recordings:
        table = part.targets.assign(target=[f"{part.subject}.{number}" for number in part.targets["target"]])
        table.insert(0, "subject", part.subject)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _joined_masks(recordings: Sequence[Recording]) -> dict[str, np.ndarray]:
    n_targets = sum(part.n_chosen for part in recordings)
    masks = {}
    start = 0
    for part in recordings:
        for name, kept in part.masks.items():
            mask = np.zeros(n_targets, dtype=bool)
            mask[start : start + part.n_chosen] = kept
            masks[f"{part.subject}.{name}"] = mask
        start += part.n_chosen
    return masks


def _read(side: np.ndarray, rows: slice) -> np.ndarray:
    """Read rows of a mapped array without leaving its pages in this process."""
    if not (isinstance(side, np.memmap) and side.flags.c_contiguous and side.filename is not None):
        return np.asarray(side[rows])
    n_rows, width = rows.stop - rows.start, side.shape[1]
    offset = side.offset + rows.start * width * side.dtype.itemsize
    return np.fromfile(side.filename, side.dtype, n_rows * width, offset=offset).reshape(n_rows, width)
