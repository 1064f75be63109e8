"""Packers: the same images in every kind of container."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pytest
from PIL import Image


@pytest.fixture
def encode():
    """Return a function that gives an image's bytes in some format."""

    def encode(image, kind="PNG", **options):
        if not isinstance(image, Image.Image):
            image = Image.fromarray(image)
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    return encode


@pytest.fixture
def png(encode):
    """A small valid PNG."""
    return encode(Image.new("RGB", (4, 3), (200, 100, 50)))


@pytest.fixture
def pack_zip(tmp_path):
    """Return a function (entries, name) that writes a zip archive of {name: bytes}."""

    def pack(entries, name="packed.zip", compression=zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / name, "w", compression) as archive:
            for entry, content in entries.items():
                archive.writestr(entry, content)
        return tmp_path / name

    return pack


@pytest.fixture
def pack_tar(tmp_path):
    """Return a function (entries, name) that writes a tar archive of {name: bytes}."""

    def pack(entries, name="packed.tar", mode="w"):
        with tarfile.open(tmp_path / name, mode) as archive:
            for entry, content in entries.items():
                info = tarfile.TarInfo(entry)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return tmp_path / name

    return pack


@pytest.fixture
def fill(tmp_path):
    """Return a function (entries, name) that writes a folder of {relative path: bytes}."""

    def fill(entries, name="folder"):
        for entry, content in entries.items():
            path = tmp_path / name / entry
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / name

    return fill
