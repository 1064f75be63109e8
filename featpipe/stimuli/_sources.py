"""What SOURCE may be: the kind of a source is known from its name, never from trying."""

from __future__ import annotations

import os
import re
from pathlib import Path

from featpipe.errors import StimulusError
from featpipe.stimuli._archives import TarImages, ZipImages
from featpipe.stimuli._files import FileImages
from featpipe.stimuli._ids import SUFFIXES
from featpipe.stimuli._images import Images
from featpipe.stimuli._npy import npy_images, npz_images
from featpipe.stimuli._zarr import is_zarr, zarr_images

KINDS = "a folder, .zip, .tar, a .csv with columns id,path, .npy, .npz, FILE.h5:DATASET or a Zarr array"
_HDF5 = re.compile(r"(?P<file>.+\.(?:h5|hdf5|hdf|he5))(?::(?P<name>.*))?", re.IGNORECASE | re.DOTALL)
_TAR = re.compile(r"\.(tar|tar\.\w+|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


def open_images(source: str | Path, max_pixels: int) -> Images:
    """Open a source of stored images; raises `StimulusError` saying what a source may be."""
    text = str(source)
    if re.match("[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise StimulusError(f"Image source {text!r} is a URL. Download it first; a source is {KINDS}.")
    path = Path(text).expanduser()
    if not path.exists() and (hdf5 := _HDF5.fullmatch(text)):
        return _open_hdf5(text, Path(hdf5["file"]).expanduser(), hdf5["name"], max_pixels)
    if not path.exists():
        raise _missing(text, path)
    return _open_folder(path, max_pixels) if path.is_dir() else _open_file(path, max_pixels)


def source_name(source: str | Path) -> str:
    """Return what a set is called after its source: the last part of the path, without extension."""
    text = str(source)
    if hdf5 := _HDF5.fullmatch(text):
        return Path(hdf5["file"]).stem
    path = Path(os.path.abspath(Path(text).expanduser()))  # "." has a name, and a link keeps its own
    if path.is_dir() and path.suffix != ".zarr":
        return path.name
    return _TAR.sub("", path.name) if _TAR.search(path.name) else path.stem


def _open_hdf5(text: str, path: Path, name: str | None, max_pixels: int) -> Images:
    from featpipe.stimuli._hdf5 import hdf5_images  # h5py takes a while to import

    if not path.is_file():
        raise _missing(text, path)
    return hdf5_images(path, name, max_pixels)


def _open_folder(path: Path, max_pixels: int) -> Images:
    return zarr_images(path, max_pixels) if is_zarr(path) else FileImages.from_folder(path)


def _open_file(path: Path, max_pixels: int) -> Images:
    suffix = path.suffix.lower()
    if _TAR.search(path.name):
        return TarImages.from_tar(path)
    if suffix == ".zip":
        return ZipImages.from_zip(path)
    if suffix == ".csv":
        return FileImages.from_csv(path)
    if suffix in (".npy", ".npz"):
        return (npy_images if suffix == ".npy" else npz_images)(path, max_pixels)
    if _HDF5.fullmatch(path.name):
        return _open_hdf5(str(path), path, None, max_pixels)
    what = (
        "is one image"
        if suffix in SUFFIXES
        else f"has the extension {suffix!r}"
        if suffix
        else "has no extension"
    )
    raise StimulusError(f"Image source {str(path)!r} {what}. A source is {KINDS}.")


def _missing(text: str, path: Path) -> StimulusError:
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    return StimulusError(
        f"Image source {text!r} does not exist: {str(parent)!r} has no "
        f"{path.absolute().relative_to(parent).parts[0]!r}. A source is {KINDS}."
    )
