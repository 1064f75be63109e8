"""One subject's responses to a set of images: the value that every kind of data is read into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import pandas as pd

from featpipe.ceilings import variance_components
from featpipe.datasets._checks import (
    as_float32,
    checked_ceiling,
    checked_counts,
    checked_ids,
    checked_labels,
    checked_mask,
    checked_responses,
)
from featpipe.errors import DatasetError
from featpipe.stimuli import StimulusSet

FROM_REPEATS = "variance components of the repeats"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Responses to images, joined to them by id and checked on construction.

    Parameters
    ----------
    name : str
    stimuli : StimulusSet
        The images. It may be in another order than the responses, never smaller.
    ids : array of str, shape (n_stimuli,)
        Stimulus id of each row of responses, all different.
    responses : array of shape (n_stimuli, n_targets)
        Averaged over repeats; becomes float32. NaN where a trial is missing, never infinity.
    targets : DataFrame of n_targets rows
        What is known about each target: hemisphere, roi, subject, time, x, y, z, vertex. A column
        ``noise_ceiling`` is the fraction of variance that can be explained (a bound on r²), 0 to 1.
    repeats : array of shape (n_stimuli, n_targets, n_repeats), optional
        Single repeats in the order of ``ids``, NaN where there were fewer. They give the noise ceiling where the
        targets say none.
    splits : array of str, shape (n_stimuli,), optional
        ``train``, ``test`` or another name.
    groups : array of str, shape (n_stimuli,), optional
        Concept, session or the like; folds keep a group together.
    n_repeats : array of shape (n_stimuli,), optional
        Repeats behind each row, for use as ``sample_weight``.
    masks : dict of str to array of bool, shape (n_targets,)
        Named groups of targets that may overlap, such as ``lh.V1v``: the default groups of a report.
    subject : str, optional
    test_stimuli : StimulusSet, optional
        Images without responses here, to be predicted.

    Raises
    ------
    DatasetError
        When lengths differ, ids repeat or have no image, or values are out of range.
    """

    name: str
    stimuli: StimulusSet
    ids: np.ndarray
    responses: np.ndarray
    targets: pd.DataFrame
    repeats: np.ndarray | None = None
    splits: np.ndarray | None = None
    groups: np.ndarray | None = None
    n_repeats: np.ndarray | None = None
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    subject: str | None = None
    test_stimuli: StimulusSet | None = None

    def __post_init__(self) -> None:
        ids = checked_ids(self.ids, self.stimuli.manifest.rows.keys(), f"stimuli {self.stimuli.name!r}")
        responses = checked_responses(self.responses, len(ids))
        n_targets = responses.shape[1]
        self._set(ids=ids, responses=responses, targets=_checked_targets(self.targets, n_targets))
        if self.repeats is not None:
            self._set(repeats=_checked_repeats(self.repeats, responses.shape))
        for what in ("splits", "groups"):
            if (labels := getattr(self, what)) is not None:
                self._set(**{what: checked_labels(labels, what, len(ids))})
        if self.n_repeats is not None:
            self._set(n_repeats=checked_counts(self.n_repeats, len(ids)))
        masks = {name: checked_mask(name, mask, n_targets) for name, mask in self.masks.items()}
        self._set(masks=MappingProxyType(masks))

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "masks": dict(self.masks)}  # a proxy cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set(**{**state, "masks": MappingProxyType(state["masks"])})

    @property
    def n_stimuli(self) -> int:
        """Number of rows of responses."""
        return len(self.ids)

    @property
    def n_targets(self) -> int:
        """Number of columns of responses."""
        return int(self.responses.shape[1])

    @property
    def digests(self) -> np.ndarray:
        """SHA-256 of each row's image in hex, shape (n_stimuli,): equal where two ids show one image."""
        rows, sha256 = self.stimuli.manifest.rows, self.stimuli.sha256
        return np.asarray([sha256[rows[i]] for i in self.ids.tolist()])

    @cached_property
    def noise_ceiling(self) -> np.ndarray | None:
        """Fraction of explainable variance per target, shape (n_targets,), or None where not known.

        What the table of targets says comes first. Else it is estimated from the repeats of all rows, by
        `featpipe.ceilings.variance_components`: unlike split halves it needs no draws and leaves out no repeat.
        """
        if "noise_ceiling" in self.targets:
            return self.targets["noise_ceiling"].to_numpy(dtype=np.float64)
        return None if self.repeats is None else variance_components(self.repeats).noise_ceiling

    @property
    def noise_ceiling_from(self) -> str | None:
        """Where the ceiling comes from: ``targets`` (given), `FROM_REPEATS` (estimated), or None."""
        if "noise_ceiling" in self.targets:
            return "targets"
        return None if self.repeats is None else FROM_REPEATS

    def noise_ceiling_on(self, rows: np.ndarray) -> np.ndarray | None:
        """Return the ceiling of some rows, which differs where it comes from repeats: those of test images are more."""
        if self.noise_ceiling_from != FROM_REPEATS or self.repeats is None:
            return self.noise_ceiling
        return variance_components(self.repeats[rows]).noise_ceiling

    def select_rows(self, rows: np.ndarray) -> Self:
        """Keep some rows, given by integers or booleans; the images stay all there."""
        per_row = ("ids", "responses", "repeats", "splits", "groups", "n_repeats")
        values = {name: getattr(self, name) for name in per_row}
        return replace(self, **{name: value[rows] for name, value in values.items() if value is not None})

    def select_targets(self, mask: np.ndarray) -> Self:
        """Keep the targets of a mask of shape (n_targets,); masks left without targets go."""
        masks = {name: kept[mask] for name, kept in self.masks.items() if kept[mask].any()}
        return replace(
            self,
            responses=self.responses[:, mask],
            targets=self.targets[mask].reset_index(drop=True),
            repeats=None if self.repeats is None else self.repeats[:, mask],
            masks=masks,
        )

    def select_target(self, name: str) -> Self:
        """Keep one named group of targets: a mask such as ``lh.V1v``, or a value in a text column."""
        return self.select_targets(named_targets(name, self.targets, self.masks, self.name))

    def select_split(self, name: str) -> Self:
        """Keep the rows of one split."""
        if self.splits is None or name not in self.splits:
            there = "no splits" if self.splits is None else f"only {', '.join(sorted(set(self.splits)))}"
            raise DatasetError(f"Dataset {self.name!r} has no split {name!r}, {there}.")
        return self.select_rows(self.splits == name)

    def __repr__(self) -> str:
        subject = f", subject {self.subject}" if self.subject else ""
        return f"Dataset({self.name!r}{subject}: {self.n_stimuli} stimuli × {self.n_targets} targets)"


def named_targets(
    name: str, targets: pd.DataFrame, masks: Mapping[str, np.ndarray], dataset: str
) -> np.ndarray:
    """Return the mask of one named group of targets, as `Dataset.select_target` means it.

    Raises
    ------
    DatasetError
        There is no group of that name.
    """
    choices = {**_values(targets), **masks}
    if name not in choices:
        close = get_close_matches(name, choices, 3) or list(choices)[:8]
        known = f"There are {', '.join(close)}" if close else "Its targets have no groups"
        more = len(choices) - len(close)
        raise DatasetError(
            f"Dataset {dataset!r} has no group of targets {name!r}. {known}{f' and {more} others' * (more > 0)}."
        )
    return choices[name]


def _checked_targets(targets: pd.DataFrame, n_targets: int) -> pd.DataFrame:
    if len(targets) != n_targets:
        raise DatasetError(
            f"The table of targets has {len(targets)} rows, the responses have {n_targets} targets; "
            "there must be one row per target, in the same order."
        )
    targets = targets.reset_index(drop=True)
    if not {"name", "target"} & set(targets):
        targets["target"] = np.arange(n_targets)  # keeps the number of a target that is selected later
    if "noise_ceiling" in targets:
        targets["noise_ceiling"] = checked_ceiling(targets["noise_ceiling"].to_numpy())
    return targets


def _checked_repeats(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    repeats = as_float32(values, "repeats")
    if repeats.ndim != 3 or repeats.shape[:2] != shape:
        raise DatasetError(
            f"Repeats have shape {repeats.shape}; {(*shape, 'n_repeats')} is needed to fit the responses."
        )
    if np.isinf(repeats).any():
        raise DatasetError("Repeats hold infinity; mark a missing trial with NaN.")
    return repeats


def _values(targets: pd.DataFrame) -> dict[str, np.ndarray]:
    """Masks by single values of text columns; a value in two columns means the first."""
    found: dict[str, np.ndarray] = {}
    for column in targets:
        if pd.api.types.is_numeric_dtype(targets[column]):
            continue
        values = targets[column].astype(str).to_numpy(dtype=object)
        for value in dict.fromkeys(values):
            found.setdefault(value, values == value)
    return found
