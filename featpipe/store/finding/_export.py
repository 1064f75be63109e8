"""One array as a file that other tools read: rows, ids, image digests and spec."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.errors import RequestError, StimulusNotCached
from featpipe.files import written_whole
from featpipe.store._array import CachedArray
from featpipe.store._layout import DIGESTS, FEATURES, STIMULUS
from featpipe.store.finding._open import described, optional_module, require_complete
from featpipe.store.finding._statistics import row_blocks

Progress = Callable[[int, int], None]
ENDINGS = {"npy": ".npy", "h5": ".h5", "netcdf": ".nc", "parquet": ".parquet"}
_FORMATS = {ending: name for name, ending in ENDINGS.items()} | {".hdf5": "h5"}
_BLOCK = 32 << 20  # bytes of rows in memory at a time


@dataclass(frozen=True)
class _Rows:
    """The rows that are exported, with their ids and image digests."""

    array: CachedArray
    shards: list[int]
    progress: Progress | None

    @property
    def wanted(self) -> np.ndarray:
        return np.concatenate([np.asarray(self.array.layout.rows_of(shard)) for shard in self.shards])

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(len(self.array.layout.rows_of(s)) for s in self.shards), *self.array.row_shape)

    @property
    def ids(self) -> list[str]:
        return [self.array.ids[row] for row in self.wanted]

    @property
    def digests(self) -> list[str]:
        return [self.array.manifest.sha256[row] for row in self.wanted]

    @property
    def digest_bytes(self) -> np.ndarray:
        """Image digests: uint8 of shape (n_rows, 32)."""
        return np.frombuffer(bytes.fromhex("".join(self.digests)), np.uint8).reshape(-1, 32)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first place, rows) in bounded memory."""
        done = 0
        for rows in row_blocks(self.array, self.shards, _BLOCK):
            yield done, self.array.read(rows)
            done += len(rows)
            if self.progress is not None:
                self.progress(done, self.shape[0])


def export_array(
    array: CachedArray,
    out: str | Path | None = None,
    *,
    to: str | None = None,
    partial: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write an array as one file that appears when all is written.

    Parameters
    ----------
    array : CachedArray
    out : path, optional
        By default ``MODEL_LAYER_REDUCTION_KEY`` with the format's ending, in the working directory.
    to : {"npy", "h5", "netcdf", "parquet"}, optional
        By default what the ending of `out` says. ``npy`` has ids and image digests beside it, in
        ``OUT.ids.csv``, and the spec in ``OUT.spec.json``; the others have them inside. netCDF has no float16,
        so such rows become float32 there.
    partial : bool
        Whether an incomplete array is wanted: the rows that are there, with their ids.
    overwrite : bool
        Whether a file of that name may be replaced.
    progress : callable (rows done, rows in all), optional

    Returns
    -------
    Path
        The file.

    Raises
    ------
    StimulusNotCached
        The array is incomplete and `partial` is not set, or has no rows at all.
    RequestError
        The format is not known, or the file is there.
    MissingDependency
        h5netcdf or pyarrow is not installed.
    """
    to = to or _format_of(out)
    if to not in ENDINGS:
        raise RequestError(f"An array is exported to {', '.join(ENDINGS)}, not to {to!r}.")
    path = Path(out) if out is not None else Path(_default_name(array) + ENDINGS[to])
    _require_free(path, overwrite)
    if not partial:
        require_complete(array, "Ask for the rows that are there with --partial")
    rows = _Rows(array, sorted(array.committed), progress)
    if not rows.shards:
        raise StimulusNotCached(f"Array {array.key} has no rows yet. Run `featpipe extract` first.")
    {"npy": _npy, "h5": _h5, "netcdf": _netcdf, "parquet": _parquet}[to](rows, path)
    return path


def _format_of(out: str | Path | None) -> str:
    if out is None:
        raise RequestError(f"Name a format with --to ({', '.join(ENDINGS)}) or a file with --out.")
    if (ending := Path(out).suffix) not in _FORMATS:
        raise RequestError(
            f"--out {out} does not say which format: end it with {', '.join(_FORMATS)}, or name one with --to."
        )
    return _FORMATS[ending]


def _require_free(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise RequestError(f"--out {path} is a folder; name a file in it.")
    if path.exists() and not overwrite:
        raise RequestError(
            f"--out {path} is there already. Name another file, or replace it with --overwrite."
        )


def _default_name(array: CachedArray) -> str:
    words = (array.spec.model, array.spec.layer_label, str(array.spec.reduction), array.key[:8])
    return "_".join(re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-.") for word in words)


def _npy(rows: _Rows, path: Path) -> None:
    table = io.StringIO()
    lines = csv.writer(table, lineterminator="\n")
    lines.writerow(["id", DIGESTS])
    lines.writerows(zip(rows.ids, rows.digests, strict=True))
    with written_whole(path.with_name(f"{path.name}.ids.csv")) as file:
        file.write(table.getvalue().encode())
    with written_whole(path.with_name(f"{path.name}.spec.json")) as file:
        file.write(described(rows.array)["spec"].encode())
    with written_whole(path) as file:  # last: who sees it finds the other two
        header = {"descr": rows.array.dtype.str, "fortran_order": False, "shape": rows.shape}
        np.lib.format.write_array_header_2_0(file, header)
        for _, block in rows.blocks():
            file.write(block.data)


def _h5(rows: _Rows, path: Path) -> None:
    h5py = import_module("h5py")  # slow to import, and needed by nothing else here
    with written_whole(path) as file, h5py.File(file.name, "w") as out:
        features = out.create_dataset(FEATURES, rows.shape, rows.array.dtype)
        for axis, name in enumerate(("stimulus", *rows.array.dims)):
            features.dims[axis].label = name
        out.create_dataset(STIMULUS, data=rows.ids, dtype=h5py.string_dtype())
        out.create_dataset(DIGESTS, data=rows.digest_bytes)
        out.attrs.update(described(rows.array))
        for first, block in rows.blocks():
            features[first : first + len(block)] = block


def _netcdf(rows: _Rows, path: Path) -> None:
    h5py = import_module("h5py")
    h5netcdf = optional_module("h5netcdf", "netcdf", "Export to netCDF")
    dims = ("stimulus", *rows.array.dims)
    with written_whole(path) as file, h5netcdf.File(file.name, "w") as out:
        out.dimensions = {**dict(zip(dims, rows.shape, strict=True)), "byte": 32}
        features = out.create_variable(FEATURES, dims, np.dtype("<f4"))
        out.create_variable(STIMULUS, ("stimulus",), h5py.string_dtype())[:] = np.array(
            rows.ids, dtype=object
        )
        out.create_variable(DIGESTS, ("stimulus", "byte"), np.dtype("u1"))[:] = rows.digest_bytes
        for name, text in {**described(rows.array), "stored_dtype": str(rows.array.dtype)}.items():
            out.attrs[name] = text
        for first, block in rows.blocks():
            features[first : first + len(block)] = block


def _parquet(rows: _Rows, path: Path) -> None:
    arrow = optional_module("pyarrow", "parquet", "Export to Parquet")
    parquet = optional_module("pyarrow.parquet", "parquet", "Export to Parquet")
    width = rows.array.layout.row_bytes // rows.array.dtype.itemsize
    schema = _arrow_schema(arrow, rows.array, width)
    ids, digests = rows.ids, rows.digests
    with written_whole(path) as file, closing(parquet.ParquetWriter(file, schema)) as out:
        for first, block in rows.blocks():
            part = slice(first, first + len(block))
            columns = [
                arrow.array(ids[part], arrow.string()),
                arrow.array(digests[part], arrow.string()),
                arrow.FixedSizeListArray.from_arrays(arrow.array(block.reshape(-1)), width),
            ]
            out.write_table(arrow.table(columns, schema=schema), row_group_size=len(block))


def _arrow_schema(arrow: Any, array: CachedArray, width: int) -> Any:
    value = arrow.from_numpy_dtype(array.dtype)
    fields = [
        arrow.field(STIMULUS, arrow.string()),
        arrow.field(DIGESTS, arrow.string()),
        arrow.field(FEATURES, arrow.list_(value, width)),
    ]
    shape = "[" + ", ".join(map(str, array.row_shape)) + "]"
    return arrow.schema(fields, metadata={**described(array), "row_shape": shape, "dtype": str(array.dtype)})
