"""RDMs of a set of images: the value that every kind of data with dissimilarities is read into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Self

import numpy as np

from featpipe.datasets._checks import checked_ids, checked_labels, some
from featpipe.datasets._subjects import pick_subject
from featpipe.errors import DatasetError
from featpipe.rsa import RDMs
from featpipe.stimuli import StimulusSet


@dataclass(frozen=True, eq=False)
class RDMDataset:
    """Measured RDMs of images, joined to them by id and checked on construction.

    Parameters
    ----------
    name : str
    stimuli : StimulusSet
        The images. It may be in another order than the RDMs, never smaller.
    ids : array of str, shape (n_stimuli,)
        Stimulus ids in the order of the RDMs, all different; ``SET/NAME`` where sets are joined.
    rdms : RDMs
        Of all targets and subjects, over these ids; NaN for pairs that were not measured, as between sets.
    splits : array of str, shape (n_stimuli,), optional
        ``train``, ``test`` or another name.
    groups : array of str, shape (n_stimuli,), optional
        Concept or the like; folds keep a group together.
    test_stimuli : StimulusSet, optional
        Images without RDMs here, to be predicted.
    subject : str, optional
        The one that was chosen.

    Raises
    ------
    DatasetError
        When ids differ, repeat or have no image, or an RDM holds no measured pair.
    """

    name: str
    stimuli: StimulusSet
    ids: np.ndarray
    rdms: RDMs
    splits: np.ndarray | None = None
    groups: np.ndarray | None = None
    test_stimuli: StimulusSet | None = None
    subject: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.rdms, RDMs):
            raise DatasetError(
                f"rdms must be RDMs, got {type(self.rdms).__name__}; wrap them in featpipe.RDMs."
            )
        ids = checked_ids(self.ids, self.stimuli.manifest.rows.keys(), f"stimuli {self.stimuli.name!r}")
        _check_same_ids(ids, self.rdms.ids)
        _check_measured(self.rdms)
        self._set(ids=ids)
        for what in ("splits", "groups"):
            if (labels := getattr(self, what)) is not None:
                self._set(**{what: checked_labels(labels, what, len(ids))})

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def n_stimuli(self) -> int:
        """Number of stimuli with RDMs."""
        return len(self.ids)

    @property
    def target_names(self) -> tuple[str, ...]:
        """The different targets, such as ``EVC``."""
        return self.rdms.target_names

    @property
    def digests(self) -> np.ndarray:
        """SHA-256 of each image in hex, shape (n_stimuli,): equal where two ids show one image."""
        rows, sha256 = self.stimuli.manifest.rows, self.stimuli.sha256
        return np.asarray([sha256[rows[i]] for i in self.ids.tolist()])

    def select_rows(self, rows: np.ndarray) -> Self:
        """Keep some stimuli, given by integers or booleans, on both axes of the RDMs; the images stay all there."""
        values = {name: getattr(self, name) for name in ("ids", "rdms", "splits", "groups")}
        return replace(self, **{name: value[rows] for name, value in values.items() if value is not None})

    def select_split(self, name: str) -> Self:
        """Keep the stimuli of one split."""
        if self.splits is None or name not in self.splits:
            there = "no splits" if self.splits is None else f"only {', '.join(sorted(set(self.splits)))}"
            raise DatasetError(f"Dataset {self.name!r} has no split {name!r}, {there}.")
        return self.select_rows(self.splits == name)

    def select_targets(self, names: Sequence[str]) -> Self:
        """Keep the RDMs of some targets, in the order that they are in."""
        there = self.target_names
        if isinstance(names, str):
            raise DatasetError(f"Targets are a list of names, got the text {names!r}; write [{names!r}].")
        if unknown := [name for name in names if name not in there]:
            raise DatasetError(no_target(self.name, unknown[0], there))
        if not list(names):
            raise DatasetError(f"No target is chosen; dataset {self.name!r} has {', '.join(there)}.")
        return replace(self, rdms=self.rdms.select(targets=list(names)))

    def select_target(self, name: str) -> Self:
        """Keep the RDMs of one target, such as ``EVC``."""
        return self.select_targets([name])

    def select_subject(self, subject: str | int) -> Self:
        """Keep the RDMs of one subject: ``1`` and ``01`` are one."""
        there = list(dict.fromkeys(self.rdms.subjects))
        chosen = pick_subject(there, subject, f"Dataset {self.name!r}")
        return replace(self, rdms=self.rdms.select(subjects=[chosen]), subject=chosen)

    def __repr__(self) -> str:
        subject = f", subject {self.subject}" if self.subject else ""
        targets = ", ".join(filter(None, self.target_names))
        return (
            f"RDMDataset({self.name!r}{subject}: {self.n_stimuli} stimuli, {self.rdms.n_rdms} RDMs"
            f"{targets and ' of ' + targets})"
        )


def no_target(dataset: str, name: str, there: Sequence[str]) -> str:
    named = [target for target in there if target]
    if not named:
        return f"Dataset {dataset!r} has no target {name!r}; its RDMs have no names."
    lower = {target.casefold(): target for target in named}
    close = get_close_matches(name.casefold(), lower, 1, cutoff=0.5)
    hint = f"did you mean {lower[close[0]]!r}? " if close else ""
    return f"Dataset {dataset!r} has no target {name!r}; {hint}There are {', '.join(named)}."


def _check_same_ids(ids: np.ndarray, of_rdms: np.ndarray) -> None:
    if np.array_equal(ids, of_rdms):
        return
    if len(ids) != len(of_rdms):
        raise DatasetError(
            f"There are {len(ids)} ids for RDMs of {len(of_rdms)} stimuli; they must be the same."
        )
    row = int(np.argmax(ids != of_rdms))
    raise DatasetError(
        f"Row {row} has the id {str(ids[row])!r}, and {str(of_rdms[row])!r} in the RDMs; the ids must be the same, "
        "in the same order (RDMs.take brings them there)."
    )


def _check_measured(rdms: RDMs) -> None:
    if len(rdms) < 2:
        return
    first, second = np.triu_indices(len(rdms), 1)
    empty = [row for row, values in enumerate(rdms.values) if np.isnan(values[first, second]).all()]
    if empty:
        label = f"{rdms.targets[empty[0]]} of subject {rdms.subjects[empty[0]]}".removeprefix(" of ")
        raise DatasetError(
            f"{len(empty)} of {rdms.n_rdms} RDMs hold no measured pair (all NaN), first {label} over the stimuli "
            f"{some(rdms.ids.tolist())}. Leave them out."
        )
