"""Arrays in ``.npy`` and ``.npz`` files, memory-mapped; pickles are refused."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from featpipe.errors import StimulusError
from featpipe.stimuli._archives import seek_content
from featpipe.stimuli._arrays import ArrayImages, array_images
from featpipe.stimuli._damage import damage_as

_MAX_UNPACKED = 1 << 31  # a compressed array has to be held in memory whole


@dataclass(frozen=True)
class _Mapped:
    """An array at an offset of a file, mapped anew for each read so that nothing stays open."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    order: Literal["C", "F"]

    def row(self, position: int) -> np.ndarray:
        return np.array(self.map()[position])

    def map(self) -> np.ndarray:
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)


@dataclass(frozen=True)
class _Held:
    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    def row(self, position: int) -> np.ndarray:
        return np.asarray(self.values[position])


def npy_images(path: Path, max_pixels: int) -> ArrayImages:
    """Take the array of a ``.npy`` file as images."""
    with damage_as(lambda why: _unreadable(path, why)), open(path, "rb") as file:
        rows = _mapped(path, file)
    return array_images(rows, str(path), [path], max_pixels=max_pixels)


def npz_images(path: Path, max_pixels: int) -> ArrayImages:
    """Take the array ``images`` (or the only one besides ``ids``) of a ``.npz`` file; ``ids`` if it is there.

    What ``np.savez`` wrote is memory-mapped; what ``np.savez_compressed`` wrote is held in memory, up to
    2 GiB.
    """
    with damage_as(lambda why: _unreadable(path, why)), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        name = _images_member(path, sorted(members))
        ids = _ids(path, archive) if "ids" in members else None
        rows = _stored(path, archive, members[name])
    return array_images(rows, f"{path}:{name}", [path], max_pixels=max_pixels, ids=ids, within=name)


def _stored(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Mapped | _Held:
    if info.compress_type != zipfile.ZIP_STORED:
        return _held(path, archive, info)
    with open(path, "rb") as file:
        seek_content(file, info)
        return _mapped(path, file)


def _mapped(path: Path, file: IO[bytes]) -> _Mapped:
    """Read the header of an array at the file's position."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"version {version} of the format holds no plain array")
    shape, fortran, dtype = read[version](file)
    rows = _Mapped(path, file.tell(), shape, dtype, "F" if fortran else "C")
    if not dtype.hasobject and 0 not in shape:
        rows.map()  # raises where the file is too short
    return rows


def _held(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Held:
    if info.file_size > _MAX_UNPACKED:
        raise StimulusError(
            f"{str(path)!r} is compressed and would take {info.file_size} bytes of memory. Save it with "
            "np.savez or np.save, which can be read row by row."
        )
    with archive.open(info) as file:
        return _Held(np.lib.format.read_array(file, allow_pickle=False))


def _images_member(path: Path, names: list[str]) -> str:
    arrays = [name for name in names if name != "ids"]
    if "images" in arrays:
        return "images"
    if len(arrays) != 1:
        raise StimulusError(
            f"{str(path)!r} has the arrays {', '.join(names) or 'none'}; it needs one called images, and may "
            "have ids."
        )
    return arrays[0]


def _ids(path: Path, archive: zipfile.ZipFile) -> list[str]:
    with archive.open("ids.npy") as file:
        ids = np.lib.format.read_array(file, allow_pickle=False)
    if ids.ndim != 1 or ids.dtype.kind not in "UiuS":
        raise StimulusError(
            f"The ids in {str(path)!r} are {ids.dtype} of shape {ids.shape}; they must be one text per image."
        )
    return [name.decode() if isinstance(name, bytes) else str(name) for name in ids.tolist()]


def _unreadable(path: Path, why: str) -> StimulusError:
    if "pickle" in why or "magic string" in why or "Object arrays" in why:
        return StimulusError(
            f"{str(path)!r} is not a plain NumPy array, or holds Python objects (a pickle), which are never "
            f"loaded because they can run code ({why}). Save the images with np.save as uint8, and ids as "
            "text."
        )
    return StimulusError(f"{str(path)!r} cannot be read as a NumPy array: {why}. Write it again.")
