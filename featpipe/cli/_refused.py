"""What the system refuses, as a line that says what to do."""

from __future__ import annotations

import errno

_ADVICE = {
    errno.ENOSPC: "The disk is full: free some space, or write to another one.",
    errno.EDQUOT: "The disk quota is used up: free some space, or write to another disk.",
    errno.EFBIG: "Files may not become that large here (ulimit -f, or the file system): raise the limit, or write "
    "to another disk.",
    errno.EROFS: "The file system is read-only: write to another one.",
    errno.EACCES: "There is no permission: ask the owner, or name another place.",
    errno.EPERM: "There is no permission: ask the owner, or name another place.",
    errno.EIO: "The disk or the network behind it failed: check it.",
    errno.EMFILE: "Too many files are open: raise the limit (ulimit -n), or use fewer workers.",
    errno.ENOMEM: "Memory ran out: close some programs, or raise the limit.",
    errno.ENOENT: "Check the path.",
    errno.ENAMETOOLONG: "Name a shorter path.",
}


def of_the_system(error: OSError | MemoryError) -> str:
    """Return what went wrong, and what to do about it."""
    if isinstance(error, MemoryError):
        what = str(error).rstrip(".") or "no more could be had"
        return (
            f"Memory ran out ({what}). Close some programs or raise the limit, or ask for less at a time: fewer "
            "layers, a smaller --batch-size or --shard-rows, a reduction such as :mean. What was committed is kept."
        )
    return f"{str(error).rstrip('.')}. {_ADVICE.get(error.errno or 0, 'Check the disk and the path.')}"
