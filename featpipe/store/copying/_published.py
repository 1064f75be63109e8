"""The list of what a published cache holds, made again after each push; two pushes at once lose nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from featpipe.errors import CacheCorrupt, CacheWriteError, RequestError
from featpipe.spec import HEX_DIGEST
from featpipe.store._array import ARRAYS, array_folder, read_spec
from featpipe.store._commits import committed_shards
from featpipe.store._index import INDEX, LARGEST_INDEX, CacheIndex, index_line
from featpipe.store._layout import MOST_SHARDS
from featpipe.store._seal import SEAL
from featpipe.store._static import SPEC
from featpipe.store.location import Location

_ATTEMPTS = 30
_LONGEST_WAIT = 2.0  # seconds
_Line = Mapping[str, Any]


def read_index(location: Location) -> CacheIndex | None:
    """Return what ``index.jsonl`` says; None where there is none, or a damaged one, which can be made again."""
    try:
        return CacheIndex.parse(f"{location.url}/{INDEX}", location.read(INDEX, LARGEST_INDEX))
    except (FileNotFoundError, CacheCorrupt):
        return None


def publish_index(location: Location, changed: Collection[str] = ()) -> bool:
    """Write ``index.jsonl`` from the arrays that are there; tell whether it changed.

    It is replaced only if it is still the one that was read, and otherwise made again.

    Parameters
    ----------
    location : Location
    changed : collection of str
        Keys whose line may be out of date though it is there and says that the array is sealed.
    """
    for attempt in range(_ATTEMPTS):
        version = location.version(INDEX)  # first: what is read after it may be newer, and is then refused
        known = None if version is None else read_index(location)
        made = _made(location, {} if known is None else known.arrays, changed)
        if known is not None and made == dict(known.arrays):
            return False
        if location.replace_if(INDEX, CacheIndex(made).encode(), version):
            return True
        time.sleep(random.uniform(0, min(_LONGEST_WAIT, 0.05 * 2**attempt)))
    raise CacheWriteError(
        f"{location.url}/{INDEX} was replaced by others each of {_ATTEMPTS} times that it was to be written. The "
        "arrays are there; run the same command again to list them."
    )


def _made(location: Location, known: Mapping[str, _Line], changed: Collection[str]) -> dict[str, _Line]:
    there = [key for key in location.names(ARRAYS) if HEX_DIGEST.fullmatch(key)]
    kept = {key: known[key] for key in there if key in known and known[key]["sealed"] and key not in changed}
    fresh = [key for key in there if key not in kept]
    with ThreadPoolExecutor(location.threads) as pool:
        lines = pool.map(lambda key: _line(location, key), fresh)
        return kept | {key: line for key, line in zip(fresh, lines, strict=True) if line is not None}


def _line(location: Location, key: str) -> _Line | None:
    """Return the line of an array; None for one that is not whole yet, or damaged: readers would refuse the list."""
    folder = array_folder(key)
    if not location.has_array(folder):
        return None
    try:
        spec, stimuli = read_spec(location, f"{folder}/{SPEC}", key)
    except (CacheCorrupt, RequestError):
        return None
    shards = committed_shards(location, folder, MOST_SHARDS)
    return index_line(key, spec.document(stimuli), shards, sealed=location.exists(f"{folder}/{SEAL}"))
