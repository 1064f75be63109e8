"""How anything becomes visible in a cache: whole, durable, and only where nothing was before.

Everything is written below ``CACHE/tmp`` first and forced to disk. A folder is then renamed to its place:
the rename fails where a folder with something in it is already there, so the first writer wins. A single
file is linked to its place, which fails where a file is already there. Nothing is ever opened for writing
at the place where others look for it.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featpipe.errors import CacheWriteError, FeatpipeError

_TAKEN = {errno.EEXIST, errno.ENOTEMPTY}
# File systems without hard links, or (BeeGFS) without hard links between folders.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSYS}
_ADVICE = {
    errno.ENOSPC: "The disk is full. Free some space, or choose another cache",
    errno.EDQUOT: "The disk quota is used up. Free some space, or choose another cache",
    errno.EFBIG: "Files may not become that large there (ulimit -f, or the file system). Raise the limit, take fewer "
    "--shard-rows for a new stimulus set, or choose another cache",
    errno.EROFS: "The file system is read-only. Choose another cache to write to",
    errno.EACCES: "There is no permission to write there. Ask its owner, or choose another cache",
    errno.EPERM: "There is no permission to write there. Ask its owner, or choose another cache",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says when a write fails into `CacheWriteError` with advice."""
    try:
        yield
    except FeatpipeError:  # which has its advice already, such as a source that cannot be reached
        raise
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "Check the disk, or choose another cache")
        raise CacheWriteError(
            f"{path} could not be written: {error.strerror or error}. {advice}; shards that are committed "
            "stay valid, and the next run goes on after them."
        ) from error


def inside(root: Path, place: Path) -> Path:
    """Return a place in the cache; raises `CacheWriteError` where a link on the way leads out of it."""
    there, above = os.path.realpath(place.parent), os.path.realpath(root)
    if os.path.commonpath([there, above]) != above:
        raise CacheWriteError(
            f"{place} is behind a link that leads out of the cache, to {there}; nothing is written there. Replace the "
            "link by what it leads to, or name that cache itself."
        )
    return place


@contextmanager
def staging(root: Path) -> Iterator[Path]:
    """Give a private folder below ``CACHE/tmp``, gone at the end with all that was left in it."""
    folder = root / "tmp" / secrets.token_hex(16)
    with writing(root):
        make_folders(folder.parent)
        inside(root, folder).mkdir()
        try:
            yield folder
        finally:
            with suppress(OSError):  # what cannot be cleared away does no harm there
                shutil.rmtree(folder, ignore_errors=True)


def write_file(path: Path, buffers: Iterable[bytes | memoryview]) -> None:
    """Write a new file and force it to disk."""
    with open(path, "xb") as file:
        for buffer in buffers:
            file.write(buffer)
        file.flush()
        os.fsync(file.fileno())


def publish_folder(staged: Path, place: Path) -> bool:
    """Move a folder to its place, unless something is there already; tell whether it was moved."""
    for folder, _, _ in os.walk(staged, topdown=False, onerror=_refuse):
        sync_folder(Path(folder))
    make_folders(place.parent)
    try:
        os.rename(staged, place)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return False
    sync_folder(place.parent)
    return True


def _refuse(error: OSError) -> None:
    raise error  # os.walk would go on, and the folder would be published without being forced to disk


def publish_file(root: Path, place: Path, buffers: Iterable[bytes | memoryview]) -> bool:
    """Put a file at its place, unless one is there already; tell whether it was put.

    Without hard links the file is renamed, which replaces one that appeared in between. That is safe for
    the only files published this way, commit records: all that can exist for a shard describe the same bytes.
    """
    with staging(root) as folder:
        staged = folder / place.name
        write_file(staged, buffers)
        make_folders(place.parent)
        try:
            os.link(staged, place)
        except FileExistsError:
            # NFS may repeat a request that had succeeded
            return os.stat(staged).st_nlink > 1
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if place.exists():
                return False
            os.rename(staged, place)
        sync_folder(place.parent)
    return True


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, each durable in its parent."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync by themselves
            raise
    finally:
        os.close(handle)


def set_aside(root: Path, path: Path, name: str) -> Path | None:
    """Move a damaged file or folder to ``CACHE/aside/NAME-…``; None when it is no longer there."""
    place = root / "aside" / f"{name}-{secrets.token_hex(4)}"
    with writing(path):
        make_folders(place.parent)
        try:
            os.rename(path, inside(root, place))
        except FileNotFoundError:
            return None
        sync_folder(path.parent)
    return place
