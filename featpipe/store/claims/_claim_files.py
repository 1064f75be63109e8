"""Claims as files of a local or shared file system: taken create-only, kept by touching, judged by file times.

A claim lies at ``CACHE/claims/WORK/NAME.json``. Its age is the time of a file that was touched just now minus
its own time, so both times are of the file system's server and no local clock is asked. Its owner holds a lock
(``flock``) on the open file, which the system drops when the owner dies: on the same machine that is seen at once.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from featpipe.spec import canonical_json
from featpipe.store.location._publish import _NO_LINKS, make_folders, writing

CLAIMS = "claims"
LARGEST_CLAIM = 1 << 12  # bytes of a claim
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Owner:
    """Who holds a claim, in their own words.

    Parameters
    ----------
    owner : str
        Random, one a run.
    host : str
    pid : int
    boot : str
        Names the running system, so that owners on the same machine are known; empty where that is not told.
    since : str
        When the run began by its own clock, for people.
    locked : bool
        Whether the owner holds a lock on the file.
    """

    owner: str
    host: str
    pid: int
    boot: str
    since: str
    locked: bool = False

    def encode(self, *, locked: bool) -> bytes:
        """Return the content of a claim."""
        return canonical_json({**vars(self), "locked": locked})

    @classmethod
    def parse(cls, content: bytes) -> Owner | None:
        """Read what `encode` wrote; None where it is anything else: a claim is only advice."""
        try:
            owner = cls(**json.loads(content))
        except (ValueError, TypeError, RecursionError):
            return None
        texts = (owner.owner, owner.host, owner.boot, owner.since)
        right = all(isinstance(text, str) and text.isprintable() for text in texts)
        return owner if right and type(owner.pid) is int else None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class Seen:
    """Somebody's claim as it was just now.

    Parameters
    ----------
    owner : Owner or None
        None where it cannot be read.
    version : object
        Another one whenever the claim is another or was touched.
    age : float
        Seconds since it was touched last, by the clock of the storage.
    dead : bool
        Whether its owner is known to be gone.
    """

    owner: Owner | None
    version: Any
    age: float
    dead: bool


class Held(Protocol):
    """A claim of ours."""

    def touch(self) -> None:
        """Show that its owner is alive; harmless where somebody took it away."""

    def release(self) -> None:
        """Remove it, unless it is somebody else's by now."""


class ClaimStorage(Protocol):
    """What claims need of a storage: a create-only write, a touch, an age by its own clock, a removal."""

    def take(self, name: str, owner: Owner) -> Held | None:
        """Put a claim where none is; None where there is one."""

    def look(self, name: str) -> Seen | None:
        """Return the claim that is there now, None where there is none."""

    def remove(self, name: str, seen: Seen) -> None:
        """Remove a claim if it is still the one that was seen."""

    def tidy(self) -> None:
        """Remove what holds claims, where it is empty."""


@cache
def boot_id() -> str:
    """Return a name of the running system, empty where there is none."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


class ClaimFiles:
    """The claims of one piece of work: `ClaimStorage` on a file system.

    Parameters
    ----------
    root : Path
        The cache's folder.
    work : str
        Names the work, 64 hex digits.
    """

    def __init__(self, root: Path, work: str) -> None:
        self._tmp = root / "tmp"
        self._folder = root / CLAIMS / work

    def take(self, name: str, owner: Owner) -> ClaimFile | None:
        """Put a claim where none is; None where there is one. Raises `CacheWriteError`."""
        place = self._place(name)
        with writing(place):
            make_folders(self._folder)
            with self._new_file() as (path, handle):
                os.write(handle, owner.encode(locked=_lock(handle)))  # locked before anybody can look
                with suppress(FileNotFoundError):  # the folder was tidied away: look again, and try again
                    if _link(path, place):
                        return ClaimFile(self, place, os.dup(handle))
                    return self._create(place, owner) if not place.exists() else None
        return None

    def look(self, name: str) -> Seen | None:
        """Return the claim that is there now, None where there is none. Raises `CacheWriteError`."""
        place = self._place(name)
        with writing(place):
            try:
                handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                status, owner = os.fstat(handle), Owner.parse(os.read(handle, LARGEST_CLAIM))
                ours = owner is not None and owner.locked and owner.boot == boot_id() != ""
                dead = ours and _is_unlocked(handle)
            finally:
                os.close(handle)
            return Seen(owner, _version(status), self._now() - status.st_mtime, dead)

    def remove(self, name: str, seen: Seen) -> None:
        """Remove a claim if it is still the one that was seen. Raises `CacheWriteError`."""
        with writing(self._place(name)):
            self.remove_if(self._place(name), lambda status: _version(status) == seen.version)

    def tidy(self) -> None:
        """Remove the folder where it is empty."""
        with suppress(OSError):  # others have claims in it, or it never was
            self._folder.rmdir()

    def remove_if(self, place: Path, meant: Callable[[os.stat_result], bool]) -> None:
        """Move a claim away and remove it; one that is not meant is left, or goes back to its place."""
        moved = self._tmp / secrets.token_hex(16)
        with suppress(FileNotFoundError):  # somebody else removed it
            if not meant(os.stat(place)):
                return
            make_folders(self._tmp)
            os.rename(place, moved)
            if not meant(os.stat(moved)):
                _link(moved, place)
            os.unlink(moved)

    def _place(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _now(self) -> float:
        """Return the time by the clock of the file system."""
        with self._new_file() as (_, handle):
            os.utime(handle)
            return os.fstat(handle).st_mtime

    @contextmanager
    def _new_file(self) -> Iterator[tuple[Path, int]]:
        """Give a new file, open, below ``CACHE/tmp``; both are gone at the end."""
        make_folders(self._tmp)
        path = self._tmp / secrets.token_hex(16)
        handle = _create(path)
        try:
            yield path, handle
        finally:
            os.close(handle)
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _create(self, place: Path, owner: Owner) -> ClaimFile | None:
        """Create a claim in place, where there are no links; half of one counts by its age."""
        try:
            handle = _create(place)
        except FileExistsError:
            return None
        os.write(handle, owner.encode(locked=_lock(handle)))
        return ClaimFile(self, place, handle)


class ClaimFile:
    """A claim of ours: `Held` on a file system. Its open file is what is touched, wherever it has gone."""

    def __init__(self, folder: ClaimFiles, place: Path, handle: int) -> None:
        self._folder, self._place, self._handle = folder, place, handle

    def touch(self) -> None:
        """Let the server set the file's time."""
        os.utime(self._handle)

    def release(self) -> None:
        """Remove the file, unless another is at its place by now, and drop the lock."""
        try:
            ours = os.fstat(self._handle)  # not given to another file while it is open
            self._folder.remove_if(self._place, lambda status: os.path.samestat(status, ours))
        finally:
            os.close(self._handle)


def _create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _link(path: Path, place: Path) -> bool:
    """Link a file to its place, unless one is there or links are refused; tell whether it was linked."""
    try:
        os.link(path, place)
    except FileExistsError:
        return os.stat(path).st_nlink > 1  # NFS may repeat a request that had succeeded
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def _lock(handle: int) -> bool:
    """Lock an open file; tell whether the file system can."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_unlocked(handle: int) -> bool:
    """Whether nobody has a lock on an open file; a shared one is tried, so that others who look do not count."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    return True


def _version(status: os.stat_result) -> tuple[int, int]:
    return status.st_ino, status.st_mtime_ns
