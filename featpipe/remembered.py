"""What was worked out before about files that have not changed since: a per-user table, never in a cache.

Hashing weights and tens of thousands of images again is what would make a run with nothing to do slow. A
file is known by path, device, inode, size and both its times; one that changed within two seconds of
being looked at is never remembered, because a second change in the same tick could not be seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs

_SETTLED_SECONDS = 2.0
_CHUNK = 1 << 20


def table_path() -> Path:
    """Return where the table lies: the user's cache folder, as the platform has it."""
    return platformdirs.user_cache_path("featpipe") / "remembered.sqlite"


class _FileIdentity(NamedTuple):
    """What identifies the present content of a file without reading it."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class _FileIdentities:
    """Identities of many files, of which the folders are resolved once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def of(self, path: str | os.PathLike[str]) -> _FileIdentity:
        path, status = self._resolved(os.fspath(path))
        return _FileIdentity(
            path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )

    def _resolved(self, path: str) -> tuple[str, os.stat_result]:
        """Return the path without links, and the status of the file there."""
        folder, name = os.path.split(path)
        if name in ("", os.curdir, os.pardir) or stat.S_ISLNK((status := os.lstat(path)).st_mode):
            real = os.path.realpath(path)
            return real, os.stat(real)
        if folder not in self._folders:
            self._folders[folder] = os.path.join(os.path.realpath(folder), "")
        return self._folders[folder] + name, status


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def remembered(
    question: str,
    files: Sequence[str | os.PathLike[str]],
    work_out: Callable[[], str],
    *,
    details: Any = None,
    rehash: bool = False,
) -> str:
    """Return the answer to a question about some files, worked out anew only if one of them changed.

    Parameters
    ----------
    question : str
        What is asked, such as ``"file-sha256"``.
    files : sequence of path
        The files that the answer depends on.
    work_out : callable
        Returns the answer as text.
    details : JSON value, optional
        Whatever else the answer depends on.
    rehash : bool
        Ignore what is remembered; the new answer is remembered all the same.
    """
    return remembered_many(question, [(files, details)], lambda _: work_out(), rehash=rehash)[0]


def remembered_many(
    question: str,
    items: Iterable[tuple[Sequence[str | os.PathLike[str]], Any]],
    work_out: Callable[[int], str],
    *,
    rehash: bool = False,
) -> list[str]:
    """Return the answers for many (files, details) items with one look into the table.

    ``work_out`` gets the position of an item. See `remembered`.
    """
    identities = _FileIdentities()
    entries = [_entry(question, list(map(identities.of, files)), details) for files, details in items]
    with closing(_connect()) as table:
        known = {} if rehash else _known(table, [key for key, _ in entries])
        answers: list[str] = []
        fresh: list[tuple[str, str]] = []
        for position, (key, settled) in enumerate(entries):
            answer = known.get(key)
            if answer is None:
                answer = work_out(position)
                if settled:
                    fresh.append((key, answer))
            answers.append(answer)
        _remember(table, fresh)
    return answers


def _known(table: sqlite3.Connection, keys: Sequence[str]) -> dict[str, str]:
    """Look keys up; a table that is damaged or on a failing disk knows nothing, which costs only time."""
    try:
        return _look_up(table, keys)
    except sqlite3.Error:
        return {}


def _remember(table: sqlite3.Connection, fresh: Sequence[tuple[str, str]]) -> None:
    """Write answers down, unless the disk is full or refuses: then they are worked out again next time."""
    with suppress(sqlite3.Error), table:
        table.executemany("INSERT OR REPLACE INTO remembered VALUES (?, ?)", fresh)


def _entry(question: str, files: Sequence[_FileIdentity], details: Any) -> tuple[str, bool]:
    """Return the key of an answer, and whether its files have been unchanged for long enough."""
    newest = max((max(file.mtime_ns, file.ctime_ns) for file in files), default=0)
    settled = time.time_ns() - newest > _SETTLED_SECONDS * 1e9
    within = "" if details is None else json.dumps(details, sort_keys=True)
    text = "\0".join([question, *(str(value) for file in files for value in file), within])
    return hashlib.sha256(os.fsencode(text)).hexdigest(), settled


def _connect() -> sqlite3.Connection:
    """Open the table; where it cannot be written, as on a read-only home, one in memory."""
    path = table_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = sqlite3.connect(path, timeout=30)
        table.execute("PRAGMA journal_mode=WAL")
        table.execute("PRAGMA synchronous=NORMAL")  # a power cut costs some answers, never gives wrong ones
        table.execute(
            "CREATE TABLE IF NOT EXISTS remembered (key TEXT PRIMARY KEY, answer TEXT) WITHOUT ROWID"
        )
    except (OSError, sqlite3.Error):
        table = sqlite3.connect(":memory:")
        table.execute("CREATE TABLE remembered (key TEXT PRIMARY KEY, answer TEXT) WITHOUT ROWID")
    return table


def _look_up(table: sqlite3.Connection, keys: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for start in range(0, len(keys), 500):  # below SQLite's limit of variables
        part = keys[start : start + 500]
        marks = ",".join("?" * len(part))
        found.update(table.execute(f"SELECT key, answer FROM remembered WHERE key IN ({marks})", part))
    return found
