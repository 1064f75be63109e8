"""A folder of files that are known by their SHA-256, the least recently used dropped beyond a limit of bytes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featpipe.errors import CacheCorrupt
from featpipe.remembered import file_digest
from featpipe.spec import HEX_DIGEST
from featpipe.store.location._folder import OpenFile
from featpipe.store.location._location import StoredFile

_LEFT = 3600.0  # seconds after which a file that is still being written was left by a process that was killed
_SCANS = 16  # a process takes this share of the limit between two looks at what is there


class Copies:
    """Verified copies, shared by processes: a file appears whole under its digest, and is never changed.

    Parameters
    ----------
    folder : Path
    limit : int
        Bytes.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._room = 0  # bytes that may be added before the folder is looked through again
        self._lock = threading.Lock()
        self._fetching: dict[str, threading.Lock] = {}

    def holds(self, size: int, sha256: str) -> bool:
        """Whether there is a copy."""
        try:
            return os.stat(self._path(sha256)).st_size == size
        except OSError:
            return False

    def open(self, size: int, sha256: str) -> StoredFile | None:
        """Open a copy, and count it as used now; None where there is none."""
        path = self._path(sha256)
        try:
            with suppress(PermissionError):  # of another user's mirror: then it is not known as used
                os.utime(path)
            file = OpenFile(str(path))
        except OSError:
            return None
        if file.size == size:
            return file
        file.__exit__()
        return None

    def fetch(self, size: int, sha256: str, parts: Iterator[bytes | memoryview], name: str) -> StoredFile:
        """Copy a file that is not there yet, and open the copy; an open file outlives its eviction.

        `parts` are its bytes from start to end, and are asked for only where there is no copy.

        Raises
        ------
        CacheCorrupt
            The source does not have the bytes that were committed.
        OSError
            The folder cannot be written.
        """
        with self._lock:
            fetching = self._fetching.setdefault(sha256, threading.Lock())
        with fetching:  # a second thread waits for the first one's copy
            if (there := self.open(size, sha256)) is not None:
                return there
            with self._part() as part:
                self._reserve(part, size)
                _copy(part, size, sha256, parts, name)
                file = OpenFile(str(part))
                place = self._path(sha256)
                place.parent.mkdir(parents=True, exist_ok=True)
                with self._lock:  # whoever looks for room counts it once
                    os.replace(part, place)
                return file

    def keep(self, path: Path, content: bytes) -> None:
        """Write a small file, whole, in place of one that may be there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._part() as part:
            part.write_bytes(content)
            os.replace(part, path)

    def drop_damaged(self, sha256: str) -> bool:
        """Remove a copy that is not what its name says; tell whether there was one."""
        with suppress(OSError):
            path = self._path(sha256)
            if file_digest(path) != sha256:
                path.unlink()
                return True
        return False

    def _path(self, sha256: str) -> Path:
        if not HEX_DIGEST.fullmatch(sha256):
            raise CacheCorrupt(f"A commit record names {sha256[:80]!r}, which is no SHA-256.")
        return self.folder / "shards" / sha256[:2] / sha256

    @contextmanager
    def _part(self) -> Iterator[Path]:
        part = self.folder / "tmp" / secrets.token_hex(16)
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)

    def _reserve(self, part: Path, size: int) -> None:
        """Drop what was not used for longest until a file fits, and give it its size, which others then count."""
        with self._lock:
            if self._room < size:
                with (self.folder / "lock").open(
                    "a"
                ) as lock:  # one process at a time looks through the folder
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    room = self._evict(size)
                    _sized(part, size)
                self._room = max(size, min(room, self.limit // _SCANS))
            else:
                _sized(part, size)
            self._room -= size

    def _evict(self, size: int) -> int:
        """Make room for a file, and return how much there is then."""
        _remove_left(self.folder / "tmp")
        under_way = list(
            _files(self.folder, "tmp/*")
        )  # first: one that is done meanwhile counts twice, not never
        used = sorted(_files(self.folder, "shards/*/*"))
        room = self.limit - sum(n_bytes for _, n_bytes, _ in (*used, *under_way))
        for _, n_bytes, path in used:
            if room >= size:
                break
            path.unlink(missing_ok=True)
            room += n_bytes
        return room


def _copy(part: Path, size: int, sha256: str, parts: Iterator[bytes | memoryview], name: str) -> None:
    digest, left = hashlib.sha256(), size
    with part.open("r+b") as file:
        for content in parts:
            left -= len(content)
            if left < 0:
                break
            digest.update(content)
            file.write(content)
    if left or digest.hexdigest() != sha256:
        raise CacheCorrupt(
            f"{name} is damaged: its bytes are not those that were committed. Run `featpipe cache verify` on the "
            "cache itself; damaged shards can be computed again."
        )


def _sized(part: Path, size: int) -> None:
    with part.open("xb") as file:
        file.truncate(size)


def _files(folder: Path, pattern: str) -> Iterator[tuple[int, int, Path]]:
    """Give the time of last use, the size and the path of every file."""
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            status = path.stat()
            yield status.st_mtime_ns, status.st_size, path


def _remove_left(folder: Path) -> None:
    """Remove what killed processes left."""
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFT:
                path.unlink()
