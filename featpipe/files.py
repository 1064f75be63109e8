"""Files that are there as a whole or not at all, and folders that results go to."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from featpipe.errors import RecipeError


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name once all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep a folder for the results of one process while they are made; whatever ends it gives the folder free.

    Raises
    ------
    RecipeError
        Another process is writing there, see also `check_folder`.
    """
    check_folder(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    claim = folder / ".writing"
    with claim.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RecipeError(
                f"--out {folder}: {file.read() or 'another process'} is writing a run there. Wait for it, or name "
                "another --out."
            ) from error
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield
        finally:
            claim.unlink(missing_ok=True)
            if made and not any(folder.iterdir()):
                folder.rmdir()


def check_folder(path: Path) -> None:
    """Refuse a folder that results could not be written to: said before the work, which may take hours.

    Raises
    ------
    RecipeError
        It is a file, or nothing can be written there.
    """
    if path.exists() and not path.is_dir():
        raise RecipeError(f"--out {path} is a file; name a folder.")
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise RecipeError(f"--out {path}: nothing can be written in {there}. Name another --out.")
