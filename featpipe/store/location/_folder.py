"""A cache in a folder of a file system, on this machine or shared."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featpipe.files import written_whole
from featpipe.remembered import file_digest
from featpipe.store.location import _publish
from featpipe.store.location._location import Buffers, Location, StoredFile
from featpipe.store.location._refused import is_folder, reading


class Folder(Location):
    """A cache in a folder; nothing is made before the first write.

    Parameters
    ----------
    root : Path
    """

    remote = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    @property
    def identity(self) -> str:
        """The folder without links."""
        return os.path.realpath(self.root)

    def is_file(self) -> bool:
        """Whether the folder is none, but a file."""
        with reading(self.root):
            return self.root.is_file()

    def path(self, name: str) -> Path:
        """Return where a file or folder lies."""
        return self.root / name

    def _place(self, name: str) -> Path:
        """Return where to write a file or folder; raises `CacheWriteError` where a link leads out of the cache."""
        return _publish.inside(self.root, self.path(name))

    def read(self, name: str, largest: int) -> bytes:
        """See `Location`."""
        with reading(self.path(name)), open(_open_file(f"{self.url}/{name}"), "rb") as file:
            return file.read(largest + 1)

    def size(self, name: str) -> int:
        """See `Location`."""
        path = f"{self.url}/{name}"
        try:
            with reading(path):
                found = os.stat(path)
        except OSError as error:
            raise _no_file(path, error) from error
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, "no file", path)
        return found.st_size

    def names(self, folder: str) -> list[str]:
        """See `Location`."""
        try:
            with reading(self.path(folder)):
                return os.listdir(f"{self.url}/{folder}")
        except OSError as error:
            if not isinstance(_no_file(folder, error), FileNotFoundError):
                raise
            return []

    def open(self, name: str, size: int | None = None, sha256: str | None = None) -> StoredFile:
        """See `Location`."""
        return OpenFile(f"{self.url}/{name}")

    def digest(self, name: str) -> str:
        """See `Location`."""
        self.size(name)  # raises where it is no file
        with reading(self.path(name)):
            return file_digest(self.path(name))

    def has_array(self, folder: str) -> bool:
        """See `Location`."""
        return is_folder(self.path(folder))

    def require_writable(self) -> None:
        """A folder can be written to, or says why not when it is tried."""

    def create(self, name: str, buffers: Buffers) -> bool:
        """See `Location`."""
        with _publish.writing(self.path(name)):
            return _publish.publish_file(self.root, self._place(name), buffers)

    def create_shard(self, folder: str, below: str, buffers: Buffers) -> bool:
        """See `Location`; a folder is renamed to its place."""
        place = self._place(folder)
        with _publish.staging(self.root) as staged:
            file = staged / place.name / below
            file.parent.mkdir(parents=True)
            _publish.write_file(file, buffers)
            return _publish.publish_folder(staged / place.name, place)

    def create_folder(self, folder: str, files: Mapping[str, bytes], *, last: str) -> bool:
        """See `Location`; a racing creator may win."""
        place = self._place(folder)
        with _publish.staging(self.root) as staged:
            for name, content in files.items():
                path = staged / place.name / name
                path.parent.mkdir(parents=True, exist_ok=True)
                _publish.write_file(path, [content])
            return _publish.publish_folder(staged / place.name, place)

    def replace(self, name: str, content: bytes) -> None:
        """See `Location`."""
        with _publish.writing(self.path(name)), written_whole(self._place(name)) as file:
            file.write(content)

    def replace_if(self, name: str, content: bytes, version: Any) -> bool:
        """See `Location`; others who replace a file in this way wait."""
        with _publish.writing(self.path(name)), self._locked(f"tmp/{name.replace('/', '-')}.lock"):
            if self.version(name) != version:
                return False
            self.replace(name, content)
        return True

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold a file's lock; one that was removed while we waited for it is made again."""
        _publish.make_folders(self.path(name).parent)
        while True:
            with open(self.path(name), "a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file.fileno()).st_ino == self._inode(name):
                    yield
                    return

    def _inode(self, name: str) -> int | None:
        try:
            return os.stat(self.path(name)).st_ino
        except FileNotFoundError:
            return None

    def set_aside(self, name: str, label: str) -> str | None:
        """See `Location`."""
        moved = _publish.set_aside(self.root, self._place(name), label)
        return None if moved is None else str(moved.relative_to(self.root))

    def restore(self, aside: str, name: str) -> None:
        """Put back what was set aside by mistake, unless something else is there by now."""
        with _publish.writing(self.path(name)):
            _publish.publish_folder(self._place(aside), self._place(name))

    def remove(self, name: str) -> None:
        """See `Location`; gone in one step, also when killed while deleting."""
        with _publish.staging(self.root) as staged:
            removed = staged / "removed"
            os.rename(self._place(name), removed)
            if removed.is_dir() and not removed.is_symlink():  # what a link leads to is not the cache's
                shutil.rmtree(removed)

    def version(self, name: str) -> Any:
        """Return inode and time of change of a file: an inode alone comes back once it was given free."""
        try:
            with reading(self.path(name)):
                status = os.stat(self.path(name))
            return status.st_ino, status.st_mtime_ns
        except OSError as error:
            if not isinstance(_no_file(name, error), FileNotFoundError):
                raise
            return None


def _open_file(path: str) -> int:
    """Open a plain file; a pipe, a device or a folder, there or behind a link, is no file of a cache."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise _no_file(path, error) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileNotFoundError(errno.ENOENT, "no file", path)
    return handle


def _no_file(path: str, error: OSError) -> OSError:
    """Return what to raise for a path at which no file can be."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error  # of an error with advice
    if cause.errno in (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO):
        return FileNotFoundError(cause.errno, "no file", path)
    return error


class OpenFile(StoredFile):
    """An open file of this machine."""

    def __init__(self, path: str) -> None:
        self._path = path
        with reading(path):
            self._handle = _open_file(path)
            self.size = os.fstat(self._handle).st_size

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def read_at(self, length: int, offset: int) -> bytes:
        """See `StoredFile`."""
        with reading(self._path):
            return os.pread(self._handle, length, offset)

    def read_into(self, out: memoryview, offset: int) -> int:
        """See `StoredFile`."""
        start = offset
        with reading(self._path):
            while out and (read := os.preadv(self._handle, [out], offset)):
                out, offset = out[read:], offset + read
        return offset - start
