"""Every byte of a stimulus set, whatever its size, in little memory.

``stimuli.json`` is canonical JSON, so its parts lie in a known order and its checksum and digest are hashes of
stretches of the file itself. It is read a block at a time, pair by pair, and what the arrays of the set must
hold in their chunks of ids and image digests is hashed on the way.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from array import array
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from featpipe.errors import CacheCorrupt
from featpipe.spec import FORMAT, canonical_json
from featpipe.store._documents import LARGEST, LARGEST_STIMULI
from featpipe.store._layout import MOST_SHARD_ROWS
from featpipe.store.checking._plain_files import open_plain
from featpipe.store.location import Location
from featpipe.store.location._refused import reading

_BLOCK = 1 << 20
_LONGEST_PAIR = 1 << 22  # bytes; an id is a path at most
_HEAD = re.compile(rb'\{"checksum":"([0-9a-f]{64})",("format":([0-9]{1,9}),"images":)\[')
_PAIR = re.compile(rb'\["((?:[^"\\]|\\.)+)","([0-9a-f]{64})"\]([,\]])', re.DOTALL)
_PLAIN = re.compile(rb"[ !#-\[\]-~]+")  # ids that canonical JSON writes as they are


@dataclass(frozen=True, slots=True)
class SetFacts:
    """What a sound stimulus set says about the arrays that belong to it.

    Parameters
    ----------
    n_stimuli, shard_rows : int
    ids_size : int
        Bytes of the chunk of ids.
    ids_sha256, digests_sha256 : str
        SHA-256 of the chunks of ids and of image digests.
    """

    n_stimuli: int
    shard_rows: int
    ids_size: int
    ids_sha256: str
    digests_sha256: str


def check_set(location: Location, name: str, digest: str) -> SetFacts:
    """Check every byte of a ``stimuli.json``; raises one of `featpipe.store.checking._plain_files.DAMAGE`.

    Parameters
    ----------
    location : Location
    name : str
    digest : str
        What the set must have.
    """
    path = f"{location.url}/{name}"
    with open_plain(location, name, LARGEST_STIMULI) as file, reading(path):
        first = _Reading(file, path)
        n_stimuli = sum(1 for _ in first.pairs())
        shard_rows = first.finish(digest)
        file.seek(0)
        return _facts(_Reading(file, path), n_stimuli, shard_rows)


def _facts(reading: _Reading, n_stimuli: int, shard_rows: int) -> SetFacts:
    """Hash what the chunks of ids and digests of an array must be, and look for an id that occurs twice."""
    ids, digests = hashlib.sha256(struct.pack("<I", n_stimuli)), hashlib.sha256()
    size, seen = 4, array("Q")  # eight bytes an id, whatever its length
    for text, sha256 in reading.pairs():
        ids.update(struct.pack("<I", len(text)) + text)
        digests.update(bytes.fromhex(sha256))
        size += 4 + len(text)
        seen.append(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))
    if len(np.unique(np.frombuffer(seen, np.uint64))) != n_stimuli:
        raise reading.corrupt("two of its images have one id")
    return SetFacts(n_stimuli, shard_rows, size, ids.hexdigest(), digests.hexdigest())


class _Reading:
    """One pass through the file; the hashes are complete once `pairs` is exhausted."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file, self._path = file, path
        self._buffer = file.read(_BLOCK)
        self._pairs = hashlib.sha256()  # of the canonical JSON of the pairs: the digest of the set

    def corrupt(self, what: str) -> CacheCorrupt:
        """Return the error that says what is wrong with this file."""
        return CacheCorrupt(f"{self._path}: {what}.")

    def pairs(self) -> Iterator[tuple[bytes, str]]:
        """Yield (id in UTF-8, image digest) in the order of the file."""
        head = _HEAD.match(self._buffer)
        if not head:
            raise self.corrupt("it does not begin as a stimulus set does")
        if int(head[3]) != FORMAT:
            raise self.corrupt(f"it has cache format {head[3].decode()}, and this featpipe reads {FORMAT}")
        self._checksum = head[1].decode()
        self._rest = hashlib.sha256(b"{" + head[2] + b"[")  # of all but the checksum
        self._pairs.update(b"[")
        self._buffer = self._buffer[head.end() :]
        more = True
        while more:
            more = yield from self._pairs_at_hand()

    def _pairs_at_hand(self) -> Generator[tuple[bytes, str], None, bool]:
        """Yield the pairs that are whole in the buffer, read on, and return whether there are more."""
        at, end = 0, b","
        while end == b"," and (pair := _PAIR.match(self._buffer, at)):
            yield self._text_of(pair[1]), pair[2].decode()
            at, end = pair.end(), pair[3]
        self._rest.update(self._buffer[:at])
        self._pairs.update(self._buffer[:at])
        block = self._file.read(_BLOCK)
        waiting = len(self._buffer) - at
        if end == b"," and (not block or waiting > _LONGEST_PAIR):
            raise self.corrupt("its images are not pairs of an id and a digest")
        self._buffer = self._buffer[at:] + block
        return end == b","

    def _text_of(self, written: bytes) -> bytes:
        """Return an id in UTF-8, which must be written in the one canonical way."""
        if _PLAIN.fullmatch(written):
            return written
        try:
            text = json.loads(b'"' + written + b'"')
            if canonical_json(text) == b'"' + written + b'"':
                return bytes(text.encode())
        except ValueError:
            pass
        raise self.corrupt("an id is not written as canonical JSON")

    def finish(self, digest: str) -> int:
        """Check what stands behind the pairs, and both hashes; return the rows per shard."""
        tail = self._buffer + self._file.read(LARGEST)
        if len(tail) > LARGEST:
            raise self.corrupt("what stands behind its images is too long")
        self._rest.update(tail)
        if self._rest.hexdigest() != self._checksum:
            raise self.corrupt("it does not match its own checksum")
        if self._pairs.hexdigest() != digest:
            raise self.corrupt(f"it holds another stimulus set, {self._pairs.hexdigest()}")
        return self._shard_rows(tail)

    def _shard_rows(self, tail: bytes) -> int:
        try:
            said: Any = json.loads(b"{" + tail[1:])
            right = tail[:1] == b"," and canonical_json(said)[1:] == tail[1:]
        except (ValueError, RecursionError) as error:
            raise self.corrupt(f"what stands behind its images cannot be read ({error})") from error
        kinds = {name: type(value) for name, value in said.items()} if isinstance(said, dict) else {}
        if not right or kinds != {"name": str, "shard_rows": int, "source": str}:
            raise self.corrupt("it has not the fields of a stimulus set")
        rows: int = said["shard_rows"]
        if not (8 <= rows <= MOST_SHARD_ROWS and rows % 8 == 0):
            raise self.corrupt(f"it has {rows} rows per shard")
        return rows
