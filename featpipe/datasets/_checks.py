"""What must hold between ids, responses, targets and splits; every failure says what came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from featpipe.ceilings import checked_ceiling as checked_ceiling  # one check for every source of ceilings
from featpipe.errors import DatasetError

_ROWS_AT_ONCE = 512  # a mask of all responses of a whole brain would be as large as a layer


def checked_ids(ids: Any, known: Collection[str], stimuli: str) -> np.ndarray:
    """Return ids as a 1-D array of str that are unique and all among the stimuli."""
    given = [str(i) for i in np.asarray(ids).ravel()]
    if not given:
        raise DatasetError("There are no responses: the list of ids is empty.")
    if repeated := [i for i, count in Counter(given).items() if count > 1]:
        raise DatasetError(
            f"{len(repeated)} ids stand in several rows, {some(repeated)}. One row is one stimulus: "
            "give repeats as a third axis of the responses, (n, targets, repeats), or average them."
        )
    if missing := [i for i in given if i not in known]:
        raise DatasetError(
            f"{len(missing)} of {len(given)} ids have no image in {stimuli}, {some(missing)}. Its ids are "
            f"such as {some(list(known))}; an id is a file's path without folder prefix and extension."
        )
    return np.asarray(given)


def checked_responses(values: Any, n_stimuli: int) -> np.ndarray:
    """Return responses of shape (n_stimuli, n_targets) as finite-or-NaN float32."""
    array = as_float32(values, "responses")
    if array.ndim != 2 or 0 in array.shape:
        raise DatasetError(
            f"Responses have shape {array.shape}; (n_stimuli, n_targets) is needed, at least one of each."
        )
    if len(array) != n_stimuli:
        raise DatasetError(
            f"There are {len(array)} rows of responses for {n_stimuli} ids; every id needs exactly one row."
        )
    measured = np.zeros(array.shape[1], dtype=bool)
    for start in range(0, len(array), _ROWS_AT_ONCE):
        rows = array[start : start + _ROWS_AT_ONCE]
        if np.isinf(rows).any():
            row, column = np.argwhere(np.isinf(rows))[0]
            raise DatasetError(
                f"Responses hold infinity, first in row {start + row}, target {column}. Mark a missing trial "
                "with NaN; values beyond the range of float32 must be rescaled."
            )
        measured |= ~np.isnan(rows).all(axis=0)
    if not measured.all():
        raise DatasetError(
            f"{(~measured).sum()} of {measured.size} targets were never measured (all NaN), first target "
            f"{int(np.argmin(measured))}. Leave them out of the responses and of the table of targets."
        )
    return array


def as_float32(values: Any, what: str) -> np.ndarray:
    """Convert real numbers to float32 without copying those that are; infinity marks an overflow."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"The {what} are of type {array.dtype}; real numbers are needed.")
    with np.errstate(over="ignore"):  # found as infinity by whoever checks
        return array.astype(np.float32, copy=False)


def checked_labels(values: Any, what: str, n_stimuli: int) -> np.ndarray:
    """Return one non-empty label per stimulus as a 1-D array of str."""
    labels = np.asarray([str(value) for value in np.asarray(values).ravel()])
    if len(labels) != n_stimuli:
        raise DatasetError(f"There are {len(labels)} {what} for {n_stimuli} stimuli; one each is needed.")
    if (empty := np.flatnonzero(np.char.strip(labels) == "")).size:
        raise DatasetError(f"{empty.size} stimuli have no entry in {what}, first row {empty[0]}.")
    return labels


def checked_counts(values: Any, n_stimuli: int) -> np.ndarray:
    """Return the number of repeats behind each row: finite and positive, float64 (n_stimuli,)."""
    counts = np.asarray(values, dtype=np.float64).ravel()
    if len(counts) != n_stimuli:
        raise DatasetError(f"There are {len(counts)} n_repeats for {n_stimuli} stimuli; one each is needed.")
    if (bad := np.flatnonzero(~(np.isfinite(counts) & (counts > 0)))).size:
        raise DatasetError(
            f"n_repeats must be positive numbers, row {bad[0]} holds {counts[bad[0]]:g}; leave stimuli out "
            "that were never shown."
        )
    return counts


def checked_mask(name: str, mask: Any, n_targets: int) -> np.ndarray:
    """Return a mask of targets as bool of shape (n_targets,)."""
    array = np.asarray(mask)
    if array.dtype != bool or array.shape != (n_targets,):
        raise DatasetError(
            f"Mask {name!r} is {array.dtype} of shape {array.shape}; bool of shape ({n_targets},) is needed, "
            "one entry a target."
        )
    return array


def some(items: Sequence[str], count: int = 3) -> str:
    """Quote the first few items."""
    shown = ", ".join(repr(str(item)) for item in items[:count])
    return shown + (", …" if len(items) > count else "")
