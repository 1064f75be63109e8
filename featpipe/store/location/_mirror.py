"""A local copy, made as it is read, of a cache that lies somewhere else.

Below the mirror's folder lie ``shards/XX/SHA256``, whole shard files under the digest that their commit records
say, and ``files/SHA256 OF THE URL/NAME``, the small files of each cache that never change. A shard is kept once
its digest is right. Small files are checked by whoever parses them, each time; those that fail are dropped and
fetched again. Lists of what there is are kept for when the cache cannot be reached, and never used before.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from featpipe.errors import CacheCorrupt, CacheUnreachable
from featpipe.spec import HEX_DIGEST
from featpipe.store.location._copies import Copies
from featpipe.store.location._locate import MirroredURL, locate
from featpipe.store.location._location import Buffers, Location, StoredFile, T

_NEVER_CHANGE = re.compile(
    r"arrays/[0-9a-f]{64}/(spec\.json|sealed\.json|commits/[0-9]{1,10}\.json|data\.zarr/([a-z0-9_]+/)?zarr\.json)"
    r"|stimuli/[0-9a-f]{64}/stimuli\.json"
)
_LISTED = re.compile(r"arrays|stimuli")
_AWAY = 60.0  # seconds before a cache that could not be reached is tried again for what the mirror has


class Mirrored(Location):
    """A remote cache read through a folder of this machine; what is written goes to the cache itself.

    Parameters
    ----------
    there : Location
        The cache itself.
    root : MirroredURL
    """

    whole_files = True

    def __init__(self, there: Location, root: MirroredURL) -> None:
        self._there, self._root = there, root
        self.url, self.threads = there.url, there.threads
        self._files = Path(root.mirror) / "files" / hashlib.sha256(there.url.encode()).hexdigest()
        self._copies = Copies(Path(root.mirror), root.size)
        self._opened: defaultdict[str, set[str]] = defaultdict(set)  # digests of shards by the array's folder
        self._lock = threading.Lock()
        self._away_until = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        return locate, (self._root,)

    @property
    def identity(self) -> str:
        """That of the cache: what is held in memory of it serves with and without a mirror."""
        return self._there.identity

    def read(self, name: str, largest: int) -> bytes:
        """See `Location`."""
        if not _NEVER_CHANGE.fullmatch(name):
            return self._there.read(name, largest)
        with suppress(OSError), (self._files / name).open("rb") as file:
            return file.read(largest + 1)
        content = self._there.read(name, largest)
        if len(content) <= largest:
            self._keep(self._files / name, content)
        return content

    def names(self, folder: str) -> list[str]:
        """See `Location`; where the cache cannot be reached, those that were listed last."""
        if not _LISTED.fullmatch(folder):
            return self._there.names(folder)
        last = self._files / f"{folder}.json"
        if time.monotonic() < self._away_until and last.exists():
            return _listed(last)
        try:
            names = [name for name in self._there.names(folder) if HEX_DIGEST.fullmatch(name)]
        except CacheUnreachable as error:
            if not last.exists():
                raise
            self._away_until = time.monotonic() + _AWAY
            warnings.warn(f"{error} Until then only what its mirror holds is read.", stacklevel=2)
            return _listed(last)
        if not last.exists() or _listed(last) != names:
            self._keep(last, json.dumps(names).encode())
        return names

    def has_array(self, folder: str) -> bool:
        """See `Location`."""
        return (self._files / folder / "spec.json").exists() or self._there.has_array(folder)

    def open(self, name: str, size: int | None = None, sha256: str | None = None) -> StoredFile:
        """See `Location`; a shard whose digest is known is copied here first, unless it is larger than all room."""
        if size is None or sha256 is None or size > self._copies.limit:
            return self._there.open(name, size)
        with self._lock:
            self._opened["/".join(name.split("/")[:2])].add(sha256)
        if (copy := self._copies.open(size, sha256)) is not None:
            return copy
        try:
            return self._copies.fetch(size, sha256, self._there.stream(name, size), f"{self.url}/{name}")
        except OSError as error:
            self._pass_on(error)
            return self._there.open(name, size)

    def at_hand(self, files: Iterable[tuple[int, str]]) -> bool:
        """See `Location`."""
        return all(self._copies.holds(size, sha256) for size, sha256 in files)

    def checked(self, folder: str, check: Callable[[], T]) -> T:
        """See `Location`."""
        try:
            return check()
        except CacheCorrupt:
            shutil.rmtree(self._files / folder, ignore_errors=True)
            self._drop_damaged(folder)
        while True:
            try:
                return check()
            except CacheCorrupt:  # of a shard that it had not come to before, or of the cache itself
                if not self._drop_damaged(folder):
                    raise

    def _drop_damaged(self, folder: str) -> int:
        """Remove the copies of an array's shards that are not what they should be; return how many they were."""
        return sum(map(self._copies.drop_damaged, sorted(self._opened[folder])))

    def _keep(self, path: Path, content: bytes) -> None:
        try:
            self._copies.keep(path, content)
        except OSError as error:
            self._pass_on(error)

    def _pass_on(self, error: OSError) -> None:
        """Raise what the cache is to blame for; what the mirror's disk refuses is told, and done without."""
        if isinstance(error, CacheUnreachable | FileNotFoundError):
            raise error
        warnings.warn(
            f"The mirror {self._root.mirror} cannot be written ({error.strerror or error}); {self.url} is read without "
            "one. Free some space, or name another folder with --mirror.",
            stacklevel=2,
        )

    # Passed on

    def files(self, folder: str) -> list[str]:
        """See `Location`."""
        return self._there.files(folder)

    def size(self, name: str) -> int:
        """See `Location`."""
        return self._there.size(name)

    def stream(self, name: str, size: int) -> Iterator[bytes | memoryview]:
        """See `Location`."""
        return self._there.stream(name, size)

    def digest(self, name: str) -> str:
        """See `Location`: of the cache's own file."""
        return self._there.digest(name)

    def exists(self, name: str) -> bool:
        """See `Location`."""
        return self._there.exists(name)

    def require_writable(self) -> None:
        """See `Location`."""
        self._there.require_writable()

    def create(self, name: str, buffers: Buffers) -> bool:
        """See `Location`."""
        return self._there.create(name, buffers)

    def create_shard(self, folder: str, below: str, buffers: Buffers) -> bool:
        """See `Location`."""
        return self._there.create_shard(folder, below, buffers)

    def create_folder(self, folder: str, files: Mapping[str, bytes], *, last: str) -> bool:
        """See `Location`."""
        return self._there.create_folder(folder, files, last=last)

    def replace(self, name: str, content: bytes) -> None:
        """See `Location`."""
        self._there.replace(name, content)

    def replace_if(self, name: str, content: bytes, version: Any) -> bool:
        """See `Location`."""
        return self._there.replace_if(name, content, version)

    def stamp(self, name: str) -> tuple[Any, float] | None:
        """See `Location`."""
        return self._there.stamp(name)

    def set_aside(self, name: str, label: str) -> str | None:
        """See `Location`."""
        self._forget(name)
        return self._there.set_aside(name, label)

    def remove(self, name: str) -> None:
        """See `Location`."""
        self._forget(name)
        self._there.remove(name)

    def version(self, name: str) -> Any:
        """See `Location`."""
        return self._there.version(name)

    def _forget(self, name: str) -> None:
        """Drop the small files of an array or a set that is changed."""
        shutil.rmtree(self._files / "/".join(name.split("/")[:2]), ignore_errors=True)


def _listed(path: Path) -> list[str]:
    """Return the names that were listed last, as far as the file can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    return (
        [name for name in found if isinstance(name, str) and HEX_DIGEST.fullmatch(name)]
        if isinstance(found, list)
        else []
    )
