"""Looking at every byte of a cache, and saying which rows of which arrays are not what was written."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from featpipe.errors import CacheCorrupt, CacheReadError, FeatpipeError
from featpipe.store._array import CachedArray, array_folder
from featpipe.store._commits import COMMITS, commit_name
from featpipe.store._documents import LARGEST_STIMULI, read_bytes
from featpipe.store._reading import default_threads
from featpipe.store._seal import LARGEST_SEAL, SEAL, encode_seal
from featpipe.store._static import STATIC_NAMES, static_files
from featpipe.store._stimuli import FILE, load_stimuli, stimuli_folder
from featpipe.store.location import Location

_SHOWN = 20  # files that do not belong, by name

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Problem:
    """Something in a cache that is not what was written.

    Parameters
    ----------
    key : str
        Key of the array, or digest of the stimulus set.
    shard : int or None
        The shard concerned, None where it is the whole array or set.
    rows : (start, stop) or None
        Rows of that shard.
    file : str
        Path below the cache's folder.
    what : str
        What is wrong with it.
    """

    key: str
    shard: int | None
    rows: tuple[int, int] | None
    file: str
    what: str

    def __str__(self) -> str:
        rows = f", rows {self.rows[0]} to {self.rows[1] - 1}" if self.rows else ""
        shard = "" if self.shard is None else f", shard {self.shard}{rows}"
        return f"{self.key[:12]}{shard}: {self.file}: {self.what}"


def verify_stimuli(location: Location, digests: Iterable[str]) -> list[Problem]:
    """Check every byte of stimulus sets."""
    problems = []
    for digest in digests:
        try:
            load_stimuli(location, digest, thorough=True)
        except FeatpipeError as error:
            problems.append(Problem(digest, None, None, f"{stimuli_folder(digest)}/{FILE}", str(error)))
    return problems


def verify_arrays(
    location: Location,
    keys: Sequence[str],
    open_array: Callable[[str], CachedArray],
    *,
    sample: int | None = None,
    progress: Progress | None = None,
) -> list[Problem]:
    """Check every byte of arrays, or all but the rows beyond `sample` random shards of each.

    Parameters
    ----------
    location : Location
    keys : sequence of str
    open_array : callable (key) -> CachedArray
    sample : int, optional
        How many shards of each array to read; all by default.
    progress : callable (shards done, shards in all), optional
    """
    problems: list[Problem] = []
    tasks: list[_Task] = []
    for key in keys:
        try:
            array = open_array(key)
        except FeatpipeError as error:
            problems.append(Problem(key, None, None, array_folder(key), str(error)))
            continue
        found = _static_problems(array)
        problems += found
        # What every commit has to say again, unless it is known to be wrong.
        static: dict[str, str] = {}
        try:
            static = {} if found else _static_digests(array)
        except FileNotFoundError as error:
            problems.append(Problem(key, None, None, array.base, f"a file is gone: {error}"))
        tasks += [_Task(array, s, static) for s in _sampled(sorted(array.committed), sample)]
    threads = location.threads if location.remote else default_threads()
    with ThreadPoolExecutor(threads) as pool:
        for done, found in enumerate(pool.map(_Task.problems, tasks), 1):
            problems += found
            if progress is not None:
                progress(done, len(tasks))
    return problems


def _sampled(shards: list[int], sample: int | None) -> list[int]:
    return shards if sample is None else sorted(random.sample(shards, min(sample, len(shards))))


def _static_problems(array: CachedArray) -> list[Problem]:
    """Compare the files that never change with what the spec and the stimuli call for."""

    def problem(name: str, what: str) -> Problem:
        return Problem(array.key, None, None, f"{array.base}/{name}".rstrip("/"), what)

    found = []
    try:
        expected = static_files(array.spec, array.layout, array.manifest)
    except FeatpipeError as error:
        return [problem("", f"its stimulus set cannot be read: {error}"), *_by_commit(array, problem)]
    for name, content in expected.items():
        try:
            if read_bytes(array.location, f"{array.base}/{name}", largest=max(1, len(content))) != content:
                found.append(problem(name, "it is not what the spec and the stimulus set call for"))
        except (CacheCorrupt, CacheReadError) as error:
            found.append(problem(name, str(error)))
    strangers = set(array.location.names(f"{array.base}/{COMMITS}")) - {f"{s}.json" for s in array.committed}
    shown = heapq.nsmallest(_SHOWN, strangers)
    found += [problem(f"{COMMITS}/{name}", "it is no commit record") for name in shown]
    if more := len(strangers) - len(shown):
        found.append(problem(COMMITS, f"{more} more files are no commit records"))
    return found + [problem(SEAL, what) for what in _seal_problems(array)]


def _seal_problems(array: CachedArray) -> list[str]:
    """Compare the seal, where there is one, with the commit records that it repeats."""
    try:
        content = array.location.read(f"{array.base}/{SEAL}", LARGEST_SEAL)
    except FileNotFoundError:
        return []
    if array.missing:
        return ["it seals an array that lacks shards"]
    try:
        sound = content == encode_seal(array.key, array.commits())
    except CacheCorrupt:
        return []  # reported with its shard
    return [] if sound else ["it does not repeat the commit records"]


def _by_commit(array: CachedArray, problem: Callable[[str, str], Problem]) -> list[Problem]:
    """Compare the files that never change with what the first commit says of them."""
    committed = array.committed
    try:
        said = array.commit(min(committed))["static"] if committed else {}
    except FeatpipeError:
        return []  # reported with its shard
    found = []
    for name in sorted(said.keys() & set(STATIC_NAMES)):
        try:
            content = read_bytes(array.location, f"{array.base}/{name}", LARGEST_STIMULI)
        except (CacheCorrupt, CacheReadError) as error:
            found.append(problem(name, str(error)))
            continue
        if hashlib.sha256(content).hexdigest() != said[name]:
            found.append(problem(name, "it is not what its first shard was written beside"))
    return found


def _static_digests(array: CachedArray) -> dict[str, str]:
    return {name: array.location.digest(f"{array.base}/{name}") for name in STATIC_NAMES}


@dataclass(frozen=True, slots=True)
class _Task:
    """One committed shard to be checked."""

    array: CachedArray
    shard: int
    static: Mapping[str, str]

    def problems(self) -> list[Problem]:
        """Check the commit record, and the shard and static files that it describes."""
        place, location = self.array.shard_name(self.shard), self.array.location
        commit = commit_name(self.array.base, self.shard)
        try:
            record = self.array.commit(self.shard)
        except FeatpipeError as error:
            return [self._problem(commit, str(error))]
        try:
            size = location.size(place)
            if size != record["size"]:
                return [self._problem(place, f"it has {size} bytes, {record['size']} were written")]
            if location.digest(place) != record["sha256"]:
                return [self._problem(place, "its bytes are not those that were written")]
        except OSError as error:
            return [self._problem(place, f"it cannot be read: {error.strerror or error}")]
        if self.static and record["static"] != self.static:
            return [self._problem(commit, "the array's metadata, ids or digests are not those it was for")]
        return []

    def _problem(self, file: str, what: str) -> Problem:
        rows = self.array.layout.rows_of(self.shard)
        return Problem(self.array.key, self.shard, (rows.start, rows.stop), file, what)
