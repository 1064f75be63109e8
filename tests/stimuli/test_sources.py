"""Folders, CSVs, and what is said about sources that are none."""

from __future__ import annotations

import os
import shutil

import pytest

from featpipe.errors import BrokenImage, DuplicateIds, EmptySource, StimulusError
from featpipe.stimuli import StimulusSet


@pytest.fixture
def contents(tiny_stimuli):
    return {path.name: path.read_bytes() for path in tiny_stimuli.iterdir()}


def test_the_same_images_are_one_set_however_they_are_kept(
    tiny_stimuli, contents, pack_zip, pack_tar, tmp_path
):
    wanted = StimulusSet.from_source(tiny_stimuli)
    table = tmp_path / "table.csv"
    lines = [f"image_{n},images/image_{n}.png" for n in range(20)]
    table.write_text("\n".join(["id,path", *lines]))
    inside = {f"./images/{name}": content for name, content in contents.items()}
    for source in (pack_zip(contents), pack_tar(contents), pack_tar(inside, "inside.tar"), table):
        found = StimulusSet.from_source(source)
        assert found.digest == wanted.digest
        assert found.open(7).tobytes() == wanted.open(7).tobytes()


def test_order_is_natural(tiny_stimuli):
    assert StimulusSet.from_source(tiny_stimuli).ids == tuple(f"image_{n}" for n in range(20))


def test_order_of_a_csv_is_kept_and_paths_may_go_anywhere(tiny_stimuli, tmp_path):
    (tmp_path / "lists").mkdir()
    table = tmp_path / "lists" / "table.csv"
    absolute = tiny_stimuli / "image_3.png"
    table.write_text(f"path,id,note\n../images/image_9.png,z,x\n{absolute},a,y\n", encoding="utf-8-sig")
    assert StimulusSet.from_source(table).ids == ("z", "a")


def test_folders_that_all_share_are_not_part_of_an_id(fill, png):
    folder = fill({"deep/er/cats/1.png": png, "deep/er/dogs/1.png": png})
    assert StimulusSet.from_source(folder).ids == ("cats/1", "dogs/1")


def test_hidden_litter_and_other_files_are_left_out(fill, png):
    litter = [".a.png", ".git/a.png", "__MACOSX/a.png", "@eaDir/a.png", "Thumbs.db", "notes.txt"]
    folder = fill({"a.png": png, **dict.fromkeys(litter, png)})
    assert StimulusSet.from_source(folder).ids == ("a",)


def test_links_are_followed_but_not_round_in_circles(fill, png, tmp_path):
    folder = fill({"a/1.png": png})
    elsewhere = fill({"2.png": png}, "elsewhere")
    (folder / "b").symlink_to(elsewhere)
    (folder / "c.png").symlink_to(elsewhere / "2.png")
    (folder / "a" / "loop").symlink_to(folder)
    (elsewhere / "self").symlink_to(elsewhere)
    assert StimulusSet.from_source(folder).ids == ("a/1", "b/2", "c")


@pytest.mark.parametrize("there", ["nowhere.png", "gone.png"])
def test_a_link_that_leads_nowhere_is_named(tiny_stimuli, there):
    (tiny_stimuli / "gone.png").symlink_to(there)
    with pytest.raises(StimulusError, match=rf"Link '.*gone.png' leads to '{there}', which does not exist"):
        StimulusSet.from_source(tiny_stimuli)


def test_two_files_with_one_id_are_named(tiny_stimuli):
    shutil.copy(tiny_stimuli / "image_3.png", tiny_stimuli / "image_3.jpg")
    with pytest.raises(DuplicateIds, match=r"id 'image_3': '.*image_3.(png|jpg)' and '.*image_3.(jpg|png)'"):
        StimulusSet.from_source(tiny_stimuli)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"notes.txt": b"x", "a/b.mat": b"x"}, r"holds no image; it has other files \(.mat, .txt\)"),
        ({}, "it has nothing at all"),
    ],
)
def test_a_folder_without_images_says_what_it_has(fill, tmp_path, entries, match):
    (tmp_path / "folder").mkdir()
    with pytest.raises(EmptySource, match=match):
        StimulusSet.from_source(fill(entries))


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("id,path\n", EmptySource, "has a header and no rows"),
        ("", StimulusError, "needs the columns id,path .* first line is ''"),
        ("id;path\na;b\n", StimulusError, "first line is 'id;path'"),
        ("id,path\na\n", StimulusError, "Line 2 of .* has no id or no path"),
        ("id,path\na,no.png\n", StimulusError, "Line 2 of .* names 'no.png', which is not a file"),
        (
            "id,path\na,images/image_1.png\na,images/image_2.png\n",
            DuplicateIds,
            "image_1.png' and .*image_2.png",
        ),
        ('id,path\n"a,images\n', StimulusError, "cannot be read as a CSV"),
        ("id,path\na\udcff,b\n", StimulusError, "cannot be read as a CSV: .*Save it as UTF-8"),
    ],
)
def test_a_csv_that_cannot_be_used_says_where(tiny_stimuli, tmp_path, text, error, match):
    (tmp_path / "table.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(error, match=match):
        StimulusSet.from_source(tmp_path / "table.csv")


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("nowhere/at/all", "does not exist: .* has no 'nowhere'. A source is a folder, .zip"),
        ("nowhere.h5:x", "'.*nowhere.h5:x' does not exist"),
        ("images/image_1.png", "is one image. A source is"),
        ("odd.mat", "has the extension '.mat'. A source is"),
        ("odd", "has no extension. A source is"),
    ],
)
def test_a_source_of_no_known_kind_says_what_one_is(tiny_stimuli, tmp_path, source, match):
    (tmp_path / "odd.mat").touch()
    (tmp_path / "odd").touch()
    with pytest.raises(StimulusError, match=match):
        StimulusSet.from_source(f"{tmp_path}/{source}")


def test_a_url_has_to_be_downloaded_first():
    with pytest.raises(StimulusError, match=r"is a URL. Download it first"):
        StimulusSet.from_source("https://example.org/images.zip")


def test_name_and_source_are_without_the_path(tiny_stimuli, pack_zip, contents, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_stimuli)
    assert StimulusSet.from_source(".").name == "images"
    found = StimulusSet.from_source(pack_zip(contents, "set.v2.zip")).manifest
    assert (found.name, found.source) == ("set.v2", "set.v2.zip")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tiny_stimuli):
    (tiny_stimuli / "image_4.png").chmod(0)
    with pytest.raises(StimulusError, match=r"image_4.png' cannot be read: Permission denied"):
        StimulusSet.from_source(tiny_stimuli)


def test_one_broken_image_among_many_is_named(tiny_stimuli):
    (tiny_stimuli / "image_5.png").write_bytes(b"")
    with pytest.raises(BrokenImage, match=r"^Image '.*image_5.png' cannot be decoded: the file is empty"):
        StimulusSet.from_source(tiny_stimuli)
    (tiny_stimuli / "image_11.png").write_bytes(b"no image at all")
    with pytest.raises(BrokenImage, match=r"^2 of 20 images cannot be used. First: Image '.*image_5.png'"):
        StimulusSet.from_source(tiny_stimuli)
