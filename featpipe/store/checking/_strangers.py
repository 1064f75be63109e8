"""What lies in the folder of an array that the format does not name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from featpipe.store._commits import COMMITS
from featpipe.store._layout import DIGESTS, FEATURES, GROUP, STIMULUS, ArrayLayout
from featpipe.store._seal import SEAL
from featpipe.store._static import STATIC_NAMES
from featpipe.store.checking._plain_files import DAMAGE, FILE, FOLDER, LINK, Entry, entries_of, reason
from featpipe.store.location import Folder, Location

_NUMBER = r"(0|[1-9][0-9]{0,9})"
_COMMIT = re.compile(rf"{COMMITS}/{_NUMBER}\.json")
_SHARD = re.compile(rf"{GROUP}/{FEATURES}/c/{_NUMBER}((?:/0)*)")
FOLDERS = {COMMITS, GROUP, f"{GROUP}/{FEATURES}", f"{GROUP}/{FEATURES}/c"} | {
    f"{GROUP}/{name}" for name in (STIMULUS, f"{STIMULUS}/c", DIGESTS, f"{DIGESTS}/c", f"{DIGESTS}/c/0")
}
_MOST_AXES = 7
_MOST_STRANGERS = 100  # of one array, by name
AND_MORE = "more files or folders are none that the format names"


@dataclass(slots=True)
class Found:
    """What lies in the folder of an array: the shards that are committed, and whatever should not be there."""

    committed: set[int] = field(default_factory=set)
    strangers: list[tuple[str, str]] = field(default_factory=list)  # path below the folder, what is wrong
    more: int = 0  # strangers that are not named

    def add(self, name: str, what: str) -> None:
        """Put down a stranger, by name unless there are very many."""
        if len(self.strangers) < _MOST_STRANGERS:
            self.strangers.append((name, what))
        else:
            self.more += 1

    def told(self) -> dict[str, str]:
        """Return what is wrong by path."""
        return dict(self.strangers) | ({"": f"{self.more} {AND_MORE}"} if self.more else {})


def look_around(location: Location, base: str, layout: ArrayLayout | None) -> Found:
    """List an array's folder, following no link; elsewhere all files that can be listed.

    Parameters
    ----------
    location : Location
    base : str
        ``arrays/KEY``.
    layout : ArrayLayout or None
        None where it is not known; any number of shards is then right.
    """
    found = Found()
    if not isinstance(location, Folder):
        for name in location.files(base):
            list(_sorted_in(found, name, Entry(name, FILE), layout))
        return found
    places = [""]
    while places:
        place = places.pop()
        try:
            for entry in entries_of(location.path(f"{base}/{place}")):
                name = f"{place}/{entry.name}" if place else entry.name
                places += _sorted_in(found, name, entry, layout)
        except DAMAGE as error:
            found.add(place, f"it cannot be listed: {reason(error)}")
    return found


def _sorted_in(found: Found, name: str, entry: Entry, layout: ArrayLayout | None) -> Iterator[str]:
    """Put down one entry, and yield it where it is a folder to be looked into."""
    wanted = _kind_of(name, layout, entry.kind)
    if entry.kind == LINK:
        found.add(name, "it is a symbolic link; a cache holds plain files and folders")
    elif wanted is None:
        found.add(name, _called(name, entry))
    elif entry.kind != wanted:
        found.add(name, f"it is {entry.kind}, where {wanted} should be")
    elif wanted == FOLDER:
        yield name
    elif commit := _COMMIT.fullmatch(name):
        found.committed.add(int(commit[1]))


def _called(name: str, entry: Entry) -> str:
    if name.startswith(f"{COMMITS}/"):
        return "it is no commit record"
    return f"it is {entry.kind} that the format does not name"


def _kind_of(name: str, layout: ArrayLayout | None, kind: str) -> str | None:
    """Return what stands under this name by the format, None where nothing does."""
    if name in FOLDERS:
        return FOLDER
    if name in STATIC_NAMES or name == SEAL:
        return FILE
    if commit := _COMMIT.fullmatch(name):
        return FILE if layout is None or int(commit[1]) < layout.n_shards else None
    if shard := _SHARD.fullmatch(name):
        return _kind_in_shard(int(shard[1]), len(shard[2]) // 2, layout, kind)
    return None


def _kind_in_shard(shard: int, depth: int, layout: ArrayLayout | None, kind: str) -> str | None:
    if layout is None:  # then nobody knows how deep the file lies
        return kind if 1 <= depth <= _MOST_AXES else FOLDER
    axes = len(layout.row_shape)
    if depth > axes or shard >= layout.n_shards:
        return None
    return FILE if depth == axes else FOLDER


def shard_of(name: str, layout: ArrayLayout | None) -> int | None:
    """Return the shard that a path is the commit record of, or leads to; None where it is neither."""
    found = _COMMIT.fullmatch(name) or _SHARD.fullmatch(name)
    if found is None or layout is None or int(found[1]) >= layout.n_shards:
        return None
    return int(found[1])
