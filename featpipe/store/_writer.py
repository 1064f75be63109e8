"""Rows into the cache: whole shards, each published once and then committed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.errors import CacheCorrupt, CacheWriteError, RequestError
from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store._array import CachedArray, array_folder
from featpipe.store._commits import commit_name, committed_shards, count_non_finite, encode_commit
from featpipe.store._documents import read_bytes
from featpipe.store._layout import ArrayLayout
from featpipe.store._seal import LARGEST_SEAL, SEAL, encode_seal
from featpipe.store._shard import check_shard, encode_shard
from featpipe.store._static import SPEC, static_files
from featpipe.store.location import Folder, Hashed, Location

ADOPTED = {"adopted": True}  # provenance of a shard whose writer was killed before it could say more
_ATTEMPTS = 5


def create_array(
    location: Location, key: str, spec: FeatureSpec, layout: ArrayLayout, manifest: StimulusManifest
) -> None:
    """Publish the files of a new array that never change; a racing creator may win."""
    location.create_folder(array_folder(key), static_files(spec, layout, manifest), last=SPEC)


def static_digests(array: CachedArray) -> dict[str, str]:
    """Return the SHA-256 of every static file, which must be what the spec and the stimuli call for."""
    digests = {}
    for name, content in static_files(array.spec, array.layout, array.manifest).items():
        if read_bytes(array.location, f"{array.base}/{name}", largest=max(len(content), 1)) != content:
            raise CacheCorrupt(
                f"{array.location.url}/{array.base}/{name} is not what array {array.key} should hold there. "
                f"Remove the array with `featpipe cache rm {array.key}` and extract it again."
            )
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests


@dataclass(frozen=True)
class ArrayWriter:
    """Publishes shards of one array. Several writers may work on one array at once, without a lock.

    Parameters
    ----------
    array : CachedArray
    static : mapping of str to str
        SHA-256 of each static file of the array.
    """

    array: CachedArray
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
        location = self.array.location
        for _ in range(_ATTEMPTS):
            if self._is_committed(shard):
                return False
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
                first = location.create(commit_name(self.array.base, shard), [content])
                seal_array(self.array)
                return first
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

    def _is_committed(self, shard: int) -> bool:
        if not self.array.location.remote:
            return shard in self.array.committed
        return self.array.location.exists(commit_name(self.array.base, shard))

    def _publish_shard(self, shard: int, rows: np.ndarray) -> tuple[int, str, bool] | None:
        """Publish a shard; return its size, its SHA-256 and True, or None when one is there already."""
        location, place = self.array.location, self.array.shard_name(shard)
        if location.exists(place):
            return None
        top = f"{self.array.base}/{ArrayLayout.shard_folder(shard)}"
        parts = Hashed(encode_shard(rows, self.array.layout))
        if not location.create_shard(top, place.removeprefix(f"{top}/"), parts):
            return None
        return parts.size, parts.sha256, True

    def _adopt(self, shard: int, rows: np.ndarray) -> tuple[int, str, bool] | None:
        """Describe a shard that is there without a commit, or move it aside and return None.

        Returns its size, its SHA-256, and whether it holds our rows bit for bit.
        """
        location, place = self.array.location, self.array.shard_name(shard)
        before = location.version(place)
        try:
            there = check_shard(location, place, self.array.layout, shard, label=self.array.label)
            size, sha256 = location.size(place), location.digest(place)
        except CacheCorrupt:
            self.clear(shard, before)
            return None
        except FileNotFoundError:
            return None
        if location.version(place) != before:
            return None  # another writer healed it in between: look again
        return size, sha256, _same_bytes(there, rows)

    def clear(self, shard: int, version: Any) -> None:
        """Move the damaged shard of this version aside; one that another writer put there goes back."""
        location, place = self.array.location, self.array.shard_name(shard)
        top = f"{self.array.base}/{ArrayLayout.shard_folder(shard)}"
        if location.remote and location.version(place) != version:
            return
        moved = location.set_aside(top, f"{self.array.key}-{shard}")
        if not isinstance(location, Folder) or moved is None:
            return
        if location.version(moved + place.removeprefix(top)) != version:
            location.restore(moved, top)


def seal_array(array: CachedArray, known: Mapping[int, dict[str, Any]] | None = None) -> bool:
    """Write ``sealed.json`` beside a complete array that has none; tell whether it was written.

    One with a damaged commit record is not sealed: `featpipe cache verify` names it.

    Parameters
    ----------
    array : CachedArray
    known : mapping of int to mapping, optional
        Commit records that need not be read again, by shard.
    """
    if len(committed_shards(array.location, array.base, array.layout.n_shards)) < array.layout.n_shards:
        return False
    name = f"{array.base}/{SEAL}"
    if array.location.exists(name):
        return False
    try:
        records = known or {}
        commits = [records.get(shard) or array.commit(shard) for shard in range(array.layout.n_shards)]
        content = encode_seal(array.key, commits)
    except CacheCorrupt:
        return False
    return len(content) <= LARGEST_SEAL and array.location.create(name, [content])


def _same_bytes(some: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(some.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8))


def open_writer(array: CachedArray, layout: ArrayLayout) -> ArrayWriter:
    """Return a writer on an array that must have the layout asked for, but for the codec."""
    wanted = (layout.row_shape, layout.dims, layout.shard_rows)
    found = (array.row_shape, array.dims, array.shard_rows)
    if wanted != found:
        raise RequestError(
            f"Array {array.key} ({array.spec.layer_label}) has (shape, axes, rows per shard) {found}, "
            f"but {wanted} came for the same key. Remove it with "
            f"`featpipe cache rm {array.key}` if it is wrong."
        )
    return ArrayWriter(array, static_digests(array))
