from __future__ import annotations

import io
import pickle
import stat
import struct
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from featpipe.errors import BrokenImage, DuplicateIds, EmptySource, StimulusError, UnsafePath
from featpipe.stimuli import StimulusSet


@pytest.fixture
def contents(tiny_stimuli):
    return {path.name: path.read_bytes() for path in tiny_stimuli.iterdir()}


@pytest.fixture(params=["zip", "tar"])
def pack(request):
    return request.getfixturevalue(f"pack_{request.param}")


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_every_compression_of_zip_is_read(tiny_stimuli, contents, pack_zip, compression):
    packed = StimulusSet.from_source(pack_zip(contents, compression=compression))
    assert packed.digest == StimulusSet.from_source(tiny_stimuli).digest


def test_threads_and_workers_read_at_once(tiny_stimuli, contents, pack):
    packed = pickle.loads(pickle.dumps(StimulusSet.from_source(pack(contents))))
    plain = StimulusSet.from_source(tiny_stimuli)
    rows = [row for row in range(20) for _ in range(5)]
    with ThreadPoolExecutor(8) as pool:
        for row, image in zip(rows, pool.map(packed.open, rows), strict=True):
            assert image.tobytes() == plain.open(row).tobytes()


def test_a_zip_behind_other_bytes_is_read(contents, pack_zip):
    """As a self-extracting archive is."""
    path = pack_zip(contents)
    digest = StimulusSet.from_source(path).digest
    path.write_bytes(b"#!/bin/sh\nexit\n" + path.read_bytes())
    assert StimulusSet.from_source(path).digest == digest


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "x/../../a.png"])
def test_a_name_that_leaves_the_archive_is_refused(pack, png, name):
    with pytest.raises(UnsafePath, match=r"has an entry .*a.png', which leaves the archive"):
        StimulusSet.from_source(pack({"b.png": png, name: png}))


@pytest.mark.parametrize("name", ["..\\a.png", "C:\\a.png"])
def test_a_name_that_leaves_the_archive_on_windows_is_refused(pack_zip, png, name):
    with pytest.raises(UnsafePath, match="which leaves the archive"):
        StimulusSet.from_source(pack_zip({"b.png": png, name: png}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_in_a_tar_is_refused(tmp_path, kind):
    link = tarfile.TarInfo("a.png")
    link.type, link.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(link)
    with pytest.raises(UnsafePath, match=r"entry 'a.png' that is a link to '/etc/passwd'"):
        StimulusSet.from_source(tmp_path / "x.tar")


def test_a_link_in_a_zip_is_refused(tmp_path):
    link = zipfile.ZipInfo("a.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UnsafePath, match=r"entry 'a.png' that is a link"):
        StimulusSet.from_source(tmp_path / "x.zip")


def test_litter_is_left_out_and_ids_are_unique(pack, png):
    packed = pack({"s/a.png": png, "__MACOSX/s/._a.png": b"", "s/.b.png": b"", "readme.txt": b""})
    assert StimulusSet.from_source(packed).ids == ("a",)
    with pytest.raises(DuplicateIds, match=r"packed\.(zip|tar):a.png' and '.*:a.jpg'"):
        StimulusSet.from_source(pack({"a.png": png, "a.jpg": png}))


def test_an_archive_without_images_says_what_it_has(pack):
    with pytest.raises(EmptySource, match=r"holds no image; it has other files \(.txt\)"):
        StimulusSet.from_source(pack({"readme.txt": b"x"}))


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_what_is_no_archive_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(StimulusError, match=r"cannot be read as a (zip|tar) archive"):
        StimulusSet.from_source(tmp_path / name)


def test_a_truncated_archive_is_refused(contents, pack):
    path = pack(contents)
    path.write_bytes(path.read_bytes()[:-12_000])
    with pytest.raises(StimulusError, match=r"cannot be read as a (zip|tar) archive"):
        StimulusSet.from_source(path)


@pytest.mark.parametrize(
    ("name", "mode", "tool"),
    [("x.tar.gz", "w:gz", "gunzip"), ("x.tbz2", "w:bz2", "bunzip2"), ("x.tar", "w:xz", "unxz")],
)
def test_a_compressed_tar_says_how_to_unpack_it(pack_tar, png, name, mode, tool):
    with pytest.raises(StimulusError, match=f"is a compressed tar.*Run `{tool} --keep {name}`"):
        StimulusSet.from_source(pack_tar({"a.png": png}, name, mode))


def test_a_damaged_entry_is_named_and_can_be_left_out(contents, pack_zip):
    path = pack_zip(contents, compression=zipfile.ZIP_STORED)
    stored = bytearray(path.read_bytes())
    stored[stored.index(contents["image_3.png"]) + 200] ^= 1
    path.write_bytes(stored)
    with pytest.raises(
        BrokenImage, match=r"zip:image_3.png' cannot be decoded: its entry .* is damaged \(Bad CRC"
    ):
        StimulusSet.from_source(path)
    kept = StimulusSet.from_source(path, skip_broken=True)
    assert "image_3" not in kept.ids
    assert kept.skipped[0][0].endswith("packed.zip:image_3.png")


def test_an_encrypted_entry_is_named(pack_zip, png):
    path = pack_zip({"a.png": png})
    stored = bytearray(path.read_bytes())
    stored[stored.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(stored)
    with pytest.raises(BrokenImage, match=r"a.png' cannot be decoded: it is encrypted"):
        StimulusSet.from_source(path)


def test_an_entry_that_says_it_is_huge_is_not_unpacked(pack_zip, png):
    path = pack_zip({"a.png": png})
    stored = bytearray(path.read_bytes())
    struct.pack_into("<I", stored, stored.index(b"PK\x01\x02") + 24, 1 << 31)
    path.write_bytes(stored)
    with pytest.raises(StimulusError, match=r"a.png' is too large: 2147483648 bytes stored"):
        StimulusSet.from_source(path)


def test_a_tar_of_sparse_files_is_refused(tmp_path):
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.png",
                        "GNU.sparse.realsize": "512"}  # fmt: skip
    content = b"1\n0\n512\n".ljust(512, b"\0") + bytes(512)
    info.size = len(content)
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(content))
    with pytest.raises(StimulusError, match=r"a.png' is stored as a sparse file"):
        StimulusSet.from_source(tmp_path / "x.tar")
