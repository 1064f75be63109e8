"""``index.jsonl``: what a published cache holds, one array a line, for readers that cannot list folders."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from featpipe.errors import CacheCorrupt
from featpipe.spec import FORMAT, HEX_DIGEST, canonical_json
from featpipe.store._documents import LARGEST, parse_json, require_format
from featpipe.store._layout import MOST_SHARDS

INDEX = "index.jsonl"
LARGEST_INDEX = 1 << 26  # bytes
_FIELDS = {"format": int, "key": str, "spec": dict, "sealed": bool, "shards": list}

_AGAIN = "Every `featpipe cache push` to that cache makes the list again; whoever published it has to."


@dataclass(frozen=True)
class CacheIndex:
    """What a cache holds.

    Parameters
    ----------
    arrays : mapping of str to mapping
        The line of each array, by key.
    """

    arrays: Mapping[str, Mapping[str, Any]]

    @classmethod
    def parse(cls, path: str, content: bytes) -> CacheIndex:
        """Read the file; raises `CacheCorrupt`, or `RequestError` when its format is another."""
        if len(content) > LARGEST_INDEX:
            raise CacheCorrupt(f"{path} is larger than the {LARGEST_INDEX} bytes that it may have. {_AGAIN}")
        lines = (
            _line(path, number, line.rstrip(b"\n")) for number, line in enumerate(io.BytesIO(content), 1)
        )
        return cls({line["key"]: line for line in lines})

    def encode(self) -> bytes:
        """Return the file's content: canonical JSON, a line an array, by key."""
        return b"".join(canonical_json(dict(self.arrays[key])) + b"\n" for key in sorted(self.arrays))

    def spec(self, key: str) -> bytes | None:
        """Return the content of an array's ``spec.json``."""
        line = self.arrays.get(key)
        return None if line is None else canonical_json(line["spec"])

    def names(self, folder: str) -> list[str]:
        """Return what a listing of one of the cache's folders would give."""
        if folder == "arrays":
            return list(self.arrays)
        if folder == "stimuli":
            return list({line["spec"]["stimuli"] for line in self.arrays.values()})
        key, _, inner = folder.removeprefix("arrays/").partition("/")
        if inner == "commits" and key in self.arrays:
            return [
                f"{shard}.json" for start, stop in self.arrays[key]["shards"] for shard in range(start, stop)
            ]
        return []


def index_line(
    key: str, spec: Mapping[str, Any], committed: Iterable[int], *, sealed: bool
) -> dict[str, Any]:
    """Return the line of an array; committed shards are told as ranges (first, behind the last)."""
    shards: list[list[int]] = []
    for shard in sorted(committed):
        if shards and shards[-1][1] == shard:
            shards[-1][1] += 1
        else:
            shards.append([shard, shard + 1])
    return {"format": FORMAT, "key": key, "spec": dict(spec), "sealed": sealed, "shards": shards}


def _line(path: str, number: int, line: bytes) -> dict[str, Any]:
    where = f"{path}, line {number},"
    if len(line) > LARGEST:
        raise CacheCorrupt(f"{where} is longer than the {LARGEST} bytes that it may have. {_AGAIN}")
    try:
        value = parse_json(where, line)
    except CacheCorrupt as error:
        raise CacheCorrupt(f"{where} is damaged. {_AGAIN}") from error
    require_format(where, value)
    if value.keys() != _FIELDS.keys() or any(type(value[name]) is not kind for name, kind in _FIELDS.items()):
        raise CacheCorrupt(f"{where} does not describe an array as `featpipe cache push` does. {_AGAIN}")
    if hashlib.sha256(canonical_json(value["spec"])).hexdigest() != value["key"]:
        raise CacheCorrupt(f"{where} names key {value['key'][:12]!r}, which its spec does not have. {_AGAIN}")
    if not HEX_DIGEST.fullmatch(str(value["spec"].get("stimuli"))) or not _are_shards(value["shards"]):
        raise CacheCorrupt(f"{where} has a stimulus set or shards that cannot be. {_AGAIN}")
    return value


def _are_shards(ranges: list[Any]) -> bool:
    """Whether ranges ascend without touching, and name no more shards than a list of them should have."""
    flat = [shard for pair in ranges if isinstance(pair, list) for shard in pair]
    numbers = len(flat) == 2 * len(ranges) and all(type(shard) is int for shard in flat)
    ascending = numbers and all(one < other for one, other in itertools.pairwise(flat))
    return ascending and (not flat or (flat[0] >= 0 and flat[-1] <= MOST_SHARDS))
