"""What a cache no longer needs: leftovers of killed writers, abandoned claims, and what was moved aside.

Ages are those of files, against a file touched just now on the same file system, so that clocks of several
machines do not matter. Links are never followed, and nothing outside the cache's folder is touched.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from featpipe.errors import CacheCorrupt, CacheWriteError, FeaturesNotCached, RequestError
from featpipe.spec import HEX_DIGEST
from featpipe.store._commits import COMMITS
from featpipe.store._documents import read_json
from featpipe.store._static import SPEC
from featpipe.store.claims._claim_files import CLAIMS
from featpipe.store.claims._claims import CLAIM_EXPIRY
from featpipe.store.location import Folder, Location
from featpipe.store.location._publish import publish_folder, staging, writing

_HOUR, _DAY = 3600.0, 86_400.0
_GRACE = 60.0  # seconds; a writer that moved a shard aside may still put it back


@dataclass(frozen=True, slots=True)
class Garbage:
    """One file or folder that can go.

    Parameters
    ----------
    kind : {"leftover", "claim", "aside", "stimuli", "empty"}
        What a writer was working on below ``tmp``; a claim that nobody renews; what was moved aside; a
        stimulus set of no array; an array without any shard, which is told but never removed.
    path : Path
    nbytes : int
        Of the files in it.
    age : float
        Seconds since anything in it was written.
    """

    kind: str
    path: Path
    nbytes: int
    age: float


@dataclass(frozen=True, slots=True)
class GarbageFilter:
    """Which garbage is looked for, besides leftovers and claims.

    Parameters
    ----------
    older : float
        Seconds; younger leftovers may belong to a writer that is running.
    aside, stimuli, empty : bool
        Whether to look for these kinds too.
    """

    older: float = _HOUR
    aside: bool = False
    stimuli: bool = False
    empty: bool = False


def find_garbage(location: Location, wanted: GarbageFilter) -> list[Garbage]:
    """List what a cache no longer needs; changes nothing.

    Raises
    ------
    RequestError
        The cache lies in no folder.
    FeaturesNotCached
        There is no such folder.
    CacheWriteError
        No file can be touched in the cache, so that ages are not known.
    CacheCorrupt
        Unused stimulus sets are asked for, and an array does not say which set it uses.
    """
    root = _root(location)
    if not root.is_dir():
        raise FeaturesNotCached(
            f"There is no folder {root}, so there is nothing to collect. Name a cache with --cache."
        )
    now = _now(root)
    found = [g for g in _entries(root / "tmp", "leftover", now) if g.age >= wanted.older]
    for folder in _folders(root / CLAIMS):
        found += [g for g in _entries(folder, "claim", now) if g.age > CLAIM_EXPIRY]
    if wanted.aside:
        found += [
            g for g in _entries(root / "aside", "aside", now) if now - g.path.lstat().st_ctime >= _GRACE
        ]
    if wanted.stimuli:
        found += _unused_stimuli(root, now)
    if wanted.empty:
        found += _empty_arrays(root, now)
    return found


def remove_garbage(location: Location, garbage: Iterable[Garbage]) -> list[tuple[Garbage, str]]:
    """Remove what `find_garbage` listed, but for arrays.

    Each is renamed into a private folder first, and looked at again there: a claim that was renewed, or a
    stimulus set that an array came to use in between, goes back to its place.

    Returns
    -------
    kept : list of (Garbage, why)
        What could not be removed, or is needed after all.
    """
    root, kept = _root(location), []
    for some in garbage:
        if some.kind == "empty":
            continue
        try:
            why = _remove(root, some)
        except CacheWriteError as error:
            why = str(error)
        if why:
            kept.append((some, why))
    for folder in _folders(root / CLAIMS):
        with suppress(OSError):  # claims are in it; who is about to put one there makes the folder again
            folder.rmdir()
    return kept


def _root(location: Location) -> Path:
    if not isinstance(location, Folder):
        raise RequestError(
            f"{location.url} is no folder, so there is nothing to collect: elsewhere nothing is written before it is "
            "whole. Name a folder with --cache."
        )
    return location.root


def _remove(root: Path, some: Garbage) -> str:
    with staging(root) as staged, writing(some.path):
        moved = staged / some.path.name
        try:
            os.rename(some.path, moved)
        except FileNotFoundError:
            return ""  # somebody else was quicker
        if some.kind == "claim" and moved.lstat().st_mtime > _touched(staged) - CLAIM_EXPIRY:
            with suppress(FileExistsError):
                os.link(moved, some.path)
            return "it was renewed in between"
        if some.kind == "stimuli" and some.path.name in _used_stimuli(root):
            publish_folder(moved, some.path)
            return "an array came to use it in between"
        if _is_folder(moved):
            shutil.rmtree(moved)
        else:
            moved.unlink()
    return ""


def _now(root: Path) -> float:
    with staging(root) as staged:
        return _touched(staged)


def _touched(folder: Path) -> float:
    """Return the time of a file touched just now: by the clock of whoever keeps the files."""
    with writing(folder):
        probe = folder / "now"
        probe.touch()
        os.utime(probe)
        return probe.stat().st_mtime


def _entries(folder: Path, kind: str, now: float) -> Iterator[Garbage]:
    if not _is_folder(folder):
        return
    for name in sorted(os.listdir(folder)):
        with suppress(FileNotFoundError):  # gone since it was listed
            yield _described(folder / name, kind, now)


def _folders(folder: Path) -> list[Path]:
    names = sorted(os.listdir(folder)) if _is_folder(folder) else []
    return [folder / name for name in names if _is_folder(folder / name)]


def _is_folder(path: Path) -> bool:
    """Whether it is a folder itself, and no link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _described(path: Path, kind: str, now: float) -> Garbage:
    walked = os.walk(path) if _is_folder(path) else ()  # which would follow a link given as its start
    inside = (Path(folder) / name for folder, folders, files in walked for name in (*folders, *files))
    found = [part.lstat() for part in (path, *inside)]
    nbytes = sum(part.st_size for part in found if stat.S_ISREG(part.st_mode))
    return Garbage(kind, path, nbytes, max(0.0, now - max(part.st_mtime for part in found)))


def _unused_stimuli(root: Path, now: float) -> list[Garbage]:
    used = _used_stimuli(root)
    sets = [folder for folder in _folders(root / "stimuli") if HEX_DIGEST.fullmatch(folder.name)]
    unused = [_described(folder, "stimuli", now) for folder in sets if folder.name not in used]
    return [some for some in unused if some.age >= _HOUR]


def _used_stimuli(root: Path) -> set[str]:
    """Return the digests of the stimulus sets of all arrays; raises `CacheCorrupt` when one does not say."""
    return {_stimuli_of(root, folder.name) for folder in _array_folders(root)}


def _stimuli_of(root: Path, key: str) -> str:
    digest = read_json(Folder(root), f"arrays/{key}/{SPEC}").get("stimuli")
    if not HEX_DIGEST.fullmatch(str(digest)):
        raise CacheCorrupt(
            f"The spec of array {key} does not say which stimulus set it is for. Run `featpipe cache verify`."
        )
    return str(digest)


def _empty_arrays(root: Path, now: float) -> list[Garbage]:
    without = [folder for folder in _array_folders(root) if not _has_commits(folder)]
    return [some for some in (_described(folder, "empty", now) for folder in without) if some.age >= _DAY]


def _has_commits(folder: Path) -> bool:
    try:
        return bool(os.listdir(folder / COMMITS))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _array_folders(root: Path) -> list[Path]:
    """List the folders of arrays, also behind links: their stimulus sets are in use."""
    arrays = root / "arrays"
    names = sorted(os.listdir(arrays)) if arrays.is_dir() else []
    return [arrays / name for name in names if HEX_DIGEST.fullmatch(name) and (arrays / name).is_dir()]
