"""`Responses`: a response matrix that stays in its file until an array is asked for, on whatever machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from featpipe.errors import DatasetError

_CHUNK_VALUES = 1 << 22  # read at a time where columns are chosen: 16 MiB of float32
_SAMPLES, _SAMPLE_BYTES = 64, 4096


class Responses:
    """Rows, and columns, of a matrix in a ``.npy`` file.

    It has the shape and indexing of an array, so that scikit-learn's splitters, searches and checks take it for
    one, but travels to another process as a file name and packed indices. ``np.asarray`` reads, through a
    memory map; NaN stay NaN.

    Parameters
    ----------
    path : str or path-like
        The file, seen under this path by every process that is to read it.
    rows, columns : array of int, optional
        Those that are meant, in this order; all by default. Columns only of a matrix.

    Raises
    ------
    DatasetError
        The file is no plain array, or an index is out of its range.
    """

    def __init__(self, path: str | os.PathLike[str], rows: Any = None, columns: Any = None) -> None:
        self.path = os.path.abspath(path)
        whole = _mapped(self.path)
        stat = os.stat(self.path)
        self._stamp = (
            stat.st_size,
            stat.st_mtime_ns,
        )  # whoever remembers by what we pickle to sees another file
        self.dtype = whole.dtype
        self._stored = whole.shape
        self._rows = _chosen(rows, whole.shape[0], "rows")
        self._columns = None if columns is None else _chosen(columns, whole.shape[1], "columns")

    @classmethod
    def of(cls, values: np.ndarray) -> Self | None:
        """Return the rows of a file that an array shows; None if it is no memory map of whole rows of one.

        Parameters
        ----------
        values : ndarray
            Such as what ``numpy.load(…, mmap_mode="r")`` gave, or a slice of its rows.
        """
        base: Any = values
        while base is not None and not isinstance(base, np.memmap):
            base = getattr(base, "base", None)
        while base is not None and isinstance(base.base, np.memmap):
            base = base.base
        if base is None or not str(base.filename or "").endswith(".npy") or not len(values):
            return None
        stored = _mapped(str(base.filename))
        if (stored.dtype, stored.shape[1:]) != (
            values.dtype,
            values.shape[1:],
        ) or stored.nbytes != base.nbytes:
            return None
        first, part = divmod(_address(values) - _address(base), values.nbytes // len(values))
        if part or not (values.flags.c_contiguous and stored.flags.c_contiguous):
            return None
        return cls(str(base.filename), np.arange(first, first + len(values)))

    @classmethod
    def write(cls, path: str | os.PathLike[str], values: np.ndarray) -> Self:
        """Put an array into a file and return it from there."""
        np.save(path, values, allow_pickle=False)
        return cls(path)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        columns = () if len(self._stored) == 1 else (self._n_columns, *self._stored[2:])
        return (len(self._rows), *columns)

    @property
    def ndim(self) -> int:
        """As of an array."""
        return len(self._stored)

    @property
    def size(self) -> int:
        """As of an array."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of the array that would be read; the object itself holds none of them."""
        return self.size * self.dtype.itemsize

    @property
    def _n_columns(self) -> int:
        return self._stored[1] if self._columns is None else len(self._columns)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> Any:
        """Choose rows, ``y[rows]`` or ``y[rows, ...]``, or columns, ``y[:, columns]``, without reading.

        A slice, a mask or an array of int gives `Responses`; a number gives the row or column as an array.
        """
        rows, columns = _two(key, self.ndim)
        single = [isinstance(index, int | np.integer) for index in (rows, columns)]
        if any(single):
            return self._one(rows, columns)
        chosen = object.__new__(type(self))
        vars(chosen).update(vars(self))
        vars(chosen).pop("_digest", None)
        chosen._rows = self._rows[_index(rows, len(self), "rows")]
        if not _is_all(columns):
            present = np.arange(self._n_columns) if self._columns is None else self._columns
            chosen._columns = present[_index(columns, self._n_columns, "columns")]
        return chosen

    def _one(self, rows: Any, columns: Any) -> np.ndarray:
        if isinstance(rows, int | np.integer):
            return np.asarray(np.asarray(self[np.array([rows]), ...])[0][columns])
        column: np.ndarray = np.asarray(self[:, np.array([columns])][rows])
        return column[:, 0]

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("Responses lie in a file and cannot become an array without a copy.")
        read = np.empty(self.shape, dtype=self.dtype)
        for part, values in self._parts():
            read[part] = values
        return read if dtype is None else read.astype(dtype, copy=False)

    def _parts(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (slice of our rows, their values) as views of the file or small copies."""
        whole = self._open()
        step = max(1, _CHUNK_VALUES // max(1, int(np.prod(self._stored[1:]))))
        for start in range(0, len(self._rows), step):
            part = slice(start, start + step)
            values = whole[self._rows[part]]
            yield part, values if self._columns is None else values[:, self._columns]

    def _open(self) -> np.ndarray:
        whole = _mapped(self.path)
        if (whole.shape, whole.dtype) != (self._stored, self.dtype):
            raise DatasetError(
                f"{self.path!r} holds {whole.dtype} of shape {whole.shape}; it was {self.dtype} of shape "
                f"{self._stored} when the run began. Leave the data alone while they are being read."
            )
        return whole

    @property
    def digest(self) -> str:
        """SHA-256 of dtype, shape and values, in hex."""
        if "_digest" not in vars(self):
            found = hashlib.sha256(f"{self.dtype.str}{self.shape}".encode())
            for _, values in self._parts():
                found.update(np.ascontiguousarray(values).data)
            self._digest = found.hexdigest()
        return self._digest

    @property
    def fingerprint(self) -> str:
        """Digest of the file's size and of samples of its bytes: what tells it from another under the same name."""
        return fingerprint(self.path)

    def __eq__(self, other: object) -> bool:
        """Say whether the same values are meant, wherever they lie."""
        return isinstance(other, Responses) and self.shape == other.shape and self.digest == other.digest

    __hash__ = None  # type: ignore[assignment]  # as of an array

    def __getstate__(self) -> dict[str, Any]:
        packed = None if self._columns is None else _packed(self._columns)
        return {**vars(self), "_rows": _packed(self._rows), "_columns": packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        columns = state["_columns"]
        vars(self).update(
            {
                **state,
                "_rows": _unpacked(state["_rows"]),
                "_columns": None if columns is None else _unpacked(columns),
            }
        )

    def __repr__(self) -> str:
        return f"Responses({self.path!r}: {' × '.join(map(str, self.shape))} {self.dtype})"


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return a digest of a file's size and of samples of its bytes, in hex."""
    size = os.stat(path).st_size
    found = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for place in np.linspace(0, max(0, size - _SAMPLE_BYTES), _SAMPLES).astype(int):
            file.seek(place)
            found.update(file.read(_SAMPLE_BYTES))
    return found.hexdigest()


def _mapped(path: str) -> np.ndarray:
    try:
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DatasetError(
            f"{path!r} cannot be read as an array of numbers ({error}). It must be a .npy file, under this path on "
            "every machine that takes part."
        ) from error
    if not isinstance(mapped, np.memmap) or mapped.ndim == 0:
        raise DatasetError(
            f"{path!r} is no .npy file of one array with a row per stimulus. Write it with numpy.save."
        )
    return mapped.view(np.ndarray)


def _address(values: np.ndarray) -> int:
    return int(values.__array_interface__["data"][0])


def _chosen(indices: Any, length: int, what: str) -> np.ndarray:
    return np.arange(length) if indices is None else np.arange(length)[_index(indices, length, what)]


def _two(key: Any, ndim: int) -> tuple[Any, Any]:
    """Return what is asked of rows and of columns."""
    keys = [part for part in key if part is not Ellipsis] if isinstance(key, tuple) else [key]
    if isinstance(key, tuple) and key and key[0] is Ellipsis and len(keys) == 1:
        keys = [slice(None), *keys]
    if len(keys) > ndim or len(keys) > 2 or any(part is None for part in keys):
        raise IndexError(f"Responses of {ndim} dimensions take rows and columns, not {key!r}.")
    rows, columns = (*keys, slice(None), slice(None))[:2]
    if not any(isinstance(part, slice | int | np.integer) for part in (rows, columns)):
        raise IndexError(
            "Choose rows first and columns then, y[rows][:, columns]: an array would pair them up."
        )
    return rows, columns


def _index(key: Any, length: int, what: str) -> Any:
    """Return a slice, or an array of int within the range."""
    if isinstance(key, slice):
        return key
    index = np.asarray(key)
    if index.dtype == bool:
        if index.shape != (length,):
            raise IndexError(f"A mask of shape {index.shape} does not fit {length} {what}.")
        return np.flatnonzero(index)
    index = index.astype(np.intp) if index.size == 0 else index
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise IndexError(f"{what} are chosen by a slice, a mask or an array of int, not {index.dtype}.")
    if len(index) and not (-length <= index.min() and index.max() < length):
        raise IndexError(f"An index of {what} is outside of {length}: {index.min()} to {index.max()}.")
    return index


def _is_all(key: Any) -> bool:
    return isinstance(key, slice) and key == slice(None)


def _packed(indices: np.ndarray) -> tuple[Any, ...]:
    """Return indices as a range, a mask or small integers, whichever says them in fewest bytes."""
    steps = np.diff(indices)
    if len(indices) < 2 or (steps[0] != 0 and (steps == steps[0]).all()):
        first = int(indices[0]) if len(indices) else 0
        return "range", first, int(steps[0]) if len(steps) else 1, len(indices)
    small = indices.astype(np.min_scalar_type(int(indices.max())))
    span = int(indices[-1] - indices[0]) + 1
    if (steps > 0).all() and span // 8 < small.nbytes:
        mask = np.zeros(span, dtype=bool)
        mask[indices - indices[0]] = True
        return "mask", int(indices[0]), span, np.packbits(mask).tobytes()
    return "indices", small.dtype.str, small.tobytes()


def _unpacked(packed: tuple[Any, ...]) -> np.ndarray:
    kind, *rest = packed
    if kind == "range":
        first, step, count = rest
        return np.asarray(first + step * np.arange(count))
    if kind == "mask":
        first, span, data = rest
        return np.asarray(
            first + np.flatnonzero(np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=span))
        )
    dtype, data = rest
    return np.frombuffer(data, dtype=dtype).astype(np.intp)
