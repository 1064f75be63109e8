r"""Bring your own recordings: ``table:DIR`` or ``table:dataset.toml``.

A folder without ``dataset.toml`` is read as it lies there::

    stimuli/ or stimuli.zip   images; their natural order (image_2 before image_10) is the order of rows
    responses.npy             (n, targets) or (n, targets, repeats)
    targets.csv               optional, a row per target
    splits.csv                optional, a row per stimulus

A ``dataset.toml`` says more. Paths are absolute or relative to it; unknown keys are errors::

    name = "my recordings"            # optional
    stimuli = "images.zip"            # any source of images that `featpipe extract --images` takes
    ids = "trials.csv:image"          # CSV column with the stimulus id of each response row, or instead:
    # rows = "sorted"                 # rows follow the ids of the stimuli in natural order
    responses = "responses.npy"       # (n, targets[, repeats]); NaN marks a missing trial
    targets = "targets.csv"           # a row per target; columns may be anything, see below
    splits = "splits.csv"             # columns id, and of these some: split, group, n_repeats

    [noise_ceiling]                   # only if it is not a column of targets in fractions of variance
    file = "ceiling.npy"              # (targets,); without it the column noise_ceiling is meant
    unit = "percent"                  # or "fraction", the default
    of = "r"                          # ceilings of the correlation, squared on reading; default "r2"

``ids``, ``responses``, ``targets`` and ``splits`` may be a table per subject (``--subject`` chooses)::

    [responses]
    subj01 = "subj01.npy"
    subj02 = "subj02.h5:betas"

Numbers come from ``.npy``, ``.npz[:NAME]``, ``.csv`` (a header; a column ``id`` is left out), ``.nc[:NAME]``
(needs the extra ``netcdf``) or ``.h5:DATASET``. Pickles are never loaded.

In ``targets.csv`` the columns ``hemisphere`` (lh, rh) and ``roi`` make the groups of the report, such as
``lh.V1v``; ``noise_ceiling`` is the fraction of variance that can be explained, ``time``, ``x``, ``y``, ``z``
and ``vertex`` are numbers, every other column is text and can be a group. With one file of responses for
several subjects side by side, a column ``subject`` lets ``--subject`` choose among the targets.

In ``splits.csv`` every response row needs a row by ``id``. ``split`` is train, test or another name, and
makes train and test the default evaluation; folds keep a ``group`` together; ``n_repeats`` becomes the
weight of a row. Repeats as a third axis are averaged without those that are NaN, and give no weights by
themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featpipe.datasets._arrays import read_array, read_column, read_table
from featpipe.datasets._checks import as_float32, checked_ceiling, some
from featpipe.datasets._dataset import Dataset
from featpipe.datasets._description import TableDescription, describe
from featpipe.datasets._regions import default_masks
from featpipe.datasets._rows import sorted_rows
from featpipe.datasets._subjects import pick_subject
from featpipe.errors import DatasetError
from featpipe.stimuli import StimulusSet

_SPLIT_COLUMNS = ("split", "group", "n_repeats")


def load_table(place: str, *, subject: str | int | None = None) -> Dataset:
    """Read ``table:PLACE``; the docstring of this module says what is there to be read.

    Raises
    ------
    DatasetError
        When files are missing, of the wrong kind or do not fit together.
    """
    description = describe(place)
    paths, chosen = description.of_subject(subject)
    stimuli = _stimuli(description)
    responses, columns = read_array(paths["responses"], description.base)
    means, repeats = _averaged(responses)
    ids = _ids(stimuli, paths, description.base, len(means))
    targets = _targets(paths.get("targets"), columns, means.shape[1], description)
    rows = _split_rows(paths.get("splits"), ids, description.base)
    needed = set(ids)
    if len(needed) < len(stimuli) and needed <= set(stimuli.ids):
        stimuli = stimuli.select([i for i in stimuli.ids if i in needed])
    dataset = Dataset(
        description.name, stimuli, np.asarray(ids), means, targets, repeats,
        masks=default_masks(targets), subject=chosen, **rows,
    )  # fmt: skip
    return dataset if chosen or subject is None else _one_subject(dataset, subject)


def load_table_stimuli(place: str) -> StimulusSet:
    """Open only the images of ``table:PLACE``."""
    return _stimuli(describe(place))


def _stimuli(description: TableDescription) -> StimulusSet:
    return StimulusSet.from_source(str(description.base / description.stimuli))


def _ids(stimuli: StimulusSet, paths: Mapping[str, str], base: Path, n_rows: int) -> list[str]:
    if "ids" in paths:
        ids = read_column(paths["ids"], base)
        if len(ids) != n_rows:
            raise DatasetError(
                f"{paths['ids']!r} gives {len(ids)} ids, {paths['responses']!r} has {n_rows} rows; "
                "there must be one id per row."
            )
        return ids
    if len(stimuli) != n_rows:
        raise DatasetError(
            f"There are {len(stimuli)} stimuli and {n_rows} rows in {paths['responses']!r}. With rows in "
            "sorted order both numbers must agree; otherwise give ids = 'FILE.csv:COLUMN' in a dataset.toml."
        )
    return sorted_rows(stimuli.ids, stimuli.name)


def _averaged(responses: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Average over repeats, leaving out NaN: (n, targets) and, if there were any, the repeats."""
    if responses.ndim not in (2, 3):
        raise DatasetError(
            f"Responses have shape {responses.shape}; (n_stimuli, n_targets) is needed, or "
            "(n_stimuli, n_targets, n_repeats)."
        )
    if responses.ndim == 2:
        return responses, None
    repeats = as_float32(responses, "responses")
    measured = ~np.isnan(repeats)
    counts = measured.sum(axis=2)
    totals = np.where(measured, repeats, 0).sum(axis=2, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # never shown: 0 / 0 is the NaN that is meant
        return (totals / counts).astype(np.float32), repeats


def _targets(
    path: str | None, columns: list[str] | None, n_targets: int, description: TableDescription
) -> pd.DataFrame:
    targets = pd.DataFrame(index=range(n_targets))
    if path is not None:
        targets = read_table(path, description.base)
    elif columns is not None:
        targets["name"] = columns
    said = description.noise_ceiling
    if not said:
        return targets
    if "file" in said:
        ceiling = np.asarray(read_array(said["file"], description.base)[0]).ravel()
        if len(ceiling) != len(targets):
            raise DatasetError(f"{said['file']!r} holds {len(ceiling)} ceilings for {len(targets)} targets.")
        targets["noise_ceiling"] = ceiling
    if "noise_ceiling" not in targets:
        raise DatasetError(
            "The table [noise_ceiling] names no file, and the targets have no column noise_ceiling."
        )
    values = targets["noise_ceiling"].to_numpy()
    targets["noise_ceiling"] = checked_ceiling(
        values, unit=said.get("unit", "fraction"), of=said.get("of", "r2")
    )
    return targets


def _split_rows(path: str | None, ids: list[str], base: Path) -> dict[str, Any]:
    """Read splits, groups and n_repeats in the order of ``ids``."""
    if path is None:
        return {}
    table = read_table(path, base)
    _check_split_columns(list(table.columns), path)
    if (twice := table["id"][table["id"].duplicated()]).size:
        raise DatasetError(f"{path!r} has several rows for {some(list(twice))}; one per id is needed.")
    table = table.set_index("id")
    if missing := [i for i in ids if i not in table.index]:
        raise DatasetError(f"{path!r} has no row for {len(missing)} of {len(ids)} ids, {some(missing)}.")
    table = table.loc[ids]
    names = {"split": "splits", "group": "groups", "n_repeats": "n_repeats"}
    rows = {field: table[column].to_numpy() for column, field in names.items() if column in table}
    if "n_repeats" in rows:
        rows["n_repeats"] = pd.to_numeric(rows["n_repeats"], errors="coerce")
    return rows


def _check_split_columns(columns: list[str], path: str) -> None:
    if "id" not in columns or not set(columns) & set(_SPLIT_COLUMNS):
        raise DatasetError(
            f"{path!r} has columns {some(columns, 8)}; it needs id and one of {', '.join(_SPLIT_COLUMNS)}."
        )
    for column in set(columns) - {"id", *_SPLIT_COLUMNS}:
        absent = [name for name in _SPLIT_COLUMNS if name not in columns]
        if close := get_close_matches(column, absent, 1, cutoff=0.75):
            raise DatasetError(f"{path!r} has a column {column!r}; did you mean {close[0]!r}?")


def _one_subject(dataset: Dataset, subject: str | int) -> Dataset:
    if "subject" not in dataset.targets:
        raise DatasetError(
            f"Dataset {dataset.name!r} does not tell subjects apart, so {str(subject)!r} cannot be "
            "chosen: give responses per subject, or a column subject in the table of targets."
        )
    labels = dataset.targets["subject"].astype(str)
    chosen = pick_subject(list(dict.fromkeys(labels)), subject, f"Dataset {dataset.name!r}")
    selected = dataset.select_targets((labels == chosen).to_numpy())
    object.__setattr__(selected, "subject", chosen)
    return selected
