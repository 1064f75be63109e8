"""Images inside a ``.zip`` or ``.tar``, read in place from many threads; nothing is extracted.

A compressed tar is refused: to reach one image, all before it would be unpacked again.
"""

from __future__ import annotations

import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Generic, Self, TypeVar

from featpipe.errors import StimulusError, UnsafePath
from featpipe.stimuli._damage import Unusable, damage_as
from featpipe.stimuli._files import no_images
from featpipe.stimuli._ids import ids_of, is_image, natural_order, require_unique
from featpipe.stimuli._images import Part, opened, read_file, require_storable

_UNPACK = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_Member = TypeVar("_Member")


@dataclass(frozen=True)
class _ArchiveImages(Generic[_Member]):
    path: Path
    ids: tuple[str, ...]
    names: tuple[str, ...]
    members: tuple[_Member, ...]

    def file(self, position: int) -> str:
        return _label(self.path, self.names[position])

    @property
    def parts(self) -> list[Part]:
        return [Part((self.path,), range(len(self.ids)), list(self.names))]

    @classmethod
    def _from_members(cls, path: Path, members: Iterable[tuple[str, _Member]]) -> Self:
        """Take the images among (name, member), in natural order."""
        found = [(_safe(path, name), member) for name, member in members]
        images = [(name, member) for name, member in found if is_image(name)]
        if not images:
            raise no_images(str(path), [name for name, _ in found])
        names = [name for name, _ in images]
        ids = ids_of(names)
        require_unique(ids, (_label(path, name) for name in names))
        order = natural_order(ids)
        return cls(
            path,
            tuple(ids[row] for row in order),
            tuple(names[row] for row in order),
            tuple(images[row][1] for row in order),
        )


class ZipImages(_ArchiveImages[zipfile.ZipInfo]):
    """Images of a zip archive. Every read opens the file for itself, so that threads share no position."""

    @classmethod
    def from_zip(cls, path: Path) -> Self:
        """List the archive; raises `UnsafePath` for links and names that leave it."""
        with damage_as(lambda why: _unreadable(path, "zip", why)), zipfile.ZipFile(path) as archive:
            entries = [info for info in archive.infolist() if not info.is_dir()]
        for info in entries:
            if stat.S_ISLNK(info.external_attr >> 16):
                raise _link(path, info.filename)
        return cls._from_members(path, ((info.filename.replace("\\", "/"), info) for info in entries))

    def read(self, position: int) -> bytes:
        info = self.members[position]
        if info.flag_bits & 1:
            raise Unusable("it is encrypted; pack the archive without a password")
        require_storable(info.file_size)
        with (
            opened(self.path, self.file(position)) as archive,
            damage_as(lambda why: Unusable(f"its entry in the archive is damaged ({why})")),
        ):
            seek_content(archive, info)
            with zipfile.ZipExtFile(archive, "r", info) as content:
                return content.read()


class TarImages(_ArchiveImages[tuple[int, int]]):
    """Images of an uncompressed tar archive, each known by (offset, size)."""

    @classmethod
    def from_tar(cls, path: Path) -> Self:
        """List the archive; raises `UnsafePath` for links and names that leave it."""
        _require_uncompressed(path)
        with damage_as(lambda why: _unreadable(path, "tar", why)), tarfile.open(path, "r:") as archive:
            entries = archive.getmembers()
        for entry in entries:
            if entry.issym() or entry.islnk():
                raise _link(path, entry.name, entry.linkname)
            if entry.issparse():
                raise StimulusError(
                    f"{_label(path, entry.name)!r} is stored as a sparse file. Pack it without --sparse."
                )
        plain = ((e.name, (e.offset_data, e.size)) for e in entries if e.isfile())
        return cls._from_members(path, plain)

    def read(self, position: int) -> bytes:
        offset, size = self.members[position]
        return read_file(self.path, self.file(position), offset=offset, size=size)


def seek_content(archive: IO[bytes], info: zipfile.ZipInfo) -> None:
    """Move an open zip file to the content of an entry: behind its local header."""
    archive.seek(info.header_offset)
    header = archive.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("no local header where the directory says")
    name, extra = struct.unpack("<HH", header[26:30])
    archive.seek(name + extra, 1)


def _label(path: Path, name: str) -> str:
    return f"{path}:{name}"


def _safe(path: Path, name: str) -> str:
    """Return an entry's name; raises `UnsafePath` where it is absolute or climbs out."""
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in PurePosixPath(name).parts:
        raise UnsafePath(
            f"{str(path)!r} has an entry {name!r}, which leaves the archive. Pack it again with relative "
            "names; do not unpack it if it came from a stranger."
        )
    return str(PurePosixPath(name))  # tar writes ./image.png


def _unreadable(path: Path, kind: str, why: str) -> StimulusError:
    return StimulusError(f"{str(path)!r} cannot be read as a {kind} archive: {why}. Fetch or pack it again.")


def _link(path: Path, name: str, target: str = "") -> UnsafePath:
    leads = f" to {target!r}" if target else ""
    return UnsafePath(
        f"{str(path)!r} has an entry {name!r} that is a link{leads}; links in archives are not followed. "
        "Pack the files themselves (tar --dereference --hard-dereference)."
    )


def _require_uncompressed(path: Path) -> None:
    start = read_file(path, str(path), offset=0, size=8)
    tool = next((tool for magic, tool in _UNPACK.items() if start.startswith(magic)), None)
    if tool:
        raise StimulusError(
            f"{str(path)!r} is a compressed tar, in which no image can be reached without unpacking all "
            f"before it. Run `{tool} --keep {path.name}` and give the .tar, or pack a .zip."
        )
