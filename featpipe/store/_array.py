"""One array of the cache, for readers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from featpipe.errors import CacheCorrupt, FeaturesNotCached, SpecError, StimulusNotCached
from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store._commits import commit_path, committed_shards, read_commit
from featpipe.store._documents import parse_json, read_bytes, require_format
from featpipe.store._layout import GROUP, STIMULUS, ArrayLayout
from featpipe.store._reading import (
    checked_out,
    checked_rows,
    default_threads,
    read_requests,
    requests_of,
)
from featpipe.store._shard import ShardFile
from featpipe.store._static import FEATURES_METADATA, SPEC, decode_ids


@dataclass(frozen=True)
class CachedArray:
    """The features of one layer for one stimulus set, as far as they are cached.

    Opening reads two small files; rows, ids and commit records are read when asked for. A shard counts once
    its commit record is there, and commit records are looked up afresh each time.

    Parameters
    ----------
    key : str
        SHA-256 of ``spec.json``, 64 hex digits.
    spec : FeatureSpec
    stimuli_digest : str
        Digest of the stimulus set.
    layout : ArrayLayout
    folder : Path
        ``CACHE/arrays/KEY``.
    """

    key: str
    spec: FeatureSpec
    stimuli_digest: str
    layout: ArrayLayout
    folder: Path
    _stimuli: Callable[[str], StimulusManifest] = field(repr=False, compare=False)
    _provenance: dict[tuple[int, int], dict[str, Any]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def open(cls, folder: Path, stimuli: Callable[[str], StimulusManifest]) -> Self:
        """Open the array in a folder; raises `FeaturesNotCached`, `CacheCorrupt`, or `RequestError`."""
        key = folder.name
        if not folder.is_dir():
            raise FeaturesNotCached(
                f"There is no array {key!r} in {folder.parent.parent}. `featpipe cache ls` lists those that "
                "are there."
            )
        spec, digest = read_spec(folder / SPEC, key)
        path = folder / FEATURES_METADATA
        layout = ArrayLayout.parse(path, parse_json(path, read_bytes(path)))
        if layout.dtype != spec.store_dtype:
            raise CacheCorrupt(f"{path} says {layout.dtype}, but the spec of {key} {spec.store_dtype}.")
        return cls(key, spec, digest, layout, folder, stimuli)

    @property
    def root(self) -> Path:
        """The cache's folder."""
        return self.folder.parent.parent

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
        ids = decode_ids(read_bytes(self.folder / GROUP / STIMULUS / "c" / "0", largest=1 << 30))
        if len(ids) != self.n_stimuli:
            raise CacheCorrupt(f"Array {self.key} has {self.n_stimuli} rows, but {len(ids)} ids.")
        return ids

    @property
    def committed(self) -> frozenset[int]:
        """Shards that count now."""
        return committed_shards(self.folder, self.layout.n_shards)

    def is_committed(self, shard: int) -> bool:
        """Whether a shard counts now; quicker than `committed`."""
        return commit_path(self.folder, shard).exists()

    @property
    def missing(self) -> list[int]:
        """Shards that do not count yet, ascending."""
        return sorted(set(range(self.layout.n_shards)) - self.committed)

    @property
    def complete(self) -> bool:
        """Whether every shard counts."""
        return not self.missing

    def commits(self) -> list[dict[str, Any]]:
        """Return the commit records by shard; raises `CacheCorrupt` when one cannot be read."""
        return [self.commit(shard) for shard in sorted(self.committed)]

    def commit(self, shard: int) -> dict[str, Any]:
        """Return the commit record of one shard, checked; raises `CacheCorrupt`."""
        return read_commit(self.folder, self.key, shard, self.layout.rows_of(shard))

    @property
    def provenance(self) -> dict[str, Any]:
        """How the first committed shard came about; empty when there is none."""
        if not (committed := self.committed):
            return {}
        shard = min(committed)
        path = commit_path(self.folder, shard)
        record = (shard, path.stat().st_ino if path.exists() else 0)  # a repaired shard has another record
        if record not in self._provenance:
            self._provenance[record] = self.commit(shard)["provenance"]
        return self._provenance[record]

    @property
    def nbytes(self) -> int:
        """Bytes on disk of the committed shards."""
        return sum(self.shard_path(shard).stat().st_size for shard in self.committed)

    def shard_path(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / self.layout.shard_path(shard)

    def shard_folder(self, shard: int) -> Path:
        """Return the folder that appears when a shard is published."""
        return self.folder / ArrayLayout.shard_folder(shard)

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
        """
        wanted = checked_rows(rows, self.n_stimuli)
        self._require_committed(wanted)
        values = checked_out(out, (len(wanted), *self.row_shape), self.dtype)
        requests = requests_of(wanted, self.layout)
        read_requests(requests, self.layout, self.open_shard, values, threads=threads or default_threads())
        return values

    def open_shard(self, shard: int) -> ShardFile:
        """Open the file of a shard."""
        path = f"{self.folder}/{self.layout.shard_path(shard)}"  # much quicker than a Path
        return ShardFile(path, self.layout, shard, label=self.label)

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
        if absent.any():
            first = self.ids[int(rows[int(np.argmax(absent))])]
            raise StimulusNotCached(
                f"{int(absent.sum())} of {len(rows)} stimuli have no row yet in array {self.key} "
                f"({self.spec.layer_label}), first {first!r}: {len(committed)} of {self.layout.n_shards} "
                "shards are there. Run `featpipe extract` again, it goes on where it stopped."
            )


def read_spec(path: Path, key: str) -> tuple[FeatureSpec, str]:
    """Return the spec and the digest of the stimulus set; raises `CacheCorrupt` unless they have the key."""
    content = read_bytes(path)
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
        return FeatureSpec.from_json(fields), str(document["stimuli"])
    except (SpecError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CacheCorrupt(f"The spec of array {key} cannot be read: {error}") from error
