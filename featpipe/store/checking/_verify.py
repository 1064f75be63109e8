"""Looking at every byte of a cache, and saying which rows of which arrays are not what was written.

Sets, arrays and shards are looked at one after the other on a few threads, and nothing is kept of them but
what was found, so that memory does not grow with the number of rows.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from featpipe.errors import CacheReadError, FeaturesNotCached
from featpipe.spec import HEX_DIGEST
from featpipe.store._array import ARRAYS, array_folder
from featpipe.store._commits import COMMITS, commit_name
from featpipe.store._layout import ArrayLayout
from featpipe.store._reading import default_threads
from featpipe.store._seal import SEAL
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
from featpipe.store._stimuli import STIMULI, stimuli_folder
from featpipe.store.checking._evidence import Evidence, evidence_of, key_of, sound_commit, spec_of
from featpipe.store.checking._plain_files import DAMAGE, FILE, FOLDER, entries_of, reason, size_and_digest
from featpipe.store.checking._seal_check import SealCheck
from featpipe.store.checking._set_check import SetFacts, check_set
from featpipe.store.checking._strangers import Found, look_around, shard_of
from featpipe.store.location import Folder, Location

Progress = Callable[[int, int], None]
_LARGEST_STATIC = 1 << 32
NOT_REPEATED = "it does not repeat the commit records"
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
    location: Location, scope: Scope | None = None, *, progress: Progress | None = None
) -> list[Problem]:
    """Compare every byte in scope with what was written; shards that are missing are no problem.

    Parameters
    ----------
    location : Location
        The cache itself, not a mirror of it.
    scope : Scope, optional
        Everything by default.
    progress : callable (shards done, shards in all), optional

    Raises
    ------
    FeaturesNotCached
        An array in scope is not there.
    CacheUnreachable
        The cache does not answer, so that nothing can be said of it.
    """
    scope = scope or Scope()
    there = _listed(location, ARRAYS)
    keys = there if scope.keys is None else list(scope.keys)
    if absent := set(keys).difference(there):
        raise FeaturesNotCached(
            f"There is no array {min(absent)!r} in {location.url}. `featpipe cache ls` lists the keys."
        )
    with ThreadPoolExecutor(location.threads if location.remote else default_threads()) as pool:
        check = _Check(location, scope, pool, progress)
        if scope.keys is None:
            check.problems += [*_strays(location, ARRAYS), *_strays(location, STIMULI)]
        check.sets(keys)
        check.arrays(keys)
    place = {key: number for number, key in enumerate(keys)}
    once = dict.fromkeys(check.problems)  # several shards may tell of one seal
    return sorted(once, key=lambda p: (place.get(p.key, -1), -1 if p.shard is None else p.shard))


def _listed(location: Location, folder: str) -> list[str]:
    return sorted(name for name in location.names(folder) if HEX_DIGEST.fullmatch(name))


def _strays(location: Location, place: str) -> list[Problem]:
    """Report what is no folder of an array or a stimulus set."""
    if isinstance(location, Folder):
        try:
            entries = [(entry.name, entry.kind) for entry in entries_of(location.path(place))]
        except FileNotFoundError:
            return []
        except DAMAGE as error:
            return [Problem(place, None, None, place, f"it cannot be listed: {reason(error)}")]
    else:
        entries = [(name, FOLDER if HEX_DIGEST.fullmatch(name) else FILE) for name in location.names(place)]
    wrong = [(name, kind) for name, kind in entries if kind != FOLDER or not HEX_DIGEST.fullmatch(name)]
    what = "it is {}, where the format has folders that are named by a digest"
    return [Problem(name, None, None, f"{place}/{name}", what.format(kind)) for name, kind in wrong]


class _Check:
    """One verification under way.

    Parameters
    ----------
    location, scope, progress
        See `verify_cache`.
    pool : ThreadPoolExecutor
    """

    def __init__(
        self, location: Location, scope: Scope, pool: ThreadPoolExecutor, progress: Progress | None
    ) -> None:
        self._location, self._scope, self._pool = location, scope, pool
        self._progress = progress or (lambda done, total: None)
        self._facts: dict[str, SetFacts] = {}
        self.problems: list[Problem] = []

    def sets(self, keys: Iterable[str]) -> None:
        """Check the stimulus sets in scope, and those that the arrays name."""
        named = {digest for digest in self._each(self._set_of, keys) if digest}
        every = _listed(self._location, STIMULI) if self._scope.keys is None else self._scope.sets
        digests = sorted(named | set(every))
        for digest, (facts, found) in zip(digests, self._each(self._set, digests), strict=True):
            self.problems += found
            if facts is not None:
                self._facts[digest] = facts

    def _set_of(self, key: str) -> str:
        _, digest, error = spec_of(self._location, array_folder(key))
        if isinstance(
            error, CacheReadError
        ):  # even if it can be read later: the set may not have been looked at
            self.problems.append(_problem_at(key, SPEC, reason(error), None))
        return digest

    def _set(self, digest: str) -> tuple[SetFacts | None, list[Problem]]:
        folder = stimuli_folder(digest)

        def problem(name: str, what: str) -> Problem:
            return Problem(digest, None, None, f"{folder}/{name}", what)

        found = []
        try:
            found = [
                problem(name, f"it is {kind} that the format does not name")
                for name, kind in _beside(self._location, folder)
            ]
            return check_set(self._location, f"{folder}/{STIMULI_FILE}", digest), found
        except DAMAGE as error:
            return None, [*found, problem(STIMULI_FILE, reason(error))]

    def arrays(self, keys: Iterable[str]) -> None:
        """Check arrays and their shards."""
        keys = list(keys)
        most = self._scope.sample
        counts = self._each(self._count, keys)
        total = sum(count if most is None else min(count, most) for count in counts)
        for done, found in enumerate(self._each(_Shard.problems, self._shards(keys)), 1):
            self.problems += found
            self._progress(done, max(total, done))

    def _count(self, key: str) -> int:
        try:
            return len(self._location.names(f"{array_folder(key)}/{COMMITS}"))
        except CacheReadError as error:
            self.problems.append(_problem_at(key, COMMITS, f"it cannot be listed: {reason(error)}", None))
            return 0

    def _shards(self, keys: Iterable[str]) -> Iterator[_Shard]:
        """Yield the shards that are read, array by array, once what never changes has been looked at."""
        for look in self._each(self._array, keys):
            self.problems += look.problems
            yield from look.shards

    def _array(self, key: str) -> _Look:
        location, base = self._location, array_folder(key)
        evidence = evidence_of(location, base)
        layout, facts = evidence.layout, self._facts.get(evidence.stimuli_digest)
        seal = SealCheck.read(location, base)  # first: where there is one, all commits are older
        around = look_around(location, base, layout)
        if _is_unborn(location, base, evidence, around):
            return _Look([], [])
        seal = seal.checked(location, base, layout, around.committed)
        wrong = dict(evidence.unread) | _static_problems(location, base, evidence, facts)
        wrong |= seal.problems | around.told()
        found = [_problem_at(key, name, what, layout) for name, what in wrong.items()]
        if layout is None:
            return _Look(found, [])
        # What every commit has to say again, where that is known.
        static = _expected(evidence, facts) if evidence.spec and facts else {}
        digests = {name: sha256 for name, (_, sha256) in static.items()}
        shards = self._scope.chosen(key, around.committed)
        return _Look(found, [_Shard(location, base, layout, s, digests, seal.checksum_of(s)) for s in shards])

    def _each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield ``work(item)`` in order, a few items ahead on the threads, so that no more are ever held."""
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(self._pool.submit(work, item))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _beside(location: Location, folder: str) -> Iterator[tuple[str, str]]:
    """Yield name and kind of what lies in the folder of a stimulus set beside its file."""
    if isinstance(location, Folder):
        found = [(entry.name, entry.kind) for entry in entries_of(location.path(folder))]
    else:
        found = [(name, FILE) for name in location.files(folder)]
    return (one for one in found if one[0] != STIMULI_FILE)


def _is_unborn(location: Location, base: str, evidence: Evidence, around: Found) -> bool:
    """Whether an array appears just now, file by file, or its creator was killed before it counted."""
    nothing = evidence.spec is None and not around.committed
    return location.remote and nothing and not location.has_array(base)


def _problem_at(key: str, name: str, what: str, layout: ArrayLayout | None) -> Problem:
    """Return the problem of a path below an array's folder, put down to its shard where it has one."""
    shard = shard_of(name, layout)
    span = None if shard is None or layout is None else layout.rows_of(shard)
    rows = None if span is None else (span.start, span.stop)
    return Problem(key, shard, rows, f"{array_folder(key)}/{name}".rstrip("/"), what)


def _static_problems(
    location: Location, base: str, evidence: Evidence, facts: SetFacts | None
) -> dict[str, str]:
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
            found = size_and_digest(location, f"{base}/{name}", _LARGEST_STATIC if size is None else size)
        except DAMAGE as error:
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
    """One committed shard to be checked.

    `static` is what its commit must say, `sealed` the commit's own checksum; each is empty where that is not known.
    """

    location: Location
    base: str
    layout: ArrayLayout
    number: int
    static: Mapping[str, str]
    sealed: str

    def problems(self) -> list[Problem]:
        """Check the commit record, and the shard, static files and seal that go with it."""
        commit = commit_name(self.base, self.number)
        try:
            record = sound_commit(self.location, self.base, self.number, self.layout)
        except DAMAGE as error:
            return [self._problem(commit, reason(error))]
        seal = Problem(key_of(self.base), None, None, f"{self.base}/{SEAL}", NOT_REPEATED)
        found = [] if self.sealed in ("", record["checksum"]) else [seal]
        place = f"{self.base}/{self.layout.shard_path(self.number)}"
        if what := self._wrong_with(place, record):
            found.append(self._problem(place, what))
        elif self.static and record["static"] != self.static:
            what = "the array's metadata, ids or digests are not those it was for"
            found.append(self._problem(commit, what))
        return found

    def _wrong_with(self, place: str, record: Mapping[str, Any]) -> str:
        try:
            size, sha256 = size_and_digest(self.location, place, largest=record["size"])
        except DAMAGE as error:
            return reason(error)
        if size != record["size"]:
            return f"it has {size} bytes, {record['size']} were written"
        return "" if sha256 == record["sha256"] else "its bytes are not those that were written"

    def _problem(self, file: str, what: str) -> Problem:
        rows = self.layout.rows_of(self.number)
        return Problem(key_of(self.base), self.number, (rows.start, rows.stop), file, what)
