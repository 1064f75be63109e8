"""``sealed.json``: all commit records of a complete array in one file, so that a remote reader asks once."""

from __future__ import annotations

from typing import Any

from featpipe.errors import CacheCorrupt
from featpipe.spec import FORMAT
from featpipe.store._commits import check_commit
from featpipe.store._documents import LARGEST, check_checksum, parse_json, require_format, with_checksum
from featpipe.store._layout import ArrayLayout
from featpipe.store.location import Location

SEAL = "sealed.json"
LARGEST_SEAL = 1 << 26  # bytes


def encode_seal(key: str, commits: list[dict[str, Any]]) -> bytes:
    """Encode the seal of an array from its commit records, by shard; they say the checksum of every file."""
    return with_checksum({"format": FORMAT, "key": key, "commits": commits})


def read_seal(location: Location, folder: str, key: str, layout: ArrayLayout) -> list[dict[str, Any]] | None:
    """Return the commit records of a sealed array, each checked, or None where it is not sealed.

    Raises
    ------
    CacheCorrupt
        The seal is not that of this array.
    """
    name = f"{folder}/{SEAL}"
    path = f"{location.url}/{name}"
    largest = min(LARGEST_SEAL, (layout.n_shards + 1) * LARGEST)  # so many records, each a document
    try:
        content = location.read(name, largest)
    except FileNotFoundError:
        return None
    if len(content) > largest:
        raise CacheCorrupt(
            f"{path} is larger than the {largest} bytes that the seal of {layout.n_shards} shards may be."
        )
    return parse_seal(path, content, key, layout)


def parse_seal(path: str, content: bytes, key: str, layout: ArrayLayout) -> list[dict[str, Any]]:
    """Parse the content of ``sealed.json``, see `read_seal`."""
    seal = parse_json(path, content)
    check_checksum(path, seal)
    require_format(path, seal)
    commits = seal.get("commits")
    if seal.get("key") != key or not isinstance(commits, list) or len(commits) != layout.n_shards:
        raise CacheCorrupt(
            f"{path} is not the seal of array {key}. `featpipe cache verify` says what is damaged."
        )
    for shard, record in enumerate(commits):
        if not isinstance(record, dict):
            raise CacheCorrupt(f"{path} holds something else than commit records.")
        check_commit(f"{path} (shard {shard})", record, key, shard, layout.rows_of(shard))
    return commits
