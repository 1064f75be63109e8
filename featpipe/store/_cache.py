"""The cache as a whole: a folder of stimulus sets and of arrays."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.errors import FeaturesNotCached, RequestError
from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store._array import CachedArray
from featpipe.store._codec import choose_codec
from featpipe.store._commits import commit_path
from featpipe.store._layout import DTYPES, ArrayLayout
from featpipe.store._publish import set_aside, staging
from featpipe.store._stimuli import StoredStimuli, load_stimuli, store_stimuli
from featpipe.store._verify import Problem, Progress, Scope, verify_cache
from featpipe.store._writer import ArrayWriter, create_array, open_writer

SHARD_ROWS = 256
_DIGEST = re.compile(r"[0-9a-f]{64}")


class FeatureCache:
    """Features on disk, one array per (feature spec, stimulus set).

    Nothing is created before the first write. Readers and writers need no lock: arrays, shards and
    commit records appear whole or not at all, and only where nothing was before. ``cache/README.md`` has
    every file.

    Parameters
    ----------
    root : str or Path
        A local folder.

    Raises
    ------
    RequestError
        It is a file.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if self.root.is_file():
            raise RequestError(f"The cache {self.root} is a file; name a folder.")
        self._stimuli: dict[str, StoredStimuli] = {}  # immutable on disk, and read once

    def __repr__(self) -> str:
        return f"FeatureCache({str(self.root)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_stimuli": {}}  # travels to workers without the ids

    def keys(self) -> list[str]:
        """Return the keys of all arrays, sorted."""
        return _digests_in(self.root / "arrays")

    def array(self, key: str) -> CachedArray:
        """Open an array; raises `FeaturesNotCached`, or `CacheCorrupt` when it is not what its key says."""
        if not _DIGEST.fullmatch(key):
            raise FeaturesNotCached(f"A key has 64 hexadecimal digits, got {key!r}.")
        return CachedArray.open(self.root / "arrays" / key, self._manifest)

    def arrays(self) -> list[CachedArray]:
        """Open all arrays; raises `CacheCorrupt` naming the first that cannot be."""
        return [self.array(key) for key in self.keys()]

    def match(self, wanted: Callable[[FeatureSpec], bool]) -> list[CachedArray]:
        """Open the arrays whose spec is wanted."""
        return [array for array in self.arrays() if wanted(array.spec)]

    def holding(self, spec: FeatureSpec) -> list[CachedArray]:
        """Open the arrays that hold these features, one a stimulus set."""
        return [self.array(key) for key in self.keys_of(spec)]

    def keys_of(self, spec: FeatureSpec) -> list[str]:
        """Return the keys of the arrays that hold these features, one a stimulus set."""
        keys = map(spec.key, self.stimuli_digests())  # sets are few and arrays many, so only those are listed
        return [key for key in keys if (self.root / "arrays" / key).is_dir()]

    def stimuli_digests(self) -> list[str]:
        """Return the digests of all stimulus sets, sorted."""
        return _digests_in(self.root / "stimuli")

    def stimuli(self, digest: str) -> StoredStimuli:
        """Return a stimulus set; raises `FeaturesNotCached` or `CacheCorrupt`."""
        if digest not in self._stimuli:
            if not _DIGEST.fullmatch(digest):
                raise FeaturesNotCached(f"A stimulus set is known by 64 hexadecimal digits, got {digest!r}.")
            self._stimuli[digest] = load_stimuli(self._stimuli_folder(digest))
        return self._stimuli[digest]

    def add_stimuli(self, manifest: StimulusManifest, *, shard_rows: int = SHARD_ROWS) -> StoredStimuli:
        """Add a stimulus set; one that is there already stays as it is, with its rows per shard.

        Parameters
        ----------
        manifest : StimulusManifest
        shard_rows : int
            Rows per shard of every array of this set, a multiple of 8.
        """
        folder = self._stimuli_folder(manifest.digest)
        if not folder.is_dir():
            store_stimuli(self.root, folder, manifest, shard_rows)
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
        folder = self.root / "arrays" / key
        if not folder.is_dir():
            create_array(self.root, folder, spec, layout, stored.manifest)
        return open_writer(self.root, self.array(key), layout)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove arrays; raises `FeaturesNotCached`, before any is removed, when one is not there."""
        folders = [self.root / "arrays" / key for key in keys]
        for folder in folders:
            if not _DIGEST.fullmatch(folder.name) or not folder.is_dir():
                raise FeaturesNotCached(f"There is no array {folder.name!r} in {self.root}.")
        for folder in folders:
            with staging(self.root) as staged:  # gone in one step, also when killed while deleting
                os.rename(folder, staged / folder.name)
                shutil.rmtree(staged / folder.name)

    def set_aside(self, problems: Iterable[Problem]) -> list[tuple[str, int]]:
        """Move damaged shards and their commits to ``CACHE/aside``, so that they are missing again.

        Returns the (key, shard) that were moved; problems of a whole array or set are left alone.
        """
        damaged = sorted({(p.key, p.shard) for p in problems if p.shard is not None})
        for key, shard in damaged:
            folder = self.root / "arrays" / key
            set_aside(
                self.root, commit_path(folder, shard), f"{key}-{shard}-commit"
            )  # first, so that no reader sees a gap
            set_aside(self.root, folder / ArrayLayout.shard_folder(shard), f"{key}-{shard}")
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
        return verify_cache(self.root, scope, progress=progress)

    def _manifest(self, digest: str) -> StimulusManifest:
        return self.stimuli(digest).manifest

    def _stimuli_folder(self, digest: str) -> Path:
        return self.root / "stimuli" / digest


def _digests_in(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if _DIGEST.fullmatch(name))
    except FileNotFoundError:
        return []
