"""Ids of images from the names of their files, and the order in which they come."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

from natsort import natsort_keygen

from featpipe.errors import DuplicateIds

SUFFIXES = frozenset(
    {
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".bmp",
        ".dib",
        ".gif",
        ".tif",
        ".tiff",
        ".webp",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".j2k",
    }
)
# What systems put beside images: resource forks, thumbnails, bins. Hidden names start with a dot.
_LITTER = frozenset({"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN", "lost+found"})

_natural = natsort_keygen()


def is_litter(name: str) -> bool:
    """Tell whether a file or folder is hidden, or put there by a system."""
    return name.startswith(".") or name in _LITTER


def is_image(path: str) -> bool:
    """Tell from its relative path whether a file is taken as an image."""
    return os.path.splitext(path)[1].lower() in SUFFIXES and not any(map(is_litter, path.split("/")))


def ids_of(paths: Sequence[str]) -> list[str]:
    """Return an id per relative path: without extension and without the folders that all paths share.

    Ids are in Unicode's composed form (NFC), so that a folder from a Mac has the ids of its archive.
    """
    parts = [path.split("/") for path in paths]
    shared = _n_shared([p[:-1] for p in parts])
    return [unicodedata.normalize("NFC", os.path.splitext("/".join(p[shared:]))[0]) for p in parts]


def _n_shared(folders: Sequence[Sequence[str]]) -> int:
    """Return how many leading folders are the same in all."""
    return sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False)))


def natural_order(ids: Sequence[str]) -> list[int]:
    """Return the positions that sort ids naturally, folder by folder: ``image_2`` before ``image_10``."""

    def key(position: int) -> tuple[Any, str]:
        name = ids[position]
        parts = tuple(map(_natural, name.split("/")))
        return parts, name  # the name itself decides between image_1 and image_01

    return sorted(range(len(ids)), key=key)


def require_unique(ids: Sequence[str], files: Iterable[str]) -> None:
    """Raise `DuplicateIds` naming both files where two images have one id."""
    if len(set(ids)) == len(ids):
        return
    seen: dict[str, str] = {}
    for name, file in zip(ids, files, strict=True):
        if name in seen:
            raise DuplicateIds(
                f"Two images have the id {name!r}: {seen[name]!r} and {file!r}. Rename one of them, or give "
                "ids of your own in a CSV with the columns id,path."
            )
        seen[name] = file
