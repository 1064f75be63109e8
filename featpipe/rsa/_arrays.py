"""Arrays by name from ``.mat``, ``.npz`` and ``.npy``: what RDMs are kept in."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.errors import DatasetError
from featpipe.memory import available_memory

SUFFIXES = (".mat", ".npz", ".npy")
_HDF5 = b"\x89HDF\r\n\x1a\n"


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read all arrays of numbers or text of a file, by name.

    MATLAB's two formats are told apart by their headers. v7.3 is HDF5, in which MATLAB's column-major arrays
    lie with all axes reversed; they come back in MATLAB's own order, as from v5. A ``.npy`` file holds one
    array, named as the file without its ending. Pickles are never loaded.

    Returns
    -------
    dict of str to ndarray
        Numbers, or text of shape (n,) from cells and strings. Whatever else a file holds is left out.

    Raises
    ------
    DatasetError
        The file is missing, damaged, of another kind, or larger than the memory.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
        ".mat": _read_mat,
        ".npz": _read_npz,
        ".npy": lambda file: {file.stem: np.load(file, allow_pickle=False)},
    }
    if not path.is_file():
        raise DatasetError(f"There is no file {str(path)!r}.")
    if path.suffix.lower() not in readers:
        raise DatasetError(f"{path.name!r} is of no kind that RDMs are read from: {', '.join(SUFFIXES)}.")
    try:
        return readers[path.suffix.lower()](path)
    except DatasetError:
        raise
    except _unreadable() as error:
        raise DatasetError(
            f"{str(path)!r} cannot be read as {path.suffix.lower()} ({error}). It may be truncated: copy or "
            "download it again. Arrays of numbers are needed; pickled objects are not loaded."
        ) from error


def is_hdf5(path: Path) -> bool:
    """Tell from a file's header whether it is HDF5, and so MATLAB v7.3: its signature is at 0 or 512 on."""
    with path.open("rb") as file:
        head = file.read(4096 + len(_HDF5))
    return any(head[start : start + len(_HDF5)] == _HDF5 for start in (0, 512, 1024, 2048, 4096))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with (
        path.open("rb") as file,
        np.load(file, allow_pickle=False) as archive,
    ):  # numpy leaves a torn file open
        return {name: archive[name] for name in archive.files}


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    return _read_hdf5(path) if is_hdf5(path) else _read_v5(path)


def _read_v5(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat  # slow to import

    found = {name: _plain(value) for name, value in loadmat(path, appendmat=False).items()}
    return {name: value for name, value in found.items() if value is not None and not name.startswith("__")}


def _plain(value: Any) -> np.ndarray | None:
    """Return numbers as they are, a cell array of text as text of shape (n,), anything else as None."""
    array = np.asarray(value)
    if array.dtype.kind in "fiub":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "U":
        return array.ravel()
    if array.dtype.kind == "O" and all(
        isinstance(cell, np.ndarray) and cell.dtype.kind == "U" for cell in array.ravel()
    ):
        return np.array(["".join(cell.ravel().tolist()) for cell in array.ravel()], dtype=str)
    return None


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    import h5py  # slow to import

    found = {}
    with h5py.File(path, "r") as file:
        for name in file:
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):  # others may lead out of the file
                continue
            node = file[name]
            if not isinstance(node, h5py.Dataset) or node.is_virtual or node.external:
                continue
            if node.dtype.kind in "fiub" and "MATLAB_empty" not in node.attrs:
                _require_memory(path, name, node.shape, node.dtype.itemsize)
                found[name] = np.ascontiguousarray(np.asarray(node[()]).T)
    return found


def _require_memory(path: Path, name: str, shape: tuple[int, ...], itemsize: int) -> None:
    needed = int(np.prod(shape, dtype=object)) * itemsize
    if needed > (free := available_memory()):
        raise DatasetError(
            f"{name} in {str(path)!r} has shape {shape[::-1]} and would take {needed / 1e9:.1f} GB of memory, of "
            f"which {free / 1e9:.1f} GB are free. RDMs are (subjects, stimuli, stimuli); check the file."
        )


def _unreadable() -> tuple[type[Exception], ...]:
    """What numpy, h5py and scipy raise for damaged files."""
    from scipy.io.matlab import MatReadError

    return (
        *(ValueError, TypeError, KeyError, IndexError, EOFError, OSError, OverflowError, MemoryError),
        *(NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error, MatReadError),
    )
