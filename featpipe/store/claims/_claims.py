"""Claims: who is at what, so that several writers divide the work. Nothing is wrong where they fail.

Publication is create-only, so shards that are made twice do no harm; claims only save the second making. A claim
that its owner does not touch for `CLAIM_EXPIRY` seconds, or whose owner is known to be dead, is anybody's.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from featpipe.errors import CacheBusy
from featpipe.spec import FORMAT, FeatureSpec, digest_of
from featpipe.store.claims._claim_files import ClaimFiles, ClaimStorage, Held, Owner, Seen, boot_id
from featpipe.store.claims._claim_objects import ClaimObjects
from featpipe.store.location import Folder, locate

CLAIM_EXPIRY = 150.0  # seconds; two heartbeats and a minute of NFS' cached file times fit in
LEAST_CLAIM_EXPIRY = 120.0  # of claims that other machines may look at
_BEAT = 30.0
_ATTEMPTS = 3
_WHOLE = "array"
_OF_A_PASS = (
    *("model", "model_args", "code", "weights", "preprocessing", "precision"),
    *("view", "augmentation", "view_seed"),
)


def work_of(spec: FeatureSpec, stimuli_digest: str) -> str:
    """Return the name of the forward pass that makes these features: the same for all of its layers."""
    fields = {name: value for name, value in spec.to_json().items() if name in _OF_A_PASS}
    return digest_of({"format": FORMAT, "stimuli": stimuli_digest, **fields})


def claim_storage(root: str | os.PathLike[str], work: str) -> ClaimStorage:
    """Return where the claims of one piece of work in a cache lie; raises `RequestError` where none can be."""
    location = locate(root)
    if isinstance(location, Folder):
        return ClaimFiles(location.root, work)
    location.require_writable()
    return ClaimObjects(location, work)


class Claims:
    """A ``with`` that holds claims of one piece of work, and touches them as long as it is open.

    Parameters
    ----------
    storage : ClaimStorage
    expiry : float
        Seconds without a touch after which somebody else's claim is taken over.
    """

    def __init__(self, storage: ClaimStorage, *, expiry: float = CLAIM_EXPIRY) -> None:
        self._storage, self._expiry = storage, expiry
        self._owner = Owner(
            owner=secrets.token_hex(16),
            host=socket.gethostname(),
            pid=os.getpid(),
            boot=boot_id(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()  # around what is held: nothing is touched that is being released
        self._watched: dict[str, tuple[Any, float]] = {}
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="claims", daemon=True)

    def __enter__(self) -> Claims:
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._heart.join()
        for name in list(self._held):
            self.release(name)
        self._storage.tidy()

    def take(self, name: str) -> bool:
        """Claim something; False where somebody who seems to be alive has claimed it.

        Raises
        ------
        CacheWriteError
            There can be no claims: the cache is read-only, closed to us, or full.
        """
        for _ in range(_ATTEMPTS):
            if (held := self._storage.take(name, self._owner)) is not None:
                with self._lock:
                    self._held[name] = held
                self._watched.pop(name, None)
                return True
            if (seen := self._storage.look(name)) is None:
                continue  # released a moment ago
            if not self._is_over(name, seen):
                return False
            self._storage.remove(name, seen)
        return False  # others are quicker

    def release(self, name: str) -> None:
        """Give a claim back; harmless where it is not ours, or not any more.

        One that cannot be removed, because the disk fails, is left to expire.
        """
        with self._lock:
            held = self._held.pop(name, None)
            if held is not None:
                with suppress(OSError):
                    held.release()

    def holder(self, name: str) -> Owner | None:
        """Return who has claimed something now; None where nobody has, or who it is cannot be read."""
        seen = self._storage.look(name)
        return seen.owner if seen else None

    def _is_over(self, name: str, seen: Seen) -> bool:
        """Whether a claim is anybody's.

        A clock of the storage that was set back would keep a claim young for long: one that did not change
        while we watched it for as long as it may is over, too.
        """
        if seen.dead or seen.age >= self._expiry:
            return True
        now = time.monotonic()
        version, since = self._watched.get(name, (None, now))
        if version != seen.version:
            self._watched[name] = (seen.version, now)
            return False
        return now - since >= self._expiry

    def _beat(self) -> None:
        """Touch all that is held until the end; what cannot be touched expires, and others take it over."""
        while not self._ended.wait(min(_BEAT, self._expiry / 5)):
            with self._lock:
                for held in self._held.values():
                    with suppress(OSError):
                        held.touch()


@contextmanager
def exclusive_claim(
    root: str | os.PathLike[str], key: str, *, expiry: float = CLAIM_EXPIRY
) -> Iterator[None]:
    """Be the only one who works on a whole array, such as to repair it.

    Those who extract are not kept away: what they publish goes only where nothing is.

    Raises
    ------
    CacheBusy
        Somebody else is at it, and seems to be alive.
    CacheWriteError
        The cache cannot be written.
    """
    with Claims(claim_storage(root, key), expiry=expiry) as claims:
        if not claims.take(_WHOLE):
            who = claims.holder(_WHOLE) or "somebody who does not say who"
            raise CacheBusy(
                f"Array {key} is being worked on by {who}. Wait until that ends; where it died, its claim is "
                f"taken over {expiry:.0f} seconds after its last sign of life. Then run the command again."
            )
        yield
