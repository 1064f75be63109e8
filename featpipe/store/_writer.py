"""Rows into the cache: whole shards, each published once and then committed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.errors import CacheCorrupt, CacheWriteError, RequestError
from featpipe.remembered import file_digest
from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store._array import CachedArray
from featpipe.store._commits import COMMITS, commit_path, count_non_finite, encode_commit
from featpipe.store._documents import read_bytes
from featpipe.store._layout import ArrayLayout
from featpipe.store._publish import (
    make_folders,
    publish_file,
    publish_folder,
    set_aside,
    staging,
    write_file,
    writing,
)
from featpipe.store._shard import check_shard, encode_shard
from featpipe.store._static import static_files

ADOPTED = {"adopted": True}  # provenance of a shard whose writer was killed before it could say more
_ATTEMPTS = 5


def create_array(
    root: Path, folder: Path, spec: FeatureSpec, layout: ArrayLayout, manifest: StimulusManifest
) -> None:
    """Build the folder of a new array beside the others and move it there; a racing creator may win."""
    with staging(root) as staged:
        for name, content in static_files(spec, layout, manifest).items():
            path = staged / folder.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, [content])
        (staged / folder.name / COMMITS).mkdir()
        publish_folder(staged / folder.name, folder)


def static_digests(array: CachedArray) -> dict[str, str]:
    """Return the SHA-256 of every static file, which must be what the spec and the stimuli call for."""
    digests = {}
    for name, content in static_files(array.spec, array.layout, array.manifest).items():
        if read_bytes(array.folder / name, largest=max(len(content), 1)) != content:
            raise CacheCorrupt(
                f"{array.folder / name} is not what array {array.key} should hold there. Remove the array "
                f"with `featpipe cache rm {array.key}` and extract it again."
            )
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests


@dataclass(frozen=True)
class ArrayWriter:
    """Publishes shards of one array. Several writers may work on one array at once, without a lock.

    Parameters
    ----------
    array : CachedArray
    root : Path
        The cache's folder.
    static : mapping of str to str
        SHA-256 of each static file of the array.
    """

    array: CachedArray
    root: Path
    static: Mapping[str, str]

    def publish(
        self,
        shard: int,
        rows: np.ndarray,
        provenance: Mapping[str, Any],
        *,
        reused: Sequence[Mapping[str, Any]] | None = None,
    ) -> bool:
        """Publish and commit the rows of one shard, unless it is committed already.

        Parameters
        ----------
        shard : int
        rows : ndarray of shape (n_rows, *row_shape) in the stored dtype
            All rows of the shard.
        provenance : mapping
            How the rows came about; plain JSON.
        reused : sequence of mappings, optional
            Where rows were copied from instead of computed; plain JSON.

        Returns
        -------
        first : bool
            Whether this call committed the shard. A shard that a killed writer left without a commit is
            adopted where it is whole, and moved to ``CACHE/aside`` where it is not.

        Raises
        ------
        RequestError
            Shape or dtype are not those of the array.
        CacheWriteError
            The disk is full, read-only, or closed to us.
        """
        rows = self._checked(shard, rows)
        place = self.array.shard_path(shard)
        for _ in range(_ATTEMPTS):
            if shard in self.array.committed:
                return False
            with writing(place):
                described = self._publish_shard(shard, rows) or self._adopt(shard, rows)
            if described is not None:
                size, sha256, ours = described
                content = encode_commit(
                    self.array.key,
                    shard,
                    self.array.layout.rows_of(shard),
                    size=size,
                    sha256=sha256,
                    static=self.static,
                    non_finite=count_non_finite(rows),
                    provenance=provenance if ours else ADOPTED,
                    reused=(reused or ()) if ours else (),
                )
                with writing(place):
                    return publish_file(self.root, commit_path(self.array.folder, shard), content)
        raise CacheWriteError(
            f"{self.array.label(shard)} was damaged again each of {_ATTEMPTS} times that it was written. "
            "Check the disk, or choose another cache."
        )

    def _checked(self, shard: int, rows: np.ndarray) -> np.ndarray:
        layout = self.array.layout
        if not 0 <= shard < layout.n_shards:
            raise RequestError(f"Array {self.array.key} has shards 0 to {layout.n_shards - 1}, not {shard}.")
        shape = (len(layout.rows_of(shard)), *layout.row_shape)
        if rows.shape != shape or rows.dtype != layout.numpy_dtype:
            raise RequestError(
                f"{self.array.label(shard)} takes {layout.dtype} of shape {shape}, got {rows.dtype} of shape "
                f"{rows.shape}."
            )
        return np.ascontiguousarray(rows, layout.numpy_dtype)

    def _publish_shard(self, shard: int, rows: np.ndarray) -> tuple[int, str, bool] | None:
        """Publish a shard; return its size, its SHA-256 and True, or None when one is there already."""
        place = self.array.shard_path(shard)
        top = self.array.shard_folder(shard)
        if place.exists():
            return None
        with staging(self.root) as staged:
            file = staged / top.name / place.relative_to(top)
            file.parent.mkdir(parents=True)
            size, sha256 = write_file(file, encode_shard(rows, self.array.layout))
            return (size, sha256, True) if publish_folder(staged / top.name, top) else None

    def _adopt(self, shard: int, rows: np.ndarray) -> tuple[int, str, bool] | None:
        """Describe a shard that is there without a commit, or move it aside and return None.

        Returns its size, its SHA-256, and whether it holds our rows bit for bit.
        """
        place = self.array.shard_path(shard)
        before = _inode(place)
        try:
            there = check_shard(place, self.array.layout, shard, label=self.array.label)
        except CacheCorrupt:
            self._clear(shard, before)
            return None
        sha256 = file_digest(place)
        if _inode(place) != before:
            return None  # another writer healed it in between: look again
        return place.stat().st_size, sha256, _same_bytes(there, rows)

    def _clear(self, shard: int, inode: int | None) -> None:
        """Move the damaged shard that is this inode aside; one that another writer put there goes back."""
        top = self.array.shard_folder(shard)
        moved = set_aside(self.root, top, f"{self.array.key}-{shard}")
        if moved is not None and _inode(moved / self.array.shard_path(shard).relative_to(top)) != inode:
            publish_folder(moved, top)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


def _same_bytes(some: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(some.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8))


def open_writer(root: Path, array: CachedArray, layout: ArrayLayout) -> ArrayWriter:
    """Return a writer on an array that must have the layout asked for, but for the codec."""
    wanted = (layout.row_shape, layout.dims, layout.shard_rows)
    found = (array.row_shape, array.dims, array.shard_rows)
    if wanted != found:
        raise RequestError(
            f"Array {array.key} ({array.spec.layer_label}) has (shape, axes, rows per shard) {found}, "
            f"but {wanted} came for the same key. Remove it with "
            f"`featpipe cache rm {array.key}` if it is wrong."
        )
    with writing(array.folder):
        make_folders(array.folder / COMMITS)
    return ArrayWriter(array, root, static_digests(array))
