"""The shape of one array on disk: stimuli, shards, inner chunks, and the zarr metadata that says so."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from featpipe.errors import CacheCorrupt, RequestError
from featpipe.store._codec import CODECS, codec_metadata

GROUP = "data.zarr"
FEATURES, STIMULUS, DIGESTS = "features", "stimulus", "image_sha256"
DTYPES: Mapping[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
_WANTED_CHUNK = 2 << 20  # bytes; between 1 and 4 MiB wherever rows allow
_MOST_STIMULI = 1 << 31
MOST_SHARD_ROWS = 1 << 16
MOST_SHARDS = 1 << 18
_LARGEST_CHUNK = 1 << 30  # bytes; blosc takes at most 2 GiB
_MOST_AXES = 8
_TAKEN_NAMES = {FEATURES, STIMULUS, DIGESTS, "byte"}  # xarray allows one meaning and one size per name


@dataclass(frozen=True)
class ArrayLayout:
    """Where each row of an array lies.

    Parameters
    ----------
    n_stimuli : int
    shard_rows, chunk_rows : int
        Rows per shard (one file) and per inner chunk; the second divides the first.
    row_shape : tuple of int
    dims : tuple of str
        Name of each axis of a row.
    dtype : {"float32", "float16"}
    codec : str
        A name in `CODECS`.
    """

    n_stimuli: int
    shard_rows: int
    chunk_rows: int
    row_shape: tuple[int, ...]
    dims: tuple[str, ...]
    dtype: str
    codec: str

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise RequestError(f"Rows of shape {self.row_shape} ({', '.join(self.dims)}) {problem}.")

    def _problem(self) -> str | None:
        if len(self.row_shape) != len(self.dims) or not 1 <= len(self.row_shape) < _MOST_AXES:
            return f"need 1 to {_MOST_AXES - 1} axes and as many names"
        if len(_TAKEN_NAMES | set(self.dims)) != len(_TAKEN_NAMES) + len(self.dims) or not all(self.dims):
            return (
                f"need names of axes that differ from each other and from {', '.join(sorted(_TAKEN_NAMES))}"
            )
        if min(self.row_shape) < 1 or self.row_bytes * self.chunk_rows > _LARGEST_CHUNK:
            return f"must have at least one value and at most {_LARGEST_CHUNK} bytes in a chunk"
        if not (1 <= self.n_stimuli <= _MOST_STIMULI and 1 <= self.shard_rows <= MOST_SHARD_ROWS):
            return (
                f"cannot be stored for {self.n_stimuli} stimuli in shards of {self.shard_rows}: at most "
                f"{_MOST_STIMULI} and {MOST_SHARD_ROWS}"
            )
        if self.n_shards > MOST_SHARDS:
            return f"cannot be stored for {self.n_stimuli} stimuli in {self.n_shards} shards: at most {MOST_SHARDS}"
        return "need inner chunks that divide a shard" if self.shard_rows % self.chunk_rows else None

    @classmethod
    def plan(
        cls,
        n_stimuli: int,
        shard_rows: int,
        row_shape: tuple[int, ...],
        dims: tuple[str, ...],
        *,
        dtype: str,
        codec: str,
    ) -> Self:
        """Lay out a new array with inner chunks of whole rows, near 2 MiB."""
        row_bytes = max(1, math.prod(row_shape)) * DTYPES[dtype].itemsize
        divisors = [rows for rows in range(1, shard_rows + 1) if shard_rows % rows == 0]
        chunk_rows = min(divisors, key=lambda rows: abs(math.log(rows * row_bytes / _WANTED_CHUNK)))
        return cls(n_stimuli, shard_rows, chunk_rows, tuple(row_shape), tuple(dims), dtype, codec)

    @classmethod
    def parse(cls, path: str, metadata: Mapping[str, Any]) -> Self:
        """Read ``features/zarr.json``; raises `CacheCorrupt` unless it is just what we would write."""
        try:
            shape, dims = metadata["shape"], metadata["dimension_names"]
            sharding = metadata["codecs"][0]["configuration"]
            shard_rows = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
            layout = cls(
                _whole(shape[0]),
                _whole(shard_rows),
                _whole(sharding["chunk_shape"][0]),
                tuple(_whole(size) for size in shape[1:]),
                tuple(str(name) for name in dims[1:]),
                str(metadata["data_type"]) if metadata["data_type"] in DTYPES else "",
                _codec_named(sharding["codecs"], str(metadata["data_type"])),
            )
            if layout.features_metadata() != metadata:
                raise ValueError("it is not the metadata of an array of features")
        except (KeyError, IndexError, TypeError, ValueError, ArithmeticError) as error:
            raise CacheCorrupt(
                f"{path} does not describe features as this cache stores them ({str(error)[:200]}). Run `featpipe "
                "cache verify` and extract this array again."
            ) from error
        return layout

    @property
    def numpy_dtype(self) -> np.dtype:
        """The stored dtype, little-endian."""
        return DTYPES[self.dtype]

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one decoded row."""
        return math.prod(self.row_shape) * self.numpy_dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one decoded inner chunk."""
        return self.row_bytes * self.chunk_rows

    @property
    def chunks_per_shard(self) -> int:
        """Entries in the index of a shard."""
        return self.shard_rows // self.chunk_rows

    @property
    def n_shards(self) -> int:
        """Shards of a complete array."""
        return -(-self.n_stimuli // self.shard_rows)

    def rows_of(self, shard: int) -> range:
        """Return the rows that a shard holds; the last one may be short."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.n_stimuli))

    @staticmethod
    def shard_folder(shard: int) -> str:
        """Return the folder, below the array's, that appears when a shard is published."""
        return f"{GROUP}/{FEATURES}/c/{shard}"

    def shard_path(self, shard: int) -> str:
        """Return the file of a shard below the array's folder: ``data.zarr/features/c/SHARD/0/…``."""
        return "/".join([self.shard_folder(shard), *("0" for _ in self.row_shape)])

    def features_metadata(self) -> dict[str, Any]:
        """Return ``features/zarr.json``: fill value NaN, one shard a file, index at its end."""
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        sharding = {
            "chunk_shape": [self.chunk_rows, *self.row_shape],
            "codecs": codec_metadata(self.codec, self.numpy_dtype.itemsize),
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        return array_metadata(
            (self.n_stimuli, *self.row_shape),
            (self.shard_rows, *self.row_shape),
            ("stimulus", *self.dims),
            data_type=self.dtype,
            fill_value="NaN",
            codecs=[{"name": "sharding_indexed", "configuration": sharding}],
        )


def array_metadata(
    shape: tuple[int, ...],
    chunk_shape: tuple[int, ...],
    dims: tuple[str, ...],
    *,
    data_type: str,
    fill_value: Any,
    codecs: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return the metadata of a zarr v3 array."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk_shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value,
        "codecs": codecs,
        "attributes": {},
        "dimension_names": list(dims),
        "storage_transformers": [],
    }


def _whole(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{json.dumps(value)[:40]} is not a whole number from 1")
    return value


def _codec_named(metadata: Any, dtype: str) -> str:
    for codec in CODECS:
        if metadata == codec_metadata(codec, DTYPES[dtype].itemsize):
            return codec
    raise ValueError("its codecs are not among those allowed")
