"""Images that are files of their own: a folder, or a CSV that lists them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from featpipe.errors import EmptySource, StimulusError
from featpipe.stimuli._ids import SUFFIXES, ids_of, is_image, is_litter, natural_order, require_unique
from featpipe.stimuli._images import Part, read_file


@dataclass(frozen=True)
class FileImages:
    """One file per image."""

    ids: tuple[str, ...]
    paths: tuple[str, ...]

    def file(self, position: int) -> str:
        return self.paths[position]

    @property
    def parts(self) -> list[Part]:
        return [Part((path,), range(row, row + 1)) for row, path in enumerate(self.paths)]

    def read(self, position: int) -> bytes:
        return read_file(self.paths[position], self.file(position))

    @classmethod
    def from_folder(cls, root: Path) -> Self:
        """Find the images of a folder and all folders in it, in natural order.

        Left out: hidden files and folders, what systems put there (``__MACOSX``, ``Thumbs.db`` …), and files
        without an image's extension. Links to files are read, links to folders followed, except back to
        a folder that they lie in. A link that leads nowhere is an error.
        """
        found = list(_walk(str(root), "", frozenset({os.path.realpath(root)})))
        images = [path for path in found if is_image(path)]
        if not images:
            raise no_images(str(root), found)
        ids = ids_of(images)
        files = [os.path.join(root, path) for path in images]
        require_unique(ids, files)
        order = natural_order(ids)
        return cls(tuple(ids[row] for row in order), tuple(files[row] for row in order))

    @classmethod
    def from_csv(cls, table: Path) -> Self:
        """Read a CSV with the columns ``id,path``, in its order; paths are relative to the CSV.

        More columns are allowed. Any extension is, and so are absolute paths: the table is the user's own.
        """
        ids, paths = [], []
        for line, (name, path) in _rows(table):
            if not name or not path:
                raise StimulusError(f"Line {line} of {str(table)!r} has no id or no path. Fill both in.")
            ids.append(name)
            paths.append(str(table.parent / path))
            if not os.path.isfile(paths[-1]):
                raise StimulusError(
                    f"Line {line} of {str(table)!r} names {path!r}, which is not a file ({paths[-1]}). Paths "
                    "are relative to the CSV."
                )
        if not ids:
            raise EmptySource(f"{str(table)!r} lists no image: it has a header and no rows.")
        require_unique(ids, paths)
        return cls(tuple(ids), tuple(paths))


def no_images(source: str, found: Sequence[str]) -> EmptySource:
    """Return the error for a source without images, saying what it has instead."""
    others = sorted({os.path.splitext(name)[1] or "no extension" for name in found})
    has = f"other files ({', '.join(others[:5])})" if found else "nothing at all"
    return EmptySource(
        f"{source!r} holds no image; it has {has}. Images have the extensions {', '.join(sorted(SUFFIXES))}; "
        "hidden files and folders are left out."
    )


def _walk(folder: str, prefix: str, above: frozenset[str]) -> Iterator[str]:
    """Yield the relative path of every file, hidden ones and litter aside."""
    try:
        with os.scandir(folder) as listed:
            entries = sorted((entry for entry in listed if not is_litter(entry.name)), key=lambda e: e.name)
    except OSError as error:
        raise StimulusError(f"Folder {folder!r} cannot be listed: {error.strerror}.") from error
    for entry in entries:
        link = entry.is_symlink()  # one to itself makes the methods of an entry raise
        is_folder = os.path.isdir(entry.path) if link else entry.is_dir()
        is_file = os.path.isfile(entry.path) if link else entry.is_file()
        if is_folder:
            real = os.path.realpath(entry.path)
            if real not in above:
                yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {real})
        elif is_file:
            yield prefix + entry.name
        elif link:
            raise StimulusError(
                f"Link {entry.path!r} leads to {os.readlink(entry.path)!r}, which does not exist. Remove or repair it."
            )


def _rows(table: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield (line, (id, path)) of a CSV."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or ()
            if not {"id", "path"} <= set(columns):
                raise StimulusError(
                    f"{str(table)!r} needs the columns id,path separated by commas; its first line is "
                    f"{','.join(columns)!r}."
                )
            for row in reader:
                yield reader.line_num, ((row["id"] or "").strip(), (row["path"] or "").strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StimulusError(
            f"{str(table)!r} cannot be read as a CSV: {error}. Save it as UTF-8 with commas."
        ) from error
