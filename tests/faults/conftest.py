"""A disk that fails at the k-th operation below a folder, and what must hold of a cache whatever failed."""

from __future__ import annotations

import builtins
import io
import os
import threading
from contextlib import contextmanager

import pytest

# What the store may do with a path, and with an open file; those that change something in a group of their own.
CHANGING = ("mkdir", "rename", "replace", "link", "unlink", "remove", "rmdir", "fsync", "write", "create")
READING = ("open", "stat", "lstat", "fstat", "listdir", "scandir", "pread", "preadv", "read")


class FailingDisk:
    """Counts operations on files below a folder, and makes some of them fail.

    Parameters
    ----------
    root : Path
    error : callable () -> Exception
    at : int or None
        The operation that fails, from 0; None lets all pass.
    for_good : tuple of str
        Kinds of operation that fail from then on.
    """

    def __init__(self, root, error, at=None, for_good=()):
        self.root, self.error, self.at, self.for_good = str(root), error, at, for_good
        self.count, self.hit = 0, None
        self._lock = threading.Lock()

    def passes(self, kind, path):
        """Count an operation on a path, or fail."""
        if not str(path).startswith(self.root):
            return
        with self._lock:
            number, self.count = self.count, self.count + 1
            if number == self.at:
                self.hit = f"{kind} of {str(path)[len(self.root) :]}"
            elif self.hit is None or kind not in self.for_good:
                return
        raise self.error()

    @contextmanager
    def attached(self):
        """Stand between the code and the disk."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("mkdir", "rename", "replace", "link", "unlink", "remove", "rmdir", "stat", "lstat"):
                patch.setattr(os, name, self._of_path(name))
            for name in ("listdir", "scandir"):
                patch.setattr(os, name, self._of_path(name))
            for name in ("fsync", "fstat", "pread", "preadv"):
                patch.setattr(os, name, self._of_handle(name))
            patch.setattr(os, "open", self._open_handle())
            opened = self._open_file()
            patch.setattr(builtins, "open", opened)
            patch.setattr(io, "open", opened)
            yield self

    def _of_path(self, name):
        real = getattr(os, name)

        def call(path=".", *given, **options):
            self.passes(name, _whole(path, options.get("dir_fd")))
            return real(path, *given, **options)

        return call

    def _of_handle(self, name):
        real = getattr(os, name)

        def call(handle, *given):
            self.passes(name, _whole(handle))
            return real(handle, *given)

        return call

    def _open_handle(self):
        real = os.open

        def call(path, flags, *given, **options):
            kind = "create" if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) else "open"
            self.passes(kind, _whole(path, options.get("dir_fd")))
            return real(path, flags, *given, **options)

        return call

    def _open_file(self):
        real, disk = builtins.open, self

        class Raw(io.FileIO):
            def write(self, content):
                try:
                    disk.passes("write", self.name)
                except OSError:
                    super().write(
                        memoryview(content).cast("B")[: len(content) // 2]
                    )  # torn, as a full disk does
                    raise
                return super().write(content)

            def readinto(self, buffer):
                disk.passes("read", self.name)
                return super().readinto(buffer)

            def readall(self):
                disk.passes("read", self.name)
                return super().readall()

        def call(file, mode="r", *given, **options):
            if isinstance(file, int) or not str(file).startswith(self.root) or "b" not in mode:
                return real(file, mode, *given, **options)
            self.passes("open" if mode == "rb" else "create", file)
            raw = Raw(file, mode.replace("b", ""))
            return io.BufferedReader(raw) if mode == "rb" else io.BufferedWriter(raw)

        return call


def _whole(path, folder=None):
    """Return the absolute path of a path, of a name below an open folder, or of an open file."""
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    return (
        os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path) if folder is not None else os.fspath(path)
    )


@pytest.fixture(scope="session")
def failing_disk():
    """Return the class, for tests to make disks of."""
    return FailingDisk
