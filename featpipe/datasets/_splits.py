"""``splits.csv``: to which split and group each stimulus belongs, and how many repeats are behind it."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from featpipe.datasets._arrays import read_table
from featpipe.datasets._checks import some
from featpipe.errors import DatasetError

_SPLIT_COLUMNS = ("split", "group", "n_repeats")


def split_rows(path: str | None, ids: list[str], base: Path) -> dict[str, Any]:
    """Read splits, groups and n_repeats in the order of ``ids``."""
    if path is None:
        return {}
    table = read_table(path, base)
    _check_split_columns(list(table.columns), path)
    if (twice := table["id"][table["id"].duplicated()]).size:
        raise DatasetError(f"{path!r} has several rows for {some(list(twice))}; one per id is needed.")
    table = table.set_index("id")
    if missing := [i for i in ids if i not in table.index]:
        raise DatasetError(
            f"{path!r} has no row for {len(missing)} of {len(ids)} ids, {some(missing)}; its ids are such as "
            f"{some(list(table.index), 2)}. An id is a file's path without folder prefix and extension."
        )
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
