"""One array of the cache, for readers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from featpipe.errors import CacheCorrupt, FeaturesNotCached, RequestError, SpecError, StimulusNotCached
from featpipe.spec import FeatureSpec, digest_of
from featpipe.stimuli import StimulusManifest
from featpipe.store._commits import commit_name, committed_shards, non_finite_in, read_commit
from featpipe.store._documents import LARGEST_STIMULI, parse_json, read_bytes, read_json, require_format
from featpipe.store._layout import GROUP, STIMULUS, ArrayLayout
from featpipe.store._reading import (
    Request,
    checked_out,
    checked_rows,
    default_threads,
    read_remote,
    read_requests,
    requests_of,
)
from featpipe.store._seal import read_seal
from featpipe.store._shard import ShardFile
from featpipe.store._static import FEATURES_METADATA, SPEC, decode_ids
from featpipe.store.location import Folder, Location

ARRAYS = "arrays"
_MANY = 1 << 20  # rows; memory for their numbers alone is nothing to be given on trust


@dataclass(frozen=True)
class CachedArray:
    """The features of one layer for one stimulus set, as far as they are cached.

    Opening reads two small files; rows, ids and commit records are read when asked for. A shard counts once
    its commit record is there. Commit records are looked up afresh each time in a folder; elsewhere once, from
    ``sealed.json`` where the array has one, and again when rows are missing.

    Parameters
    ----------
    key : str
        SHA-256 of ``spec.json``, 64 hex digits.
    spec : FeatureSpec
    stimuli_digest : str
        Digest of the stimulus set.
    layout : ArrayLayout
    location : Location
        The cache.
    """

    key: str
    spec: FeatureSpec
    stimuli_digest: str
    layout: ArrayLayout
    location: Location
    _stimuli: Callable[[str], StimulusManifest] = field(repr=False, compare=False)
    _provenance: dict[tuple[int, Any], dict[str, Any]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _seen: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, location: Location, key: str, stimuli: Callable[[str], StimulusManifest]) -> Self:
        """Open an array; raises `FeaturesNotCached`, `CacheCorrupt`, or `RequestError`."""
        return location.checked(array_folder(key), lambda: cls._open(location, key, stimuli))

    @classmethod
    def _open(cls, location: Location, key: str, stimuli: Callable[[str], StimulusManifest]) -> Self:
        base = array_folder(key)
        if not location.has_array(base):
            raise FeaturesNotCached(
                f"There is no array {key!r} in {location.url}. `featpipe cache ls` lists those that are there."
            )
        spec, digest = read_spec(location, f"{base}/{SPEC}", key)
        name = f"{base}/{FEATURES_METADATA}"
        path = f"{location.url}/{name}"
        layout = ArrayLayout.parse(path, read_json(location, name))
        if layout.dtype != spec.store_dtype:
            raise CacheCorrupt(f"{path} says {layout.dtype}, but the spec of {key} {spec.store_dtype}.")
        return cls(key, spec, digest, layout, location, stimuli)

    def __getstate__(self) -> dict[str, Any]:
        """Travel to workers without ids and manifest, which are read again where they are needed."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"_provenance": {}, "_seen": {}}

    @property
    def base(self) -> str:
        """The array's folder below the cache's."""
        return array_folder(self.key)

    @property
    def folder(self) -> Path:
        """Where the array lies, in a cache that is a folder."""
        if not isinstance(self.location, Folder):
            raise RequestError(f"Array {self.key} lies at {self.location.url}, and in no folder.")
        return self.location.path(self.base)

    @property
    def root(self) -> Path | str:
        """The cache's folder, or its URL."""
        return self.location.root if isinstance(self.location, Folder) else self.location.url

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.layout.row_shape

    @property
    def dims(self) -> tuple[str, ...]:
        """Name of each axis of a row."""
        return self.layout.dims

    @property
    def dtype(self) -> np.dtype:
        """The stored dtype."""
        return self.layout.numpy_dtype

    @property
    def n_stimuli(self) -> int:
        """Rows of the complete array."""
        return self.layout.n_stimuli

    @property
    def shard_rows(self) -> int:
        """Rows per shard."""
        return self.layout.shard_rows

    @property
    def codec(self) -> str:
        """How chunks are compressed."""
        return self.layout.codec

    @cached_property
    def manifest(self) -> StimulusManifest:
        """Ids and image digests in the order of the rows."""
        manifest = self._stimuli(self.stimuli_digest)
        if len(manifest) != self.n_stimuli:
            raise CacheCorrupt(
                f"Array {self.key} has {self.n_stimuli} rows, its stimulus set {len(manifest)} images."
            )
        return manifest

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Ids in the order of the rows, from the array itself: quicker than `manifest` for large sets."""
        if self.location.remote:
            return self.manifest.ids  # whose digest was checked
        name = f"{self.base}/{GROUP}/{STIMULUS}/c/0"
        return decode_ids(read_bytes(self.location, name, largest=LARGEST_STIMULI), self.n_stimuli)

    @property
    def committed(self) -> frozenset[int]:
        """Shards that count now; at a remote place, those that counted when last looked up."""
        if not self.location.remote:
            return committed_shards(self.location, self.base, self.layout.n_shards)
        if "committed" not in self._seen:
            self._seen["committed"] = self._committed_there()
        found: frozenset[int] = self._seen["committed"]
        return found

    def _committed_there(self) -> frozenset[int]:
        if self._sealed() is not None:
            return frozenset(range(self.layout.n_shards))
        return committed_shards(self.location, self.base, self.layout.n_shards)

    def _sealed(self) -> list[dict[str, Any]] | None:
        """Return the commit records of an array somewhere else that is sealed, read once."""
        if "sealed" not in self._seen:
            self._seen["sealed"] = self.location.checked(
                self.base, lambda: read_seal(self.location, self.base, self.key, self.layout)
            )
        found: list[dict[str, Any]] | None = self._seen["sealed"]
        return found

    def look_again(self) -> None:
        """Forget which shards of an array somewhere else count, unless it is sealed."""
        if self._seen.get("sealed") is None:
            self._seen.clear()

    def is_committed(self, shard: int) -> bool:
        """Whether a shard counts now; quicker than `committed`."""
        return self.location.exists(commit_name(self.base, shard))

    @property
    def missing(self) -> list[int]:
        """Shards that do not count yet, ascending."""
        committed = self.committed
        return [shard for shard in range(self.layout.n_shards) if shard not in committed]

    @property
    def complete(self) -> bool:
        """Whether every shard counts."""
        return len(self.committed) == self.layout.n_shards

    def commits(self) -> list[dict[str, Any]]:
        """Return the commit records by shard; raises `CacheCorrupt` when one cannot be read."""
        return [self.commit(shard) for shard in sorted(self.committed)]

    def commit(self, shard: int) -> dict[str, Any]:
        """Return the commit record of one shard, checked; raises `CacheCorrupt`."""
        if not self.location.remote:
            return self._read_commit(shard)
        if "commits" not in self._seen:
            self._seen["commits"] = {}
        commits: dict[int, dict[str, Any]] = self._seen["commits"]
        if shard not in commits:
            commits[shard] = self._commit_there(shard)
        return commits[shard]

    def _read_commit(self, shard: int) -> dict[str, Any]:
        return read_commit(self.location, self.base, self.key, shard, self.layout.rows_of(shard))

    def _commit_there(self, shard: int) -> dict[str, Any]:
        """Read a commit record somewhere else; it must be of rows laid out as ``zarr.json`` says."""
        sealed = self._sealed()
        if sealed is not None:
            commit = sealed[shard]
        else:
            commit = self.location.checked(self.base, lambda: self._read_commit(shard))
        if commit["static"].get(FEATURES_METADATA) != digest_of(self.layout.features_metadata()):
            raise CacheCorrupt(
                f"{self.location.url}/{self.base}/{FEATURES_METADATA} is not the one that shard {shard} was written "
                "under. Run `featpipe cache verify` on this cache."
            )
        return commit

    @property
    def provenance(self) -> dict[str, Any]:
        """How the first committed shard came about; empty when there is none."""
        if not (committed := self.committed):
            return {}
        shard = min(committed)
        # A repaired shard has another record.
        version = None if self.location.remote else self.location.version(commit_name(self.base, shard))
        if (shard, version) not in self._provenance:
            self._provenance[shard, version] = self.commit(shard)["provenance"]
        return self._provenance[shard, version]

    def non_finite(self) -> dict[int, int]:
        """Return how many values are NaN or infinite in each committed shard that has any, by its record."""
        if self.location.remote:
            counts = {shard: self.commit(shard)["non_finite"] for shard in sorted(self.committed)}
        else:
            counts = {
                shard: non_finite_in(self.location, self.base, shard) for shard in sorted(self.committed)
            }
        return {shard: count for shard, count in counts.items() if count}

    @property
    def nbytes(self) -> int:
        """Bytes on disk of the committed shards."""
        if self.location.remote:
            return sum(commit["size"] for commit in self.commits())
        return sum(map(self._size_of, self.committed))

    def _size_of(self, shard: int) -> int:
        try:
            return self.location.size(self.shard_name(shard))
        except FileNotFoundError as error:
            raise CacheCorrupt(f"{self.label(shard)} is damaged: its file is gone.") from error

    def shard_name(self, shard: int) -> str:
        """Return the file of a shard below the cache's folder."""
        return f"{self.base}/{self.layout.shard_path(shard)}"

    def shard_path(self, shard: int) -> Path:
        """Return the file of a shard, in a cache that is a folder."""
        return self.folder / self.layout.shard_path(shard)

    def shard_folder(self, shard: int) -> Path:
        """Return the folder that appears when a shard is published, in a cache that is a folder."""
        return self.folder / ArrayLayout.shard_folder(shard)

    def is_sound(self, shard: int) -> bool:
        """Whether a shard's bytes are those that were committed."""
        try:
            return bool(self.location.digest(self.shard_name(shard)) == self.commit(shard)["sha256"])
        except (CacheCorrupt, OSError):  # a record or a file that is damaged, lost, or closed to us
            return False

    def read(
        self, rows: np.ndarray | None = None, *, out: np.ndarray | None = None, threads: int | None = None
    ) -> np.ndarray:
        """Read rows in any order, with repeats.

        Parameters
        ----------
        rows : ndarray of int of shape (n_rows,), optional
            All rows by default.
        out : ndarray of shape (n_rows, *row_shape) in the stored dtype, optional
            Where to read them to.
        threads : int, optional
            How many to read and decode with; by default the processors there are, at most four.

        Returns
        -------
        values : ndarray of shape (n_rows, *row_shape) in the stored dtype

        Raises
        ------
        StimulusNotCached
            Rows lie in shards that are not committed.
        CacheCorrupt
            A shard cannot be what was written. Only `FeatureCache.verify` sees every changed byte.
        CacheReadError
            There is no permission to read it, or the disk fails.
        """
        if rows is None and self.n_stimuli > _MANY:
            len(self.ids)  # so many rows are believed once there are ids for them
        wanted = checked_rows(rows, self.n_stimuli)
        self._require_committed(wanted)
        values = checked_out(out, (len(wanted), *self.row_shape), self.dtype)
        requests = requests_of(wanted, self.layout)
        self.location.checked(self.base, lambda: self._carry_out(requests, values, threads))
        return values

    def _carry_out(self, requests: Sequence[Request], values: np.ndarray, threads: int | None) -> None:
        here = self.location
        try:
            if not here.remote or here.at_hand(self._files_of(requests)):
                how_many = threads or default_threads()
                read_requests(requests, self.layout, self.open_shard, values, threads=how_many)
            else:
                how_many, whole = threads or here.threads, here.whole_files
                read_remote(requests, self.layout, self.open_shard, values, threads=how_many, whole=whole)
        except CacheCorrupt:
            self._seen.clear()  # what is said of the shards may have changed since
            raise

    def _files_of(self, requests: Sequence[Request]) -> list[tuple[int, str]]:
        """Return size and SHA-256 of the shards that are wanted."""
        commits = [self.commit(shard) for shard in dict.fromkeys(request.shard for request in requests)]
        return [(commit["size"], commit["sha256"]) for commit in commits]

    def open_shard(self, shard: int) -> ShardFile:
        """Open the file of a shard."""
        known: dict[str, Any] = {}
        if self.location.remote:
            commit = self.commit(shard)
            known = {"size": commit["size"], "sha256": commit["sha256"]}
        return ShardFile(self.location, self.shard_name(shard), self.layout, shard, label=self.label, **known)

    def label(self, shard: int) -> str:
        """Name a shard in messages."""
        rows = self.layout.rows_of(shard)
        span = f"rows {rows.start} to {rows.stop - 1}"
        return f"Shard {shard} ({span}) of array {self.key} ({self.spec.layer_label})"

    def _require_committed(self, rows: np.ndarray) -> None:
        committed = self.committed
        if len(committed) == self.layout.n_shards:
            return
        absent = ~np.isin(rows // self.shard_rows, sorted(committed))
        if absent.any() and self._seen:  # committed elsewhere since we looked
            self._seen.clear()
            committed = self.committed
            absent = ~np.isin(rows // self.shard_rows, sorted(committed))
        if absent.any():
            first = self.ids[int(rows[int(np.argmax(absent))])]
            raise StimulusNotCached(
                f"{int(absent.sum())} of {len(rows)} stimuli have no row yet in array {self.key} "
                f"({self.spec.layer_label}), first {first!r}: {len(committed)} of {self.layout.n_shards} "
                "shards are there. Run `featpipe extract` again, it goes on where it stopped."
            )


def array_folder(key: str) -> str:
    """Return the folder of an array below the cache's."""
    return f"{ARRAYS}/{key}"


def read_spec(location: Location, name: str, key: str) -> tuple[FeatureSpec, str]:
    """Read ``spec.json``: the spec and the digest of the stimulus set; raises as `CachedArray.open`."""
    return parse_spec(f"{location.url}/{name}", read_bytes(location, name), key)


def parse_spec(path: str, content: bytes, key: str) -> tuple[FeatureSpec, str]:
    """Parse the content of ``spec.json``, see `read_spec`."""
    found = hashlib.sha256(content).hexdigest()
    if found != key:
        raise CacheCorrupt(
            f"Array {key} holds a spec.json of another key ({found[:12]}…), so its rows may be anything. "
            f"Remove it with `featpipe cache rm {key}` and extract it again."
        )
    document: Mapping[str, Any] = parse_json(path, content)
    require_format(path, document)
    fields = {name: value for name, value in document.items() if name not in ("format", "stimuli")}
    try:
        if type(document["stimuli"]) is not str:
            raise SpecError("it names no stimulus set.")
        return FeatureSpec.from_json(fields), document["stimuli"]
    except (SpecError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CacheCorrupt(f"The spec of array {key} cannot be read: {str(error)[:400]}") from error
