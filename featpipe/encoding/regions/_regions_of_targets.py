"""Regions of interest among targets: which targets each holds, and which regions can be fitted together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.errors import RequestError

OTHER = "other"  # the targets that no region holds


@dataclass(frozen=True, eq=False)
class JointFit:
    """Regions that are fitted together, in columns of responses.

    Parameters
    ----------
    targets : ndarray of int, shape (n_columns,)
        The target that each column holds: as given of one region; of several ascending, so that all targets in
        one fit are the responses themselves, and columns that repeat a target come last.
    columns : dict of str to ndarray of int
        By region, the columns of its targets, in the order of its positions.
    labels : ndarray of int, shape (n_columns,)
        Number of the first region of each column, for penalties that regions share.
    """

    targets: np.ndarray
    columns: dict[str, np.ndarray]
    labels: np.ndarray

    def holds_all(self, n_targets: int) -> bool:
        """Whether the columns are all targets in order."""
        return np.array_equal(self.targets, np.arange(n_targets))


def region_positions(rois: Mapping[str, Any] | None, n_targets: int) -> dict[str, np.ndarray]:
    """Return the positions of every region's targets, those in no region as a last one, ``other``.

    Parameters
    ----------
    rois : mapping of str to array of int, or of bool of shape (n_targets,)
        May overlap. None is no region.
    n_targets : int

    Raises
    ------
    RequestError
        A region without targets, with positions out of range or twice, or a mask of another length.
    """
    if rois is not None and not isinstance(rois, Mapping):
        raise RequestError(
            f"rois must be a mapping of region names to positions or masks of targets, got {type(rois).__name__}."
        )
    found = {}
    for name, where in (rois or {}).items():
        if not isinstance(name, str):
            raise RequestError(f"Names of regions are texts such as 'lh.V1v', got {name!r}.")
        found[name] = _positions(name, where, n_targets)
    held = np.zeros(n_targets, dtype=bool)
    for positions in found.values():
        held[positions] = True
    if held.all():
        return found
    if OTHER in found:
        raise RequestError(
            f"{(~held).sum()} targets are in no region and would form the region {OTHER!r}, which rois has already. "
            "Give that one another name."
        )
    return found | {OTHER: np.flatnonzero(~held)}


def _positions(name: str, where: Any, n_targets: int) -> np.ndarray:
    given = np.asarray(where)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "biu"):
        raise RequestError(
            f"Region {name!r} must be a one-dimensional array of positions or a mask, got shape {given.shape} of "
            f"{given.dtype}."
        )
    if given.dtype.kind == "b":
        if len(given) != n_targets:
            raise RequestError(
                f"The mask of region {name!r} has {len(given)} entries for {n_targets} targets; give one for each."
            )
        given = np.flatnonzero(given)
    if not given.size:
        raise RequestError(f"Region {name!r} has no targets. Leave it out.")
    if given.min() < 0 or given.max() >= n_targets:
        raise RequestError(
            f"Region {name!r} has positions from {given.min()} to {given.max()}, but the {n_targets} targets are "
            f"numbered 0 to {n_targets - 1}."
        )
    if len(np.unique(given)) != len(given):
        raise RequestError(f"Region {name!r} names some targets twice; give each position once.")
    return given.astype(np.int64)


def joint_fit(rois: Mapping[str, np.ndarray], names: Sequence[str], *, repeat: bool) -> JointFit:
    """Put the targets of some regions side by side.

    Parameters
    ----------
    rois : mapping of str to ndarray of int
    names : sequence of str
        The regions to fit together.
    repeat : bool
        Whether a target has a column of its own in each region that holds it, or one column in all.
    """
    numbers = {name: number for number, name in enumerate(rois)}
    if len(names) == 1:
        positions = rois[names[0]]
        everything = np.arange(len(positions))
        return JointFit(positions, {names[0]: everything}, np.full(len(positions), numbers[names[0]]))
    union = np.unique(np.concatenate([rois[name] for name in names]))
    targets, labels = union, np.full(len(union), -1)
    columns: dict[str, np.ndarray] = {}
    for name in names:
        here = np.searchsorted(union, rois[name])
        taken = labels[here] >= 0
        labels[here[~taken]] = numbers[name]
        if repeat and taken.any():
            here[taken] = len(targets) + np.arange(taken.sum())
            targets = np.concatenate([targets, rois[name][taken]])
            labels = np.concatenate([labels, np.full(taken.sum(), numbers[name])])
        columns[name] = here
    return JointFit(targets, columns, labels)


def mean_over_regions(
    fits: Sequence[JointFit], values: Sequence[np.ndarray], rois: Mapping[str, np.ndarray], n_targets: int
) -> np.ndarray:
    """Return what regions say of each target, averaged over those that hold it.

    Parameters
    ----------
    fits : sequence of JointFit
    values : sequence of ndarray of shape (..., n_columns)
        Of each fit, in its columns.
    rois : mapping of str to ndarray of int
    n_targets : int

    Returns
    -------
    mean : ndarray of shape (..., n_targets)
        The very values where all targets are one fit.
    """
    if len(fits) == 1 and fits[0].holds_all(n_targets):
        return values[0]
    holders = np.zeros(n_targets)
    for positions in rois.values():
        holders[positions] += 1
    total = np.zeros((*values[0].shape[:-1], n_targets), dtype=np.result_type(*values))
    for fit, some in zip(fits, values, strict=True):
        regions = np.zeros(len(fit.targets))
        for columns in fit.columns.values():
            regions[columns] += 1
        share = (regions / holders[fit.targets]).astype(total.dtype)  # 1 where nobody else holds the target
        for columns in _without_repeats(fit.targets):
            total[..., fit.targets[columns]] += share[columns] * some[..., columns]
    return total


def _without_repeats(targets: np.ndarray) -> list[np.ndarray]:
    """Return sets of columns, none of which holds a target twice."""
    left, sets = np.arange(len(targets)), []
    while len(left):
        _, first = np.unique(targets[left], return_index=True)
        sets.append(left[np.sort(first)])
        left = np.delete(left, first)
    return sets
