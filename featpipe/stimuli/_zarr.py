"""A Zarr array in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.errors import StimulusError
from featpipe.stimuli._arrays import ArrayImages, array_images, require_chunks
from featpipe.stimuli._damage import damage_as

_MAX_METADATA = 1 << 20
_MAX_CHUNKS = 10_000_000
# Codecs that turn bytes into bytes or numbers. Others exist that load pickles, which run code.
_CODECS = frozenset(
    {
        "bytes",
        "transpose",
        "crc32c",
        "sharding_indexed",
        "blosc",
        "zstd",
        "gzip",
        "zlib",
        "lz4",
        "bz2",
        "lzma",
        "delta",
        "shuffle",
        "bitround",
        "fixedscaleoffset",
        "packbits",
        "crc32",
        "adler32",
        "fletcher32",
        "jenkins_lookup3",
    }
)
_METADATA = ("zarr.json", ".zarray")


@dataclass(frozen=True)
class _Array:
    path: Path

    @cached_property
    def array(self) -> Any:
        import zarr  # only who reads a Zarr source pays for it

        return zarr.open_array(str(self.path), mode="r")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype:
        dtype: np.dtype = np.dtype(self.array.dtype)
        return dtype

    def row(self, position: int) -> np.ndarray:
        return np.asarray(self.array[position])


def is_zarr(path: Path) -> bool:
    """Tell whether a folder is one of Zarr's."""
    marks = (*_METADATA, ".zgroup")
    return path.is_dir() and (path.suffix == ".zarr" or any((path / m).is_file() for m in marks))


def zarr_images(path: Path, max_pixels: int) -> ArrayImages:
    """Take an array as images. Its metadata is checked before zarr sees it."""
    _require_array(path)
    rows = _Array(path)
    with damage_as(lambda why: _unreadable(path, why)):
        require_chunks(rows.array.chunks, rows.dtype, str(path))
        _require_complete(path, rows.array)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return array_images(rows, str(path), files, max_pixels=max_pixels)


def _require_complete(path: Path, array: Any) -> None:
    """Refuse missing chunks, which Zarr reads as the fill value: a stimulus that nobody saw."""
    if array.nchunks > _MAX_CHUNKS:  # counting those that are there takes as long as they are many
        raise StimulusError(
            f"{str(path)!r} claims {array.nchunks} chunks. Write it with one image per chunk."
        )
    missing = array.nchunks - array.nchunks_initialized
    if missing:
        raise StimulusError(
            f"{str(path)!r} lacks {missing} of {array.nchunks} chunks, which would read as blank images. "
            "Copy it again; if images are blank, write it with write_empty_chunks on."
        )


def _unreadable(path: Path, why: str) -> StimulusError:
    return StimulusError(f"{str(path)!r} cannot be read as a Zarr array: {why}. Write it again.")


def _require_array(path: Path) -> None:
    file = next((path / name for name in _METADATA if (path / name).is_file()), None)
    metadata = _read(file) if file else {}
    if not file or metadata.get("node_type", "array") != "array":
        inside = sorted({str(f.parent) for name in _METADATA for f in path.glob(f"*/{name}")})
        raise StimulusError(
            f"{str(path)!r} is not a Zarr array. Give the folder of the array itself: "
            f"{', '.join(inside) or 'none here'}."
        )
    if unknown := sorted(set(_codecs(metadata)) - _CODECS):
        raise StimulusError(
            f"{str(path)!r} uses the codecs {', '.join(unknown)}, which are not among those that are safe to "
            f"run: {', '.join(sorted(_CODECS))}. Write it again with one of these."
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MAX_METADATA:
            raise ValueError(f"{file.stat().st_size} bytes of metadata")
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StimulusError(f"{str(file)!r} is not the metadata of a Zarr array: {error}.") from error
    return value if isinstance(value, dict) else {}


def _codecs(metadata: Any) -> Iterator[str]:
    """Yield the name of every codec, filter and compressor, those inside shards too."""
    if isinstance(metadata, list):
        for item in metadata:
            yield from _codecs(item)
    elif isinstance(metadata, dict):
        for key in ("codecs", "index_codecs", "filters", "compressor"):
            value = metadata.get(key) or []
            for codec in value if isinstance(value, list) else [value]:
                yield str(codec.get("name", codec.get("id")) if isinstance(codec, dict) else codec)
                yield from _codecs(codec.get("configuration") if isinstance(codec, dict) else None)
