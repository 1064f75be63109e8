"""What every kind of source becomes: stored images in order, read one at a time from any thread."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from featpipe.errors import StimulusError
from featpipe.stimuli._damage import Unusable

MAX_STORED_BYTES = 1 << 29  # of one image; 89 million RGB pixels uncompressed are half of it


@dataclass(frozen=True)
class Part:
    """Images whose content depends on the same files: what is remembered together."""

    files: tuple[str | Path, ...]
    positions: range
    within: Any = None  # JSON: where in those files


class Images(Protocol):
    """Stored images. Holds no open file, so that it can be shared by threads and sent to a worker."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids, unique, in the order of the set."""

    def file(self, position: int) -> str:
        """Return how an error names an image."""

    @property
    def parts(self) -> Sequence[Part]:
        """All positions, by the files that they depend on."""

    def read(self, position: int) -> bytes | np.ndarray:
        """Return the stored bytes of a file, or the pixels of an array's row.

        Raises `Unusable` for this image alone, `StimulusError` where the source cannot be read.
        """


def stored_digest(stored: bytes | np.ndarray) -> str:
    """Return the SHA-256 of an image as stored, in hex.

    Of a file: of its bytes. Of an array row: of an ASCII line ``featpipe-pixels DTYPE SHAPE`` and a newline,
    such as ``featpipe-pixels uint8 425x425x3``, then of its values in C order, little-endian.
    """
    if isinstance(stored, bytes):
        return hashlib.sha256(stored).hexdigest()
    shape = "x".join(map(str, stored.shape))
    digest = hashlib.sha256(f"featpipe-pixels {stored.dtype.name} {shape}\n".encode())
    digest.update(np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def read_file(path: str | Path, file: str, *, offset: int = 0, size: int | None = None) -> bytes:
    """Return a file's bytes, or ``size`` of them from ``offset``; raises `StimulusError` naming ``file``."""
    with opened(path, file) as stream:
        require_storable(os.fstat(stream.fileno()).st_size if size is None else size)
        stream.seek(offset)
        return stream.read(-1 if size is None else size)


@contextmanager
def opened(path: str | Path, file: str) -> Iterator[BinaryIO]:
    """Open a file for reading; what the system says against it becomes a `StimulusError` naming ``file``."""
    try:
        with open(path, "rb") as stream:
            yield stream
    except OSError as error:
        raise StimulusError(
            f"Image {file!r} cannot be read: {error.strerror or error}. Check that it exists and may be read."
        ) from error


def require_storable(size: int) -> None:
    """Raise `Unusable` for a stored image that should not be read into memory whole."""
    if size > MAX_STORED_BYTES:
        raise Unusable(f"{size} bytes stored, where {MAX_STORED_BYTES} are the limit", large=True)
