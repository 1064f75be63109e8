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


# What the loader of libraries, the starter of threads and torch say when they get no memory.
_NO_MEMORY = (
    "failed to map segment",
    "Cannot allocate memory",
    "can't allocate memory",
    "can't start new thread",
)


def of_the_system(error: OSError) -> str:
    """Return what the system refused, and what to do about it."""
    return f"{str(error).rstrip('.')}. {_ADVICE.get(error.errno or 0, 'Check the disk and the path.')}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def out_of_memory(error: Exception) -> str:
    """Return what there was no memory for, and what to do about it."""
    what = str(error).strip().rstrip(".") or "no more could be had"
    return (
        f"Memory ran out ({what}). Close some programs or raise the limit, or ask for less at a time: fewer layers, a "
        "smaller --batch-size or --shard-rows, a reduction such as :mean. What was committed is kept."
    )
