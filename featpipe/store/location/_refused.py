"""What the system says when it refuses to read, turned into errors that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featpipe.errors import CacheReadError

_ADVICE = {
    errno.EACCES: "There is no permission to read it. Ask its owner, or choose another cache",
    errno.EPERM: "There is no permission to read it. Ask its owner, or choose another cache",
    errno.EIO: "The disk or the network behind it failed. Check it, and run `featpipe cache verify` afterwards",
    errno.ESTALE: "The server replaced the file meanwhile. Run the command again",
    errno.EMFILE: "Too many files are open. Raise the limit (ulimit -n), or use fewer workers",
    errno.ENFILE: "Too many files are open on this machine. Close some programs, and run the command again",
    errno.ENOMEM: "Memory ran out. Close some programs, or take fewer stimuli or layers at a time",
}


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn what the system says when a read fails into `CacheReadError` with advice.

    A file or folder that is not there is for the caller to judge, and passes as it is.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except OSError as error:
        if isinstance(error, CacheReadError):
            raise
        advice = _ADVICE.get(error.errno or 0, "Check the disk, or choose another cache")
        raise CacheReadError(
            f"{error.filename or path} could not be read: {error.strerror or error}. {advice}; nothing in the cache "
            "was changed."
        ) from error


def is_folder(path: Path) -> bool:
    """Whether a folder is there; raises `CacheReadError` where that cannot be told."""
    with reading(path):
        return path.is_dir()
