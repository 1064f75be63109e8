"""Commit records: the small files that make a shard count, and say what it is and how it came about."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featpipe.errors import CacheCorrupt, RequestError
from featpipe.spec import FORMAT, HEX_DIGEST
from featpipe.store._documents import (
    LARGEST,
    check_checksum,
    read_json,
    require_format,
    require_shallow,
    with_checksum,
)
from featpipe.store.location import Location

COMMITS = "commits"
_NAME = re.compile(r"(0|[1-9][0-9]{0,9})\.json")
_FIELDS = {
    "format": int,
    "key": str,
    "shard": int,
    "rows": list,
    "size": int,
    "sha256": str,
    "static": dict,
    "non_finite": int,
    "provenance": dict,
    "reused": list,
    "checksum": str,
}
_PROVENANCE = {  # what is read of it; all else is for people
    "batch_size": int,
    "layer_order": int,
    "memory_format": str,
    "model_asked": str,
    "weights_asked": str,
    "weights_label": str,
}


def commit_name(folder: str, shard: int) -> str:
    """Return where the commit record of a shard of the array in a folder lies."""
    return f"{folder}/{COMMITS}/{shard}.json"


def committed_shards(location: Location, folder: str, n_shards: int) -> frozenset[int]:
    """List the shards that have a commit record now; reads none of them."""
    names = location.names(f"{folder}/{COMMITS}")
    shards = (int(match[1]) for name in names if (match := _NAME.fullmatch(name)))
    return frozenset(shard for shard in shards if shard < n_shards)


def encode_commit(
    key: str,
    shard: int,
    rows: range,
    *,
    size: int,
    sha256: str,
    static: Mapping[str, str],
    non_finite: int,
    provenance: Mapping[str, Any],
    reused: Sequence[Mapping[str, Any]],
) -> bytes:
    """Encode a commit record; raises `RequestError` when the provenance is no JSON or too long."""
    record = {
        "format": FORMAT,
        "key": key,
        "shard": shard,
        "rows": [rows.start, rows.stop],
        "size": size,
        "sha256": sha256,
        "static": dict(static),
        "non_finite": non_finite,
        "provenance": dict(provenance),
        "reused": [dict(source) for source in reused],
    }
    try:
        require_shallow(record)
        content = with_checksum(record)
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"Provenance must be plain JSON values, with string keys: {error}.") from error
    if len(content) > LARGEST:
        raise RequestError(f"A commit record may have {LARGEST} bytes, this one has {len(content)}.")
    return content


def read_commit(location: Location, folder: str, key: str, shard: int, rows: range) -> dict[str, Any]:
    """Read and check the commit record of a shard; raises `CacheCorrupt`."""
    name = commit_name(folder, shard)
    record = read_json(location, name)
    check_commit(f"{location.url}/{name}", record, key, shard, rows)
    return record


def check_commit(path: str, record: Mapping[str, Any], key: str, shard: int, rows: range) -> None:
    """Raise `CacheCorrupt` unless a document is the commit record of a shard."""
    check_checksum(path, record)
    require_format(path, record)
    if not _has_kinds(record) or (record["key"], record["shard"]) != (key, shard):
        raise CacheCorrupt(f"{path} is not the commit record of shard {shard} of array {key}.")
    if record["rows"] != [rows.start, rows.stop]:
        said = str(record["rows"])[:40]
        raise CacheCorrupt(f"{path} is for rows {said}, but the shard has {rows.start}:{rows.stop}.")


def _has_kinds(record: Mapping[str, Any]) -> bool:
    """Whether all fields, and those of the provenance that are read, are of the kind that they must be."""
    if record.keys() != _FIELDS.keys() or any(type(record[name]) is not _FIELDS[name] for name in _FIELDS):
        return False
    known = record["provenance"].keys() & _PROVENANCE.keys()
    kinds = all(type(record["provenance"][name]) in (_PROVENANCE[name], type(None)) for name in known)
    return kinds and record["size"] > 0 and HEX_DIGEST.fullmatch(record["sha256"]) is not None


def non_finite_in(location: Location, folder: str, shard: int) -> int:
    """Return how many values of a shard are NaN or infinite, from its record, which is not checked: in a moment."""
    name = commit_name(folder, shard)
    count = read_json(location, name, canonical=False).get("non_finite")
    if type(count) is not int:
        raise CacheCorrupt(
            f"{location.url}/{name} does not say how many values are not finite. Run `featpipe cache verify`."
        )
    return count


def count_non_finite(rows: np.ndarray) -> int:
    """Count NaN and infinite values, a part at a time so that memory stays small."""
    flat = rows.reshape(-1)
    part = 1 << 20
    return sum(
        len(some) - int(np.count_nonzero(np.isfinite(some)))
        for some in (flat[at : at + part] for at in range(0, len(flat), part))
    )
