"""Files that are there as a whole or not at all, and folders that results go to."""

from __future__ import annotations

import os
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
