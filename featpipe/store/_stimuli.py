"""Stimulus sets in the cache: ``stimuli/DIGEST/stimuli.json``, immutable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featpipe.errors import CacheCorrupt, FeaturesNotCached, RequestError, StimulusError
from featpipe.spec import FORMAT
from featpipe.stimuli import StimulusManifest
from featpipe.store._documents import (
    LARGEST_STIMULI,
    check_checksum,
    parse_json,
    read_bytes,
    require_format,
    with_checksum,
)
from featpipe.store._layout import MOST_SHARD_ROWS
from featpipe.store._publish import publish_folder, staging, write_file
from featpipe.store._refused import is_folder

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


def store_stimuli(root: Path, folder: Path, manifest: StimulusManifest, shard_rows: int) -> None:
    """Write a stimulus set into its folder, unless it is there already."""
    if not (8 <= shard_rows <= MOST_SHARD_ROWS and shard_rows % 8 == 0):
        raise RequestError(
            f"Rows per shard are a multiple of 8 up to {MOST_SHARD_ROWS}, got {shard_rows}: batches of "
            "another size do not give the same rows everywhere."
        )
    if not len(manifest):
        raise RequestError("A stimulus set in the cache needs at least one image, this one has none.")
    content = with_checksum({"format": FORMAT, "shard_rows": shard_rows, **manifest.to_json()})
    with staging(root) as staged:
        (staged / folder.name).mkdir()
        write_file(staged / folder.name / FILE, [content])
        publish_folder(staged / folder.name, folder)


def load_stimuli(folder: Path, *, thorough: bool = False) -> StoredStimuli:
    """Read a stimulus set.

    Parameters
    ----------
    folder : Path
        ``CACHE/stimuli/DIGEST``.
    thorough : bool
        Also check every byte: the checksum, and the digest that the folder is named for.

    Raises
    ------
    FeaturesNotCached
        There is no such set.
    CacheCorrupt
        The file is not what was written.
    """
    path = folder / FILE
    if not is_folder(folder):
        raise FeaturesNotCached(
            f"There is no stimulus set {folder.name!r} in {folder.parent.parent}. Run `featpipe extract` on "
            "its images."
        )
    document = parse_json(path, read_bytes(path, LARGEST_STIMULI), canonical=thorough)
    if thorough:
        check_checksum(path, document)
    require_format(path, document)
    stored = _parsed(path, document)
    if thorough and stored.manifest.digest != folder.name:
        raise CacheCorrupt(f"{path} holds another stimulus set, {stored.manifest.digest}.")
    return stored


def _parsed(path: Path, document: dict[str, Any]) -> StoredStimuli:
    shard_rows = document.get("shard_rows")
    try:
        if type(shard_rows) is not int or not 8 <= shard_rows <= MOST_SHARD_ROWS:
            raise StimulusError(f"it has {shard_rows!r} rows per shard")
        manifest = StimulusManifest.from_json({k: v for k, v in document.items() if k not in _OURS})
    except StimulusError as error:
        raise CacheCorrupt(f"{path} is not a stimulus set: {error}") from error
    return StoredStimuli(manifest, shard_rows)
