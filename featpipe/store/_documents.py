"""The cache's JSON files: canonical, bounded, of one format, and with a checksum of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from featpipe.errors import CacheCorrupt, RequestError
from featpipe.spec import FORMAT, canonical_json, digest_of
from featpipe.store.location import Location

LARGEST = 1 << 20  # bytes of any JSON file but stimuli.json
LARGEST_STIMULI = 1 << 30
DEEPEST = 32  # values within values; what is written has a third of it


def read_bytes(location: Location, name: str, largest: int = LARGEST) -> bytes:
    """Read a small file; raises `CacheCorrupt` when it is missing or larger than it can be."""
    path = f"{location.url}/{name}"
    try:
        content = location.read(name, largest)
    except FileNotFoundError as error:
        raise CacheCorrupt(f"{path} is not there, but what stands beside it needs it. {_ADVICE}") from error
    if len(content) > largest:
        raise CacheCorrupt(f"{path} is larger than the {largest} bytes that it may have. {_ADVICE}")
    return content


def read_json(
    location: Location, name: str, largest: int = LARGEST, *, canonical: bool = True
) -> dict[str, Any]:
    """Read a small file and parse it; see `read_bytes` and `parse_json`."""
    return parse_json(f"{location.url}/{name}", read_bytes(location, name, largest), canonical=canonical)


def parse_json(path: str, content: bytes, *, canonical: bool = True) -> dict[str, Any]:
    """Parse a JSON object; raises `CacheCorrupt` unless it is one, written in the canonical way."""
    try:
        value = json.loads(content)
        if not isinstance(value, dict) or (canonical and not _is_canonical(value, content)):
            raise ValueError("it is not one canonical JSON object")
    except (ValueError, RecursionError) as error:
        raise CacheCorrupt(f"{path} cannot be read: {str(error)[:200]}. {_ADVICE}") from error
    return value


def _is_canonical(value: Any, content: bytes) -> bool:
    require_shallow(value)
    return canonical_json(value) == content


def require_shallow(value: Any) -> None:
    """Raise `ValueError` where values lie deeper within each other than what encodes and shows them can follow."""
    level = [value]
    for _ in range(DEEPEST):
        inner = [item.values() if type(item) is dict else item for item in level]
        level = [item for items in inner for item in items if type(item) in (dict, list)]
    if level:
        raise ValueError(f"it has more than {DEEPEST} values within each other")


def require_format(path: str, value: Mapping[str, Any]) -> None:
    """Refuse a document of another format than ours; raises `RequestError`."""
    found = value.get("format")
    if type(found) is not int or found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        remedy = "Update featpipe" if newer else "Extract the features again"
        raise RequestError(
            f"{path} has cache format {repr(found)[:40]}, and this featpipe reads format {FORMAT}. {remedy}, or use "
            "another cache."
        )


def with_checksum(value: Mapping[str, Any]) -> bytes:
    """Encode a document, adding ``checksum``: SHA-256 of its canonical JSON without that field."""
    return canonical_json({**value, "checksum": digest_of(value)})


def check_checksum(path: str, value: Mapping[str, Any]) -> None:
    """Raise `CacheCorrupt` unless a document's ``checksum`` is its own."""
    if value.get("checksum") != digest_of({k: v for k, v in value.items() if k != "checksum"}):
        raise CacheCorrupt(f"{path} does not match its own checksum. {_ADVICE}")


_ADVICE = "Run `featpipe cache verify` on this cache; damaged shards can be computed again."
