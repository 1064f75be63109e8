from __future__ import annotations

import unicodedata

import pytest

from featpipe.errors import DuplicateIds
from featpipe.stimuli._ids import ids_of, is_image, natural_order, require_unique


@pytest.mark.parametrize(
    ("paths", "ids"),
    [
        (["set/a.png", "set/b.tar.png"], ["a", "b.tar"]),
        (["x/y/a.png", "x/z/a.png"], ["y/a", "z/a"]),
        (["x/y/only.jpg"], ["only"]),
        (["a.png", "x/b.png"], ["a", "x/b"]),
        (["ab/1.png", "ac/1.png"], ["ab/1", "ac/1"]),  # a shared first letter is not a shared folder
    ],
)
def test_ids_lose_extension_and_the_folders_that_all_share(paths, ids):
    assert ids_of(paths) == ids


def test_ids_of_a_mac_are_those_of_its_archive():
    assert ids_of([unicodedata.normalize("NFD", "é.png"), "b.png"])[0] == unicodedata.normalize("NFC", "é")


def test_order_is_natural_folder_by_folder():
    ids = ["92/b10", "118/b1", "92/b2", "b", "92/b02", "92-x/a"]
    assert [ids[row] for row in natural_order(ids)] == ["92/b02", "92/b2", "92/b10", "92-x/a", "118/b1", "b"]


def test_order_does_not_depend_on_the_order_of_listing(rng):
    letters = rng.choice(list("ab01/."), (500, 5))
    ids = sorted({"".join(word) for word in letters})
    shuffled = list(rng.permutation(ids))
    assert [ids[r] for r in natural_order(ids)] == [shuffled[r] for r in natural_order(shuffled)]


@pytest.mark.parametrize(
    "path", ["a.txt", "a", ".a.png", "x/.y/a.png", "__MACOSX/a.png", "@eaDir/a.jpg", "Thumbs.db"]
)
def test_what_systems_put_beside_images_is_no_image(path):
    assert not is_image(path)


@pytest.mark.parametrize("path", ["a.PNG", "x/a.JpEg", "a.tiff"])
def test_an_extension_in_any_case_is_an_image(path):
    assert is_image(path)


def test_two_files_with_one_id_are_both_named():
    with pytest.raises(DuplicateIds, match=r"'a': 'x/a.png' and 'x/a.jpg'"):
        require_unique(["a", "a"], ["x/a.png", "x/a.jpg"])
