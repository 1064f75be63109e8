"""What the store needs of the place where a cache lies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import numpy as np

from featpipe.errors import RequestError

Buffers = Iterable[bytes | memoryview]
T = TypeVar("T")
PART = 4 << 20  # bytes of a file that are in memory at once while it is copied


class StoredFile(ABC):
    """A file open for reading at any offset; used in a ``with``."""

    size: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027 - nothing to do where nothing is held open
        """Close it."""

    @abstractmethod
    def read_into(self, out: memoryview, offset: int) -> int:
        """Fill `out` from `offset` on; return how many bytes there were, fewer only at the end of the file."""

    def read_at(self, length: int, offset: int) -> bytes | memoryview:
        """Return up to `length` bytes from `offset` on, as they are held where that spares a copy."""
        out = bytearray(length)
        return bytes(out[: self.read_into(memoryview(out), offset)])

    def fetch_into(self, out: memoryview) -> bool:
        """Fetch all of the file, its beginning straight into `out`; False, and nothing done, where that is no gain."""
        return False

    def prepare(self, spans: Sequence[tuple[int, int]]) -> None:  # noqa: B027 - nothing to do where reading is cheap
        """Hear which (start, stop) will be read next, so that few requests fetch them."""


class Location(ABC):
    """A cache's files by relative names with slashes, such as ``arrays/KEY/spec.json``.

    Names are made from digests, numbers and fixed words, never from what a cache says. Everything is published
    create-only: whole, and only where nothing was before.
    """

    url: str
    threads: int = 4  # that read at once pay off
    remote = True
    whole_files = False  # whether a file is brought here whole before any of it is read

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def identity(self) -> str:
        """The same text for the same place, however it was named."""
        return self.url

    @abstractmethod
    def read(self, name: str, largest: int) -> bytes:
        """Return a file's content, at most ``largest + 1`` bytes of it; raises `FileNotFoundError`."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Return a file's size in bytes; raises `FileNotFoundError`."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Return what is directly in a folder; nothing where there is no folder."""

    def files(self, folder: str) -> list[str]:
        """Return all files below a folder by their names below it, as far as they can be listed at once."""
        raise NotImplementedError(self.url)

    @abstractmethod
    def open(self, name: str, size: int | None = None, sha256: str | None = None) -> StoredFile:
        """Open a file; raises `FileNotFoundError`.

        `size`, where it is known, spares a remote place a request; with `sha256` a mirror can keep a copy.
        """

    def stream(self, name: str, size: int) -> Iterator[bytes | memoryview]:
        """Read a file of `size` bytes from its start to its end, part by part; going on where a line was cut.

        What comes is as much as there is: whoever knows what it should be has to check. Raises
        `FileNotFoundError`.
        """
        with self.open(name, size) as file:
            for start in range(0, file.size, PART):
                yield file.read_at(PART, start)

    @abstractmethod
    def digest(self, name: str) -> str:
        """Return the SHA-256 of a file in hex; raises `FileNotFoundError`."""

    @abstractmethod
    def has_array(self, folder: str) -> bool:
        """Whether an array's folder is there, so far that it may be opened."""

    def at_hand(self, files: Iterable[tuple[int, str]]) -> bool:
        """Whether files of these sizes and SHA-256 can be read from this machine's disk."""
        return not self.remote

    def checked(self, folder: str, check: Callable[[], T]) -> T:
        """Return what reading and checking files of a folder gives.

        A mirror drops the copies that fail the check, and tries once more with new ones.
        """
        return check()

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def require_writable(self) -> None:
        """Raise `RequestError` where nothing can be written for lack of the means to do it safely."""
        raise self._read_only()

    def _read_only(self) -> RequestError:
        return RequestError(
            f"{self.url} can only be read. Write to a folder or an object store, and publish from there."
        )

    def create(self, name: str, buffers: Buffers) -> bool:
        """Publish a file whole and durable, unless one is there already; tell whether it was published."""
        raise self._read_only()

    def create_shard(self, folder: str, below: str, buffers: Buffers) -> bool:
        """Publish ``folder/below``, the only file of a folder, as `create` does."""
        return self.create(f"{folder}/{below}", buffers)

    def create_folder(self, folder: str, files: Mapping[str, bytes], *, last: str) -> bool:
        """Publish a folder of small files, of which `last` makes it count; tell whether it was not there before."""
        raise self._read_only()

    def replace(self, name: str, content: bytes) -> None:
        """Write a file that may change, whole; the only ones are lists that can be made again."""
        raise self._read_only()

    def set_aside(self, name: str, label: str) -> str | None:
        """Move a damaged file or folder to ``aside/LABEL-…``; return its new name, None when it is not there."""
        raise self._read_only()

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it."""
        raise self._read_only()

    def replace_if(self, name: str, content: bytes, version: Any) -> bool:
        """Replace a file that is still of the version given (None: that is not there); tell whether it was."""
        raise self._read_only()

    def stamp(self, name: str) -> tuple[Any, float] | None:
        """Return version and time of change of a file, by the clock of the place; None when it is not there."""
        raise self._read_only()

    def version(self, name: str) -> Any:
        """Return what changes when a file is replaced; None when it is not there."""
        raise self._read_only()


def bytes_of(out: np.ndarray) -> memoryview:
    """Return the bytes of a C-contiguous array."""
    return out.reshape(-1).view(np.uint8).data
