"""Numbers and tables from files of others: ``.npy``, ``.npz``, ``.csv``, ``.nc``, ``.h5:dataset``.

Pickles inside a file are never loaded, and HDF5 links out of a file are not followed.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from featpipe.datasets._checks import some
from featpipe.errors import DatasetError, MissingDependency

NUMERIC = ("noise_ceiling", "time", "x", "y", "z", "vertex")


def locate(text: str, base: Path) -> tuple[Path, str | None]:
    """Split ``FILE[:MEMBER]``, FILE relative to ``base``; raises `DatasetError` when there is no file."""
    whole = base / text
    if whole.exists():
        return whole, None
    file, colon, member = text.rpartition(":")
    if colon and (base / file).exists():
        return base / file, member
    raise DatasetError(f"There is no file {str(whole)!r}. Paths are absolute or relative to {str(base)!r}.")


def read_array(text: str, base: Path) -> tuple[np.ndarray, list[str] | None]:
    """Read numbers; returns the array and, from a CSV with a header, the names of its columns."""
    path, member = locate(text, base)
    readers: dict[str, Callable[[Path, str | None], np.ndarray]] = {
        ".npy": _read_npy,
        ".npz": _read_npz,
        ".nc": _read_netcdf,
        **dict.fromkeys((".h5", ".hdf5"), _read_hdf5),
    }
    if path.suffix == ".csv":
        return _read_numeric_csv(path)
    if path.suffix not in readers:
        raise DatasetError(
            f"{path.name!r} is of no kind that is read here; convert it to .npy, .npz, .csv, .nc or .h5."
        )
    return readers[path.suffix](path, member), None


def read_table(text: str, base: Path) -> pd.DataFrame:
    """Read a CSV as text, so that ``01`` stays ``01``; columns in `NUMERIC` become numbers."""
    path, _ = locate(text, base)
    table = _read_csv(path)
    for column in [name for name in NUMERIC if name in table]:
        table[column] = _numbers(table[column], path)
    return table


def read_column(text: str, base: Path) -> list[str]:
    """Read ``FILE.csv:COLUMN`` as text."""
    path, column = locate(text, base)
    table = _read_csv(path)
    if column is None and len(table.columns) == 1:
        return list(table.iloc[:, 0])
    if column not in table:
        raise DatasetError(
            f"{path.name!r} has no column {column!r}, only {some(list(table.columns), 8)}. "
            "Write ids = 'FILE.csv:COLUMN'."
        )
    return list(table[column])


def npy(path: Path) -> np.ndarray:
    """Map a ``.npy`` file into memory; raises `DatasetError` for whatever is no plain array."""
    return _read_npy(path, None)


def _read_npy(path: Path, member: str | None) -> np.ndarray:
    try:
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DatasetError(
            f"{str(path)!r}, of {path.stat().st_size} bytes, cannot be read as an array of numbers ({error}). Copy it "
            "anew if it was cut short; else save it with numpy.save from a plain array: pickled objects are not loaded."
        ) from error
    return mapped


def _read_npz(path: Path, member: str | None) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive[_chosen(member, list(archive), path)])
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{str(path)!r} cannot be read as a .npz of arrays ({error}).") from error


def _read_hdf5(path: Path, member: str | None) -> np.ndarray:
    try:
        with h5py.File(path, "r") as file:
            names = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
            return np.asarray(_plain_dataset(file, member or _chosen(None, names, path), path))
    except OSError as error:
        raise DatasetError(f"{str(path)!r} cannot be read as HDF5 ({error}).") from error


def _plain_dataset(file: h5py.File, member: str, path: Path) -> Any:
    """Walk to a dataset over hard links only: others may lead out of the file."""
    node: Any = file
    for part in member.strip("/").split("/"):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            raise DatasetError(f"{path.name!r} has no dataset {member!r}.")
        if not isinstance(link, h5py.HardLink):
            raise DatasetError(f"{member!r} in {path.name!r} is a link; only data inside the file are read.")
        node = node[part]
    if not isinstance(node, h5py.Dataset) or node.is_virtual or node.external:
        raise DatasetError(f"{member!r} in {path.name!r} is no plain dataset with its data inside the file.")
    return node


def _read_netcdf(path: Path, member: str | None) -> np.ndarray:
    try:
        xarray = import_module("xarray")
        import_module("h5netcdf")
    except ImportError as error:
        raise MissingDependency(
            "Reading .nc needs xarray and h5netcdf: pip install 'featpipe[netcdf]'."
        ) from error
    try:
        with xarray.open_dataset(path, engine="h5netcdf") as file:
            return np.asarray(file[_chosen(member, [str(name) for name in file.data_vars], path)].values)
    except OSError as error:
        raise DatasetError(f"{str(path)!r} cannot be read as netCDF ({error}).") from error


def _read_numeric_csv(path: Path) -> tuple[np.ndarray, list[str]]:
    table = _read_csv(path)
    table = table[[name for name in table.columns if name != "id"]]
    columns = [_numbers(table[name], path) for name in table.columns]
    return np.stack(columns, axis=1) if columns else np.empty((len(table), 0)), list(table.columns)


def _numbers(column: pd.Series, path: Path) -> np.ndarray:
    values = pd.to_numeric(column.where(column != ""), errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.isnan(values) & ~column.str.lower().isin(["", "nan", "na"]).to_numpy()
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DatasetError(
            f"Column {column.name!r} of {path.name!r} should hold numbers, row {row + 1} is "
            f"{column.iloc[row]!r}."
        )
    return values


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise DatasetError(f"{str(path)!r} cannot be read as a CSV with a header ({error}).") from error


def _chosen(member: str | None, names: list[str], path: Path) -> str:
    if member is None and len(names) == 1:
        return names[0]
    if member not in names:
        what = f"no {member!r}" if member else "several arrays, and none is chosen"
        raise DatasetError(
            f"{path.name!r} holds {what}: there are {some(names, 8)}. Write {path.name}:NAME."
            if names
            else f"{path.name!r} holds no array."
        )
    return member
