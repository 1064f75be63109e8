"""Looking at every byte of a cache, and saying which rows of which arrays are not what was written.

Sets, arrays and shards are looked at one after the other on a few threads, and nothing is kept of them but
what was found, so that memory does not grow with the number of rows.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from featpipe.errors import FeatpipeError, FeaturesNotCached
from featpipe.store._commits import COMMITS, commit_path
from featpipe.store._evidence import Evidence, evidence_of, reason, sound_commit, spec_of
from featpipe.store._layout import ArrayLayout
from featpipe.store._plain_files import FOLDER, entries_of, size_and_digest
from featpipe.store._reading import default_threads
from featpipe.store._set_check import SetFacts, check_set
from featpipe.store._static import (
    DIGESTS_CHUNK,
    FEATURES_METADATA,
    GROUP_METADATA,
    IDS_CHUNK,
    SPEC,
    STATIC_NAMES,
    metadata_files,
)
from featpipe.store._stimuli import FILE as STIMULI_FILE
from featpipe.store._strangers import look_around, shard_of

Progress = Callable[[int, int], None]
DIGEST = re.compile(r"[0-9a-f]{64}")
_LARGEST_STATIC = 1 << 32
_AHEAD = 16  # what is handed to the threads at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


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


@dataclass(frozen=True, slots=True)
class Scope:
    """How much of a cache is looked at.

    Parameters
    ----------
    keys : tuple of str or None
        Arrays, with their stimulus sets; None is all arrays and sets.
    sets : tuple of str
        Stimulus sets besides those.
    sample : int or None
        How many shards of each array are read; None is all.
    seed : int or None
        Of the sample; None draws another one each time.
    only : mapping of str to collection of int, optional
        The shards of an array that are read, whatever the sample; an array that is not named is read as usual.
    """

    keys: tuple[str, ...] | None = None
    sets: tuple[str, ...] = ()
    sample: int | None = None
    seed: int | None = None
    only: Mapping[str, Collection[int]] = field(default_factory=dict)

    def chosen(self, key: str, shards: Collection[int]) -> list[int]:
        """Return which of an array's shards are read."""
        if key in self.only:
            return sorted(set(shards) & set(self.only[key]))
        if self.sample is None or self.sample >= len(shards):
            return sorted(shards)
        drawn = random.Random(None if self.seed is None else f"{self.seed} {key}")  # the same for each array
        return sorted(drawn.sample(sorted(shards), self.sample))


def verify_cache(
    root: Path, scope: Scope | None = None, *, progress: Progress | None = None
) -> list[Problem]:
    """Compare every byte in scope with what was written; shards that are missing are no problem.

    Parameters
    ----------
    root : Path
        The cache's folder.
    scope : Scope, optional
        Everything by default.
    progress : callable (shards done, shards in all), optional

    Raises
    ------
    FeaturesNotCached
        An array in scope is not there.
    """
    scope = scope or Scope()
    keys = _listed(root, "arrays") if scope.keys is None else list(scope.keys)
    for key in keys:
        if not DIGEST.fullmatch(key) or not os.path.lexists(root / "arrays" / key):
            raise FeaturesNotCached(
                f"There is no array {key!r} in {root}. `featpipe cache ls` lists the keys."
            )
    with ThreadPoolExecutor(default_threads()) as pool:
        check = _Check(root, scope, pool, progress)
        if scope.keys is None:
            check.problems += [*_strays(root, "arrays"), *_strays(root, "stimuli")]
        check.sets(keys)
        check.arrays(keys)
    place = {key: number for number, key in enumerate(keys)}
    return sorted(check.problems, key=lambda p: (place.get(p.key, -1), -1 if p.shard is None else p.shard))


def _listed(root: Path, folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(root / folder) if DIGEST.fullmatch(name))
    except FileNotFoundError:
        return []


def _strays(root: Path, place: str) -> list[Problem]:
    """Report what is no folder of an array or a stimulus set."""
    try:
        entries = list(entries_of(root / place))
    except FileNotFoundError:
        return []
    except OSError as error:
        return [Problem(place, None, None, place, f"it cannot be listed: {error.strerror or error}")]
    wrong = [entry for entry in entries if entry.kind != FOLDER or not DIGEST.fullmatch(entry.name)]
    what = "it is {}, where the format has folders that are named by a digest"
    return [Problem(e.name, None, None, f"{place}/{e.name}", what.format(e.kind)) for e in wrong]


class _Check:
    """One verification under way.

    Parameters
    ----------
    root, scope, progress
        See `verify_cache`.
    pool : ThreadPoolExecutor
    """

    def __init__(self, root: Path, scope: Scope, pool: ThreadPoolExecutor, progress: Progress | None) -> None:
        self._root, self._scope, self._pool = root, scope, pool
        self._progress = progress or (lambda done, total: None)
        self._facts: dict[str, SetFacts] = {}
        self.problems: list[Problem] = []

    def sets(self, keys: Iterable[str]) -> None:
        """Check the stimulus sets in scope, and those that the arrays name."""
        named = {digest for key in keys if (digest := spec_of(self._root / "arrays" / key)[1])}
        every = _listed(self._root, "stimuli") if self._scope.keys is None else self._scope.sets
        digests = sorted(named | set(every))
        for digest, (facts, found) in zip(digests, self._each(self._set, digests), strict=True):
            self.problems += found
            if facts is not None:
                self._facts[digest] = facts

    def _set(self, digest: str) -> tuple[SetFacts | None, list[Problem]]:
        folder = f"stimuli/{digest}"

        def problem(name: str, what: str) -> Problem:
            return Problem(digest, None, None, f"{folder}/{name}", what)

        found = []
        try:
            entries = list(entries_of(self._root / folder))
            found = [
                problem(entry.name, f"it is {entry.kind} that the format does not name")
                for entry in entries
                if entry.name != STIMULI_FILE
            ]
            return check_set(self._root / folder / STIMULI_FILE, digest), found
        except (FeatpipeError, OSError) as error:
            return None, [*found, problem(STIMULI_FILE, reason(error))]

    def arrays(self, keys: Iterable[str]) -> None:
        """Check arrays and their shards."""
        keys = list(keys)
        counts = (len(_commit_names(self._root / "arrays" / key)) for key in keys)
        most = self._scope.sample
        total = sum(count if most is None else min(count, most) for count in counts)
        for done, found in enumerate(self._each(_Shard.problems, self._shards(keys)), 1):
            self.problems += found
            self._progress(done, max(total, done))

    def _shards(self, keys: Iterable[str]) -> Iterator[_Shard]:
        """Yield the shards that are read, array by array, once what never changes has been looked at."""
        for look in self._each(self._array, keys):
            self.problems += look.problems
            yield from look.shards

    def _array(self, key: str) -> _Look:
        folder = self._root / "arrays" / key
        evidence = evidence_of(folder)
        facts = self._facts.get(evidence.stimuli_digest)
        around = look_around(folder, evidence.layout)
        wrong = _static_problems(folder, evidence, facts)
        found = [
            _problem_at(key, name, what, evidence.layout)
            for name, what in (wrong | dict(around.strangers)).items()
        ]
        if evidence.layout is None:
            return _Look(found, [])
        # What every commit has to say again, where that is known.
        static = _expected(evidence, facts) if evidence.spec and facts else {}
        digests = {name: sha256 for name, (_, sha256) in static.items()}
        shards = self._scope.chosen(key, around.committed)
        return _Look(found, [_Shard(self._root, folder, evidence.layout, s, digests) for s in shards])

    def _each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield ``work(item)`` in order, a few items ahead on the threads, so that no more are ever held."""
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(self._pool.submit(work, item))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _commit_names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder / COMMITS)
    except OSError:
        return []  # reported where the folder is listed


def _problem_at(key: str, name: str, what: str, layout: ArrayLayout | None) -> Problem:
    """Return the problem of a path below an array's folder, put down to its shard where it has one."""
    shard = shard_of(name, layout)
    span = None if shard is None or layout is None else layout.rows_of(shard)
    rows = None if span is None else (span.start, span.stop)
    return Problem(key, shard, rows, f"arrays/{key}/{name}".rstrip("/"), what)


def _static_problems(folder: Path, evidence: Evidence, facts: SetFacts | None) -> dict[str, str]:
    """Compare the files that never change with what the spec, the stimuli and the commits call for."""
    wrong = {SPEC: evidence.spec_problem} if evidence.spec_problem else {}
    if evidence.layout is None:
        wrong |= dict.fromkeys(
            (FEATURES_METADATA, GROUP_METADATA), "it does not describe features as we store them"
        )
    expected = _expected(evidence, facts)
    for name in STATIC_NAMES:
        if name in wrong:
            continue
        size, sha256 = expected.get(name, (None, None))
        try:
            found = size_and_digest(folder / name, _LARGEST_STATIC if size is None else size)
        except (FeatpipeError, OSError) as error:
            wrong[name] = reason(error)
            continue
        if sha256 is not None and (found[1] != sha256 or size not in (None, found[0])):
            wrong[name] = "it is not what the spec and the stimulus set call for"
    return wrong


def _expected(evidence: Evidence, facts: SetFacts | None) -> dict[str, tuple[int | None, str]]:
    """Return size and SHA-256 of each static file, as far as they are known."""
    expected: dict[str, tuple[int | None, str]] = {
        name: (None, sha256) for name, sha256 in evidence.static.items() if name in STATIC_NAMES
    }
    layout = evidence.layout
    if evidence.spec is not None and layout is not None:
        n_stimuli = layout.n_stimuli if facts is None else facts.n_stimuli
        files = metadata_files(evidence.spec, layout, evidence.stimuli_digest, n_stimuli)
        expected |= {name: (len(text), hashlib.sha256(text).hexdigest()) for name, text in files.items()}
    if facts is not None:
        expected[IDS_CHUNK] = facts.ids_size, facts.ids_sha256
        expected[DIGESTS_CHUNK] = 32 * facts.n_stimuli, facts.digests_sha256
    return expected


@dataclass(frozen=True, slots=True)
class _Look:
    """What was found of an array, and the shards of it that are still to be read."""

    problems: list[Problem]
    shards: list[_Shard]


@dataclass(frozen=True, slots=True)
class _Shard:
    """One committed shard to be checked; `static` is what its commit must say, empty where that is not known."""

    root: Path
    folder: Path
    layout: ArrayLayout
    number: int
    static: Mapping[str, str]

    def problems(self) -> list[Problem]:
        """Check the commit record, and the shard and static files that it describes."""
        path = self.folder / self.layout.shard_path(self.number)
        commit = commit_path(self.folder, self.number)
        try:
            record = sound_commit(self.folder, self.number, self.layout)
        except (FeatpipeError, OSError) as error:
            return [self._problem(commit, reason(error))]
        try:
            size, sha256 = size_and_digest(path, largest=record["size"])
        except (FeatpipeError, OSError) as error:
            return [self._problem(path, reason(error))]
        if size != record["size"]:
            return [self._problem(path, f"it has {size} bytes, {record['size']} were written")]
        if sha256 != record["sha256"]:
            return [self._problem(path, "its bytes are not those that were written")]
        if self.static and record["static"] != self.static:
            return [self._problem(commit, "the array's metadata, ids or digests are not those it was for")]
        return []

    def _problem(self, file: Path, what: str) -> Problem:
        rows = self.layout.rows_of(self.number)
        place = str(file.relative_to(self.root))
        return Problem(self.folder.name, self.number, (rows.start, rows.stop), place, what)
