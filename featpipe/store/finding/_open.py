"""An array of the cache as numpy, zarr, dask or xarray users expect it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from featpipe.errors import MissingDependency, RequestError, StimulusNotCached
from featpipe.spec import canonical_json, digest_of
from featpipe.store._array import CachedArray
from featpipe.store._layout import FEATURES, GROUP

if TYPE_CHECKING:
    import zarr

FORMS = ("numpy", "zarr", "dask", "xarray")


def open_array(array: CachedArray, as_: str = "numpy", *, partial: bool = False) -> Any:
    """Return an array as another library's own type.

    Parameters
    ----------
    array : CachedArray
    as_ : {"numpy", "zarr", "dask", "xarray"}
        ``numpy``: all rows in memory. ``zarr``: a read-only `zarr.Array`. ``dask``: a `dask.array` with a block
        per shard. ``xarray``: a `DataArray` with the ids as coordinate ``stimulus`` and the spec in its
        attributes, on top of dask where that is installed and of numpy where it is not.
    partial : bool
        Whether an incomplete array is wanted: rows of missing shards are then NaN, in every form.

    Raises
    ------
    StimulusNotCached
        The array is incomplete and `partial` is not set.
    MissingDependency
        dask or xarray is not installed.
    RequestError
        `as_` is none of these.
    """
    if as_ not in FORMS:
        raise RequestError(f"An array opens as {', '.join(FORMS)}, not as {as_!r}.")
    if not partial:
        require_complete(array, "Ask for partial=True to have NaN in their place")
    return {"numpy": _numpy, "zarr": _zarr, "dask": _dask, "xarray": _xarray}[as_](array)


def require_complete(array: CachedArray, otherwise: str) -> None:
    """Raise `StimulusNotCached` where shards are missing; the message ends with what else can be done."""
    if missing := array.missing:
        n_rows = sum(len(array.layout.rows_of(shard)) for shard in missing)
        raise StimulusNotCached(
            f"{n_rows} of {array.n_stimuli} stimuli have no row yet in array {array.key} "
            f"({array.spec.layer_label}). Run `featpipe extract` again, it goes on where it stopped. {otherwise}."
        )


def optional_module(name: str, extra: str, what: str) -> Any:
    """Import a library of an extra; raises `MissingDependency` naming the extra."""
    try:
        return import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        raise MissingDependency(f"{what} needs {library}: pip install 'featpipe[{extra}]'.") from error


@dataclass(frozen=True)
class LazyRows:
    """The rows of an array for whoever slices them: what dask takes an array to be, and a few hundred bytes.

    Rows of shards that are missing when they are asked for are NaN.
    """

    array: CachedArray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the complete array."""
        return (self.array.n_stimuli, *self.array.row_shape)

    @property
    def ndim(self) -> int:
        """Axes, that of the stimuli included."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """The stored dtype."""
        return self.array.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read the rows that the first part of an index names, and take the rest of it from them."""
        first, *rest = index if isinstance(index, tuple) else (index,)
        rows = np.arange(self.array.n_stimuli)[first]
        values = _read_or_nan(self.array, np.atleast_1d(rows))
        taken: np.ndarray = values[(slice(None), *rest)] if np.ndim(rows) else values[0][tuple(rest)]
        return taken


def _read_or_nan(array: CachedArray, rows: np.ndarray) -> np.ndarray:
    there = np.isin(rows // array.shard_rows, sorted(array.committed))
    if there.all():
        return array.read(rows, threads=1)  # dask has threads of its own
    values = np.full((len(rows), *array.row_shape), np.nan, array.dtype)
    values[there] = array.read(rows[there], threads=1)
    return values


def _numpy(array: CachedArray) -> np.ndarray:
    return array.read() if array.complete else _read_or_nan(array, np.arange(array.n_stimuli))


def _zarr(array: CachedArray) -> zarr.Array:
    import zarr  # takes longer to import than all else here

    if array.location.remote:
        from featpipe.store.finding._zarr_view import ArrayView

        opened = zarr.open_array(ArrayView(array), mode="r")
    else:
        opened = zarr.open_array(array.folder / GROUP / FEATURES, mode="r")
    assert isinstance(opened, zarr.Array)
    return opened


def _dask(array: CachedArray) -> Any:
    dask = optional_module("dask.array", "dask", "Opening an array as dask")
    rows = LazyRows(array)
    there = "" if array.complete else "-" + digest_of(sorted(array.committed))[:16]
    return dask.from_array(
        rows,
        chunks=(array.shard_rows, *array.row_shape),
        name=f"featpipe-{array.key}{there}",  # equal rows, equal name
        asarray=False,
        meta=np.empty((0,) * rows.ndim, rows.dtype),
        inline_array=True,
    )


def _xarray(array: CachedArray) -> Any:
    xarray = optional_module("xarray", "netcdf", "Opening an array as xarray")
    values = _dask(array) if find_spec("dask") else _numpy(array)
    return xarray.DataArray(
        values,
        dims=("stimulus", *array.dims),
        coords={"stimulus": np.array(array.ids, dtype=object)},
        name=FEATURES,
        attrs=described(array),
    )


def described(array: CachedArray) -> dict[str, str]:
    """Return what an array is, as texts that any file format can hold."""
    return {
        "key": array.key,
        "model": array.spec.model,
        "layer": array.spec.layer_label,
        "reduce": str(array.spec.reduction),
        "spec": canonical_json(array.spec.document(array.stimuli_digest)).decode(),  # its SHA-256 is the key
        "stimuli": array.stimuli_digest,
        "stimuli_name": array.manifest.name,
        "dims": json.dumps(["stimulus", *array.dims]),
    }
