"""Files as a cache may hold them: plain ones. Nothing here follows a link, waits for a pipe, or reads without end.

In a folder they are opened with care. Elsewhere there are no links and no pipes, and sizes are asked for.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from featpipe.errors import CacheCorrupt, CacheReadError, RequestError
from featpipe.store._documents import LARGEST
from featpipe.store.location import Folder, Location
from featpipe.store.location._refused import reading

# What is said of files that are damaged, lost or closed to us; a place that cannot be reached is not among it.
DAMAGE = (
    CacheCorrupt,
    CacheReadError,
    RequestError,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
)
_BLOCK = 1 << 20
# A pipe that stands where a file should be would keep whoever opens it waiting.
_FLAGS = (
    os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
)
FILE, FOLDER, LINK, OTHER = "a file", "a folder", "a symbolic link", "neither file nor folder"


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies in a folder under a name, and of which kind it is."""

    name: str
    kind: str


def reason(error: Exception) -> str:
    """Return what an error says, for the list of problems."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "it is not there"
    if isinstance(error, IsADirectoryError):
        return "it is no plain file"
    return str(error)


def open_plain(location: Location, name: str, largest: int) -> BinaryIO:
    """Open a plain file of at most so many bytes; raises one of `DAMAGE` for anything else."""
    if not isinstance(location, Folder):
        content = location.read(name, largest)
        if len(content) > largest:
            raise CacheCorrupt(f"it has more than the {largest} bytes that may be there")
        return BytesIO(content)
    path = location.path(name)
    with reading(path):
        handle = _opened(path)
        status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode) and status.st_size <= largest:
        return os.fdopen(handle, "rb", buffering=0)
    os.close(handle)
    if stat.S_ISREG(status.st_mode):
        raise _too_large(status.st_size, largest)
    raise CacheCorrupt("it is no plain file")


def read_plain(location: Location, name: str, largest: int = LARGEST) -> bytes:
    """Read a plain file; see `open_plain`."""
    with open_plain(location, name, largest) as file, reading(name):
        return file.read()


def size_and_digest(location: Location, name: str, largest: int) -> tuple[int, str]:
    """Return the size of a plain file and its SHA-256; a larger one than allowed is not read."""
    if not isinstance(location, Folder):
        if (size := location.size(name)) > largest:
            raise _too_large(size, largest)
        return size, location.digest(name)
    digest, size = hashlib.sha256(), 0
    block = memoryview(bytearray(_BLOCK))
    with open_plain(location, name, largest) as file, reading(location.path(name)):
        while count := file.readinto(block):  # type: ignore[attr-defined]
            digest.update(block[:count])
            size += count
    return size, digest.hexdigest()


def entries_of(folder: Path) -> Iterator[Entry]:
    """Yield what lies in a folder, sorted by name, without following links; raises one of `DAMAGE`."""
    with reading(folder), os.scandir(folder) as found:
        entries = [Entry(entry.name, _kind(entry)) for entry in found]
    yield from sorted(entries, key=lambda entry: entry.name)


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return LINK
    if entry.is_dir(follow_symlinks=False):
        return FOLDER
    return FILE if entry.is_file(follow_symlinks=False) else OTHER


def _opened(path: Path) -> int:
    try:
        return os.open(path, _FLAGS)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise CacheCorrupt("it is a symbolic link; a cache holds plain files and folders") from error


def _too_large(size: int, largest: int) -> CacheCorrupt:
    return CacheCorrupt(f"it has {size} bytes, and at most {largest} may be there")
