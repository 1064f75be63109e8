"""Claims as objects of a bucket: taken create-only, kept by writing them again, judged by the bucket's own times."""

from __future__ import annotations

import secrets
from typing import Any, Protocol

from featpipe.store.claims._claim_files import CLAIMS, LARGEST_CLAIM, Owner, Seen


class Bucket(Protocol):
    """What claims need of an object store."""

    def create(self, name: str, buffers: Any) -> bool:
        """Put an object where none is."""

    def replace_if(self, name: str, content: bytes, version: Any) -> bool:
        """Put an object in place of this version."""

    def read(self, name: str, largest: int) -> bytes:
        """Return an object's content."""

    def stamp(self, name: str) -> tuple[Any, float] | None:
        """Return version and time of an object, None where there is none."""

    def remove(self, name: str) -> None:
        """Remove an object."""


class ClaimObjects:
    """The claims of one piece of work: `ClaimStorage` in an object store.

    Nobody sees there whether an owner lives; only the age of a claim tells.

    Parameters
    ----------
    bucket : Bucket
    work : str
        Names the work, 64 hex digits.
    """

    def __init__(self, bucket: Bucket, work: str) -> None:
        self._bucket, self._folder = bucket, f"{CLAIMS}/{work}"

    def take(self, name: str, owner: Owner) -> ClaimObject | None:
        """Put a claim where none is; None where there is one."""
        place, content = self._place(name), owner.encode(locked=False)
        if not self._bucket.create(place, [content]):
            return None
        stamp = self._bucket.stamp(place)
        return None if stamp is None else ClaimObject(self._bucket, place, content, stamp[0])

    def look(self, name: str) -> Seen | None:
        """Return the claim that is there now, None where there is none."""
        stamp = self._bucket.stamp(self._place(name))
        if stamp is None:
            return None
        try:
            owner = Owner.parse(self._bucket.read(self._place(name), LARGEST_CLAIM))
        except FileNotFoundError:
            return None
        return Seen(owner, stamp, self._now() - stamp[1], dead=False)

    def remove(self, name: str, seen: Seen) -> None:
        """Remove a claim if it is still the one that was seen."""
        if self._bucket.stamp(self._place(name)) == seen.version:
            self._bucket.remove(self._place(name))

    def tidy(self) -> None:
        """Do nothing: a bucket has no folders."""

    def _place(self, name: str) -> str:
        return f"{self._folder}/{name}.json"

    def _now(self) -> float:
        """Return the time by the bucket's clock: that of an object put just now."""
        name = f"tmp/{secrets.token_hex(16)}"
        self._bucket.create(name, [b""])
        stamp = self._bucket.stamp(name)
        self._bucket.remove(name)
        return stamp[1] if stamp else 0.0


class ClaimObject:
    """A claim of ours in an object store; taken from us, it is left alone."""

    def __init__(self, bucket: Bucket, place: str, content: bytes, version: Any) -> None:
        self._bucket, self._place, self._content, self._version = bucket, place, content, version

    def touch(self) -> None:
        """Write it again, so that its time is new, as long as nobody took it away.

        White space is added and taken away, so that the version changes, which is a digest of the content.
        """
        content = self._content.rstrip() if self._content.endswith(b" ") else self._content + b" "
        if self._bucket.replace_if(self._place, content, self._version):
            stamp = self._bucket.stamp(self._place)
            self._content, self._version = content, stamp[0] if stamp else None

    def release(self) -> None:
        """Remove it, unless it is somebody else's by now."""
        stamp = self._bucket.stamp(self._place)
        if stamp is not None and stamp[0] == self._version:
            self._bucket.remove(self._place)
