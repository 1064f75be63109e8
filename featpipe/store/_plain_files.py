"""Files as a cache may hold them: plain ones. Nothing here follows a link, waits for a pipe, or reads without end."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from featpipe.errors import CacheCorrupt

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


def open_plain(path: Path, largest: int) -> BinaryIO:
    """Open a plain file of at most so many bytes; raises `CacheCorrupt` for anything else, or `OSError`."""
    try:
        handle = os.open(path, _FLAGS)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise CacheCorrupt("it is a symbolic link; a cache holds plain files and folders") from error
    status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode) and status.st_size <= largest:
        return os.fdopen(handle, "rb", buffering=0)
    os.close(handle)
    if stat.S_ISREG(status.st_mode):
        raise CacheCorrupt(f"it has {status.st_size} bytes, and at most {largest} may be there")
    raise CacheCorrupt("it is no plain file")


def size_and_digest(path: Path, largest: int) -> tuple[int, str]:
    """Return the size of a plain file and its SHA-256; a larger one than allowed is not read."""
    digest, size = hashlib.sha256(), 0
    block = memoryview(bytearray(_BLOCK))
    with open_plain(path, largest) as file:
        while count := file.readinto(block):  # type: ignore[attr-defined]
            digest.update(block[:count])
            size += count
    return size, digest.hexdigest()


def entries_of(folder: Path) -> Iterator[Entry]:
    """Yield what lies in a folder, sorted by name, without following links; raises `OSError`."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_symlink():
            kind = LINK
        elif entry.is_dir(follow_symlinks=False):
            kind = FOLDER
        else:
            kind = FILE if entry.is_file(follow_symlinks=False) else OTHER
        yield Entry(entry.name, kind)
