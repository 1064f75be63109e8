"""Size and SHA-256 of what is on its way to a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from featpipe.store.location._location import Buffers


class Hashed:
    """Parts of a file, with the size and the SHA-256 of those that have passed; passes once.

    Parameters
    ----------
    parts : iterable of bytes-like
    """

    def __init__(self, parts: Buffers) -> None:
        self.size = 0
        self._parts, self._digest = parts, hashlib.sha256()

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for part in self._parts:
            self._digest.update(part)
            self.size += len(part)
            yield part

    @property
    def sha256(self) -> str:
        """In hex."""
        return self._digest.hexdigest()
