"""Stimulus sets in the cache: ``stimuli/DIGEST/stimuli.json``, immutable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from featpipe.errors import CacheCorrupt, FeaturesNotCached, RequestError, StimulusError
from featpipe.spec import FORMAT
from featpipe.stimuli import StimulusManifest
from featpipe.store._documents import (
    LARGEST_STIMULI,
    check_checksum,
    read_json,
    require_format,
    with_checksum,
)
from featpipe.store._layout import MOST_SHARD_ROWS
from featpipe.store.location import Location

STIMULI = "stimuli"
FILE = "stimuli.json"
_OURS = ("format", "shard_rows", "checksum")


@dataclass(frozen=True)
class StoredStimuli:
    """A stimulus set as the cache keeps it.

    Parameters
    ----------
    manifest : StimulusManifest
    shard_rows : int
        Rows per shard of every array of this set, a multiple of 8.
    """

    manifest: StimulusManifest
    shard_rows: int


def stimuli_folder(digest: str) -> str:
    """Return the folder of a stimulus set below the cache's."""
    return f"{STIMULI}/{digest}"


def store_stimuli(location: Location, manifest: StimulusManifest, shard_rows: int) -> bool:
    """Write a stimulus set into its folder, unless it is there already; tell whether it was written."""
    if not (8 <= shard_rows <= MOST_SHARD_ROWS and shard_rows % 8 == 0):
        raise RequestError(
            f"Rows per shard are a multiple of 8 up to {MOST_SHARD_ROWS}, got {shard_rows}: batches of "
            "another size do not give the same rows everywhere."
        )
    if not len(manifest):
        raise RequestError("A stimulus set in the cache needs at least one image, this one has none.")
    content = with_checksum({"format": FORMAT, "shard_rows": shard_rows, **manifest.to_json()})
    return location.create_folder(stimuli_folder(manifest.digest), {FILE: content}, last=FILE)


def load_stimuli(location: Location, digest: str, *, thorough: bool = False) -> StoredStimuli:
    """Read a stimulus set.

    Parameters
    ----------
    location : Location
    digest : str
    thorough : bool
        Also check every byte: the checksum, and the digest that the folder is named for. A remote set is
        always checked so.

    Raises
    ------
    FeaturesNotCached
        There is no such set.
    CacheCorrupt
        The file is not what was written.
    """
    return location.checked(
        stimuli_folder(digest), lambda: _load(location, digest, thorough=thorough or location.remote)
    )


def _load(location: Location, digest: str, *, thorough: bool) -> StoredStimuli:
    name = f"{stimuli_folder(digest)}/{FILE}"
    path = f"{location.url}/{name}"
    try:
        document = read_json(location, name, LARGEST_STIMULI, canonical=thorough)
    except CacheCorrupt as error:
        if isinstance(error.__cause__, FileNotFoundError) and digest not in location.names(STIMULI):
            raise FeaturesNotCached(
                f"There is no stimulus set {digest!r} in {location.url}. Run `featpipe extract` on its images."
            ) from error
        raise
    if thorough:
        check_checksum(path, document)
    require_format(path, document)
    stored = _parsed(path, document)
    if thorough and stored.manifest.digest != digest:
        raise CacheCorrupt(f"{path} holds another stimulus set, {stored.manifest.digest}.")
    return stored


def _parsed(path: str, document: dict[str, Any]) -> StoredStimuli:
    shard_rows = document.get("shard_rows")
    try:
        if type(shard_rows) is not int or not 8 <= shard_rows <= MOST_SHARD_ROWS:
            raise StimulusError(f"it has {repr(shard_rows)[:40]} rows per shard")
        manifest = StimulusManifest.from_json({k: v for k, v in document.items() if k not in _OURS})
    except (StimulusError, RecursionError) as error:
        raise CacheCorrupt(f"{path} is not a stimulus set: {str(error)[:400]}") from error
    return StoredStimuli(manifest, shard_rows)
