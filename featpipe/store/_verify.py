"""Looking at every byte of a cache, and saying which rows of which arrays are not what was written."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from featpipe.errors import CacheCorrupt, CacheReadError, FeatpipeError
from featpipe.remembered import file_digest
from featpipe.store._array import CachedArray
from featpipe.store._commits import COMMITS, commit_path
from featpipe.store._documents import LARGEST_STIMULI, read_bytes
from featpipe.store._reading import default_threads
from featpipe.store._refused import reading
from featpipe.store._static import STATIC_NAMES, static_files
from featpipe.store._stimuli import FILE, load_stimuli

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


def verify_stimuli(root: Path, folders: Iterable[Path]) -> list[Problem]:
    """Check every byte of stimulus sets."""
    problems = []
    for folder in folders:
        try:
            load_stimuli(folder, thorough=True)
        except FeatpipeError as error:
            file = str((folder / FILE).relative_to(root))
            problems.append(Problem(folder.name, None, None, file, str(error)))
    return problems


def verify_arrays(
    root: Path,
    folders: Sequence[Path],
    open_array: Callable[[str], CachedArray],
    *,
    sample: int | None = None,
    progress: Progress | None = None,
) -> list[Problem]:
    """Check every byte of arrays, or all but the rows beyond `sample` random shards of each.

    Parameters
    ----------
    root : Path
        The cache's folder.
    folders : sequence of Path
        ``CACHE/arrays/KEY`` each.
    open_array : callable (key) -> CachedArray
    sample : int, optional
        How many shards of each array to read; all by default.
    progress : callable (shards done, shards in all), optional
    """
    problems: list[Problem] = []
    tasks: list[_Task] = []
    for folder in folders:
        try:
            array = open_array(folder.name)
        except FeatpipeError as error:
            file = str(folder.relative_to(root))
            problems.append(Problem(folder.name, None, None, file, str(error)))
            continue
        found = _static_problems(root, array)
        problems += found
        # What every commit has to say again, unless it is known to be wrong.
        static = {} if found else _static_digests(array.folder)
        tasks += [_Task(root, array, s, static) for s in _sampled(sorted(array.committed), sample)]
    with ThreadPoolExecutor(default_threads()) as pool:
        for done, found in enumerate(pool.map(_Task.problems, tasks), 1):
            problems += found
            if progress is not None:
                progress(done, len(tasks))
    return problems


def _sampled(shards: list[int], sample: int | None) -> list[int]:
    return shards if sample is None else sorted(random.sample(shards, min(sample, len(shards))))


def _static_problems(root: Path, array: CachedArray) -> list[Problem]:
    """Compare the files that never change with what the spec and the stimuli call for."""

    def problem(name: str, what: str) -> Problem:
        return Problem(array.key, None, None, str((array.folder / name).relative_to(root)), what)

    found = []
    try:
        expected = static_files(array.spec, array.layout, array.manifest)
    except FeatpipeError as error:
        return [problem("", f"its stimulus set cannot be read: {error}"), *_by_commit(array, problem)]
    for name, content in expected.items():
        try:
            if read_bytes(array.folder / name, largest=max(1, len(content))) != content:
                found.append(problem(name, "it is not what the spec and the stimulus set call for"))
        except (CacheCorrupt, CacheReadError) as error:
            found.append(problem(name, str(error)))
    strangers = set(_files_below(array.folder / COMMITS)) - {f"{s}.json" for s in array.committed}
    return found + [problem(f"{COMMITS}/{name}", "it is no commit record") for name in sorted(strangers)]


def _files_below(folder: Path) -> Iterator[str]:
    try:
        with reading(folder):
            names = os.listdir(folder)
    except FileNotFoundError:
        return
    yield from names


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
            content = read_bytes(array.folder / name, LARGEST_STIMULI)
        except (CacheCorrupt, CacheReadError) as error:
            found.append(problem(name, str(error)))
            continue
        if hashlib.sha256(content).hexdigest() != said[name]:
            found.append(problem(name, "it is not what its first shard was written beside"))
    return found


def _static_digests(folder: Path) -> dict[str, str]:
    with reading(folder):
        return {name: file_digest(folder / name) for name in STATIC_NAMES}


@dataclass(frozen=True, slots=True)
class _Task:
    """One committed shard to be checked."""

    root: Path
    array: CachedArray
    shard: int
    static: Mapping[str, str]

    def problems(self) -> list[Problem]:
        """Check the commit record, and the shard and static files that it describes."""
        path = self.array.shard_path(self.shard)
        commit = commit_path(self.array.folder, self.shard)
        try:
            record = self.array.commit(self.shard)
        except FeatpipeError as error:
            return [self._problem(commit, str(error))]
        try:
            size = path.stat().st_size
            if size != record["size"]:
                return [self._problem(path, f"it has {size} bytes, {record['size']} were written")]
            if file_digest(path) != record["sha256"]:
                return [self._problem(path, "its bytes are not those that were written")]
        except OSError as error:
            return [self._problem(path, f"it cannot be read: {error.strerror or error}")]
        if self.static and record["static"] != self.static:
            return [self._problem(commit, "the array's metadata, ids or digests are not those it was for")]
        return []

    def _problem(self, file: Path, what: str) -> Problem:
        rows = self.array.layout.rows_of(self.shard)
        place = str(file.relative_to(self.root))
        return Problem(self.array.key, self.shard, (rows.start, rows.stop), place, what)
