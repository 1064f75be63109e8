"""Which image each row is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import natsort

from featpipe.datasets._arrays import read_column
from featpipe.errors import DatasetError
from featpipe.stimuli import StimulusSet


def row_ids(stimuli: StimulusSet, column: str | None, source: str, base: Path, n_rows: int) -> list[str]:
    """Return the id of each row of ``source``: from the column of a CSV, or those of the stimuli in natural order."""
    if column is not None:
        ids = read_column(column, base)
        if len(ids) != n_rows:
            raise DatasetError(
                f"{column!r} gives {len(ids)} ids, {source!r} has {n_rows} rows; there must be one id per row."
            )
        return ids
    if len(stimuli) != n_rows:
        raise DatasetError(
            f"There are {len(stimuli)} stimuli and {n_rows} rows in {source!r}. With rows in "
            "sorted order both numbers must agree; otherwise give ids = 'FILE.csv:COLUMN' in a dataset.toml."
        )
    return sorted_rows(stimuli.ids, stimuli.name)


def sorted_rows(ids: Sequence[str], name: str) -> list[str]:
    """Return ids in natural order, which rows without ids are taken to be in.

    Warns where sorting as texts would give another order, in which whoever made the rows may have had them.
    """
    natural = list(natsort.natsorted(ids))
    if natural != (plain := sorted(ids)):
        place = next(i for i, names in enumerate(zip(natural, plain, strict=True)) if len(set(names)) == 2)
        warnings.warn(
            f"Rows of responses are taken in the natural order of {name!r}, in which row {place} is "
            f"{natural[place]!r}; sorted as texts it would be {plain[place]!r}. If your rows follow that order, "
            "every one is joined to a wrong image: write ids = 'FILE.csv:COLUMN' in a dataset.toml.",
            UserWarning,
            stacklevel=4,
        )
    return natural
