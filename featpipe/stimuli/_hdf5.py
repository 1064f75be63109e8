"""A dataset of an HDF5 file, such as NSD's ``nsd_stimuli.hdf5:imgBrick``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from featpipe.errors import StimulusError, UnsafePath
from featpipe.stimuli._arrays import ArrayImages, array_images, numbered, require_chunks
from featpipe.stimuli._damage import damage_as


@dataclass(frozen=True)
class _Dataset:
    """A dataset, opened anew for each read: HDF5 handles can neither be shared with workers nor left open."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def row(self, position: int) -> np.ndarray:
        with h5py.File(self.path, "r") as file:
            return np.asarray(file[self.name][position])


def hdf5_images(path: Path, name: str | None, max_pixels: int) -> ArrayImages:
    """Take a dataset as images; NSD's image brick gets the ids ``nsd-00000`` to ``nsd-72999``.

    Links to other files, soft links, virtual datasets and external storage are refused: what they lead to
    could change without this file.
    """
    label = f"{path}:{name}"
    with damage_as(lambda why: _unreadable(path, why)), h5py.File(path, "r") as file:
        if not name:
            raise StimulusError(
                f"{str(path)!r} is an HDF5 file; say which dataset holds the images: {path}:NAME, NAME one "
                f"of {', '.join(sorted(file)) or 'none, it is empty'}."
            )
        dataset = _dataset(file, name, label)
        require_chunks(dataset.chunks, dataset.dtype, label)
        _require_complete(dataset, label)
        rows = _Dataset(path, name, dataset.shape, dataset.dtype)
    nsd = path.name == "nsd_stimuli.hdf5" and name.strip("/") == "imgBrick"
    ids = numbered(rows.shape[0], "nsd-") if nsd and rows.shape else None
    return array_images(rows, label, [path], max_pixels=max_pixels, ids=ids, within=name)


def _unreadable(path: Path, why: str) -> StimulusError:
    return StimulusError(f"{str(path)!r} cannot be read as HDF5: {why}. Fetch it again.")


def _dataset(file: h5py.File, name: str, label: str) -> h5py.Dataset:
    node = file
    for part in name.strip("/").split("/"):
        if not isinstance(node, h5py.Group) or part not in list(
            node
        ):  # `in node` would open what a link leads to
            has = ", ".join(sorted(node)) if isinstance(node, h5py.Group) else "none, it is a dataset"
            raise StimulusError(f"{label!r} does not exist: no {part!r} in {node.name!r}, which has {has}.")
        if node.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise UnsafePath(
                f"{label!r} goes through the link {part!r}; links in HDF5 files are not followed. Name the "
                "dataset that it leads to."
            )
        node = node[part]
    if not isinstance(node, h5py.Dataset):
        raise StimulusError(
            f"{label!r} is a group, not a dataset. It has {', '.join(sorted(node)) or 'nothing'}."
        )
    if node.is_virtual or node.external:
        raise UnsafePath(
            f"{label!r} keeps its values in other files (a virtual dataset or external storage), which are "
            "not followed. Copy them into one dataset."
        )
    return node


def _require_complete(dataset: h5py.Dataset, label: str) -> None:
    """Refuse values that were never written, which HDF5 reads as the fill value: a stimulus that nobody saw."""
    if 0 in dataset.shape:
        return
    there, wanted = int(dataset.id.get_storage_size() > 0), 1
    if dataset.chunks:
        there = dataset.id.get_num_chunks()
        wanted = math.prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
    if there < wanted:
        raise StimulusError(
            f"{label!r} lacks {wanted - there} of {wanted} chunks, which would read as blank images. Write it again."
        )
