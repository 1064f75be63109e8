"""The cache as a whole: a folder of stimulus sets and of arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.errors import FeaturesNotCached, RequestError
from featpipe.spec import HEX_DIGEST, FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store._array import ARRAYS, CachedArray, array_folder
from featpipe.store._codec import choose_codec
from featpipe.store._commits import commit_name
from featpipe.store._index import INDEX
from featpipe.store._layout import DTYPES, ArrayLayout
from featpipe.store._seal import SEAL
from featpipe.store._stimuli import STIMULI, StoredStimuli, load_stimuli, store_stimuli
from featpipe.store._writer import ArrayWriter, create_array, open_writer
from featpipe.store.checking._verify import Problem, Progress, Scope, verify_cache
from featpipe.store.copying._published import publish_index
from featpipe.store.finding._find import ArrayFilter, Unreadable, array_named, find_arrays
from featpipe.store.finding._garbage import Garbage, GarbageFilter, find_garbage, remove_garbage
from featpipe.store.finding._open import open_array
from featpipe.store.location import Folder, Location, Root, locate, mirrored

SHARD_ROWS = 256


class FeatureCache:
    """Features on disk or behind a URL, one array per (feature spec, stimulus set).

    Nothing is created before the first write. Readers and writers need no lock: arrays, shards and
    commit records appear whole or not at all, and only where nothing was before. ``cache/README.md`` has
    every file.

    Parameters
    ----------
    root : str or Path
        A folder, or the URL of one: ``s3://``, ``gs://``, ``memory://``, ``file://``, and ``http(s)://`` for a
        published cache that is only read.
    mirror : str or Path, optional
        Folder for copies of what is read from a URL; processes may share it, and caches too.
    mirror_size : int, optional
        Bytes of shards that it may hold, 100 GB by default; the least recently used are dropped.

    Raises
    ------
    RequestError
        It is a file, or a URL that names no cache; or a folder that needs no mirror.
    MissingDependency
        A URL, and the extra ``remote`` is not installed.
    """

    def __init__(
        self, root: Root, mirror: str | os.PathLike[str] | None = None, mirror_size: int | None = None
    ) -> None:
        self.location: Location = locate(mirrored(root, mirror, mirror_size))
        if isinstance(self.location, Folder) and self.location.is_file():
            raise RequestError(f"The cache {self.root} is a file; name a folder.")
        self._stimuli: dict[str, StoredStimuli] = {}  # immutable on disk, and read once

    @property
    def root(self) -> Path | str:
        """The cache's folder, or its URL."""
        return self.location.root if isinstance(self.location, Folder) else self.location.url

    def __repr__(self) -> str:
        return f"FeatureCache({str(self.root)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "_stimuli": {}}  # travels to workers without the ids

    def keys(self) -> list[str]:
        """Return the keys of all arrays, sorted."""
        return _digests_in(self.location, ARRAYS)

    def array(self, key: str) -> CachedArray:
        """Open an array; raises `FeaturesNotCached`, or `CacheCorrupt` when it is not what its key says."""
        if not HEX_DIGEST.fullmatch(key):
            raise FeaturesNotCached(f"A key has 64 hexadecimal digits, got {key!r}.")
        return CachedArray.open(self.location, key, self._manifest)

    def arrays(self) -> list[CachedArray]:
        """Open all arrays; raises `CacheCorrupt` naming the first that cannot be."""
        return [self.array(key) for key in self.keys() if self.has(key)]

    def has(self, key: str) -> bool:
        """Whether an array may be opened: in an object store one appears file by file, the spec last."""
        return self.location.has_array(array_folder(key))

    def named(self, key: str) -> CachedArray:
        """Open the one array whose key begins so; raises `FeaturesNotCached` or `AmbiguousFeatures`."""
        return array_named(self, key)

    def find(self, *, unreadable: Unreadable | None = None, **wanted: Any) -> list[CachedArray]:
        """Open the arrays that have all that is asked for, such as ``find(model="timm:*", complete=True)``.

        The names are the fields of `ArrayFilter`. A damaged array raises `CacheCorrupt`, one of another format
        `RequestError`, unless `unreadable` is there to be told of its key and the error.
        """
        return find_arrays(self, ArrayFilter(**wanted), unreadable)

    def open(self, array: str | CachedArray, as_: str = "numpy", *, partial: bool = False) -> Any:
        """Open an array, named by a key or its first digits, as numpy, zarr, dask or xarray users expect it.

        See `open_array`: ``as_`` is one of ``numpy``, ``zarr``, ``dask`` and ``xarray``; an incomplete array
        raises `StimulusNotCached`, or with `partial` has NaN in the rows that are missing.
        """
        return open_array(self.named(array) if isinstance(array, str) else array, as_, partial=partial)

    def garbage(self, **wanted: Any) -> list[Garbage]:
        """List what the cache no longer needs; the names are the fields of `GarbageFilter`."""
        return find_garbage(self.location, GarbageFilter(**wanted))

    def discard(self, garbage: Iterable[Garbage]) -> list[tuple[Garbage, str]]:
        """Remove what `garbage` listed, but no array; return what was kept, and why."""
        return remove_garbage(self.location, garbage)

    def match(self, wanted: Callable[[FeatureSpec], bool]) -> list[CachedArray]:
        """Open the arrays whose spec is wanted."""
        return [array for array in self.arrays() if wanted(array.spec)]

    def holding(self, spec: FeatureSpec) -> list[CachedArray]:
        """Open the arrays that hold these features, one a stimulus set."""
        return [self.array(key) for key in self.keys_of(spec)]

    def keys_of(self, spec: FeatureSpec) -> list[str]:
        """Return the keys of the arrays that hold these features, one a stimulus set."""
        keys = map(spec.key, self.stimuli_digests())  # sets are few and arrays many, so only those are listed
        return [key for key in keys if self.has(key)]

    def stimuli_digests(self) -> list[str]:
        """Return the digests of all stimulus sets, sorted."""
        return _digests_in(self.location, STIMULI)

    def stimuli(self, digest: str) -> StoredStimuli:
        """Return a stimulus set; raises `FeaturesNotCached` or `CacheCorrupt`."""
        if digest not in self._stimuli:
            if not HEX_DIGEST.fullmatch(digest):
                raise FeaturesNotCached(f"A stimulus set is known by 64 hexadecimal digits, got {digest!r}.")
            self._stimuli[digest] = load_stimuli(self.location, digest)
        return self._stimuli[digest]

    def checked_stimuli(self, digest: str) -> StoredStimuli:
        """Return a stimulus set of which every byte was checked, and let `stimuli` return the same from now on."""
        if not (self.location.remote and digest in self._stimuli):  # where it was checked when it was read
            self._stimuli.pop(digest, None)  # so that memory holds it once
            self._stimuli[digest] = load_stimuli(self.location, digest, thorough=True)
        return self._stimuli[digest]

    def add_stimuli(self, manifest: StimulusManifest, *, shard_rows: int = SHARD_ROWS) -> StoredStimuli:
        """Add a stimulus set; one that is there already stays as it is, with its rows per shard.

        Parameters
        ----------
        manifest : StimulusManifest
        shard_rows : int
            Rows per shard of every array of this set, a multiple of 8.
        """
        if manifest.digest not in self.stimuli_digests():
            self.location.require_writable()
            if store_stimuli(self.location, manifest, shard_rows):
                return StoredStimuli(manifest, shard_rows)
        return self.stimuli(manifest.digest)

    def writer(
        self,
        spec: FeatureSpec,
        stimuli_digest: str,
        *,
        row_shape: Sequence[int],
        dims: Sequence[str],
        codec: str = "auto",
        sample: np.ndarray | None = None,
    ) -> ArrayWriter:
        """Return a writer on the array of a spec and a stimulus set, creating it if it is not there.

        Parameters
        ----------
        spec : FeatureSpec
        stimuli_digest : str
            Of a set added before.
        row_shape : sequence of int
            Shape of one row, at least one axis.
        dims : sequence of str
            Name of each axis of a row.
        codec : str
            ``auto`` decides by compressing `sample`; an array that is there keeps its own.
        sample : ndarray of shape (any, *row_shape), optional
            Rows of this array. Without one ``auto`` leaves rows uncompressed.

        Raises
        ------
        FeaturesNotCached
            The stimulus set is not in the cache.
        RequestError
            The array is there with rows of another shape, or the codec is not known.
        CacheCorrupt
            The array is there, but is not what its key says.
        CacheWriteError
            The cache cannot be written.
        """
        stored = self.stimuli(stimuli_digest)
        with np.errstate(over="ignore"):  # whoever extracts says so; here only the codec depends on it
            rows = None if sample is None else np.asarray(sample, DTYPES[spec.store_dtype])
        layout = ArrayLayout.plan(
            len(stored.manifest),
            stored.shard_rows,
            tuple(row_shape),
            tuple(dims),
            dtype=spec.store_dtype,
            codec=choose_codec(codec, rows),
        )
        key = spec.key(stimuli_digest)
        self.location.require_writable()
        if not self.has(key):
            create_array(self.location, key, spec, layout, stored.manifest)
        return open_writer(self.array(key), layout)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove arrays; raises `FeaturesNotCached`, before any is removed, when one is not there."""
        gone, there = list(keys), set(self.keys())
        for key in gone:
            if key not in there:
                raise FeaturesNotCached(f"There is no array {key!r} in {self.root}.")
        self.location.require_writable()
        for key in gone:
            self.location.remove(array_folder(key))
        self.list_again(gone)

    def list_again(self, changed: Iterable[str]) -> None:
        """Bring ``index.jsonl`` up to date where the cache was published, after arrays were changed or removed."""
        keys = list(changed)
        if keys and self.location.exists(INDEX):
            publish_index(self.location, changed=keys)

    def set_aside(self, problems: Iterable[Problem]) -> list[tuple[str, int]]:
        """Move damaged shards and their commits to ``CACHE/aside``, so that they are missing again.

        Returns the (key, shard) that were moved; problems of a whole array or set are left alone.
        """
        damaged = sorted({(p.key, p.shard) for p in problems if p.shard is not None})
        for key, shard in damaged:
            folder = array_folder(key)
            self.location.set_aside(f"{folder}/{SEAL}", f"{key}-seal")  # it speaks of all shards
            # First the commit, so that no reader sees a gap.
            self.location.set_aside(commit_name(folder, shard), f"{key}-{shard}-commit")
            self.location.set_aside(f"{folder}/{ArrayLayout.shard_folder(shard)}", f"{key}-{shard}")
        self.list_again({key for key, _ in damaged})
        return damaged

    def verify(
        self,
        keys: Iterable[str] | None = None,
        *,
        sample: int | None = None,
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> list[Problem]:
        """Compare every byte with what was written; shards that are missing are no problem.

        Parameters
        ----------
        keys : iterable of str, optional
            Arrays to look at, with their stimulus sets; all arrays and sets by default.
        sample : int, optional
            Read only so many shards of each array, chosen at random.
        seed : int, optional
            Of that choice; by default it is another one each time.
        progress : callable (shards done, shards in all), optional

        Returns
        -------
        problems : list of Problem
        """
        scope = Scope(None if keys is None else tuple(keys), sample=sample, seed=seed)
        return verify_cache(
            locate(self.root), scope, progress=progress
        )  # the cache itself, and no mirror of it

    def _manifest(self, digest: str) -> StimulusManifest:
        return self.stimuli(digest).manifest


def _digests_in(location: Location, folder: str) -> list[str]:
    return sorted(name for name in location.names(folder) if HEX_DIGEST.fullmatch(name))
