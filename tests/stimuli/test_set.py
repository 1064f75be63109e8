"""What is remembered, what is checked again, and what is made of a set."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import featpipe.remembered
from featpipe.errors import BrokenImage, DuplicateIds, EmptySource, ImageTooLarge, StimulusError
from featpipe.stimuli import StimulusSet, _inspect


@pytest.fixture
def stimuli(tiny_stimuli):
    return StimulusSet.from_source(tiny_stimuli)


@pytest.fixture
def looks(monkeypatch):
    """Positions whose stored bytes were read for hashing; files count as settled at once."""
    seen = []
    look = _inspect.look

    def counted(images, position, **options):
        seen.append(position)
        return look(images, position, **options)

    monkeypatch.setattr(_inspect, "look", counted)
    monkeypatch.setattr(featpipe.remembered, "_SETTLED_SECONDS", -3600.0)
    return seen


def test_a_second_opening_of_a_thousand_files_reads_none(fill, png, looks):
    folder = fill({f"{n}.png": png for n in range(1000)})
    first = StimulusSet.from_source(folder)
    assert sorted(looks) == list(range(1000))
    looks.clear()
    assert StimulusSet.from_source(folder).manifest == first.manifest
    assert not looks


@pytest.mark.parametrize("kind", ["pack_zip", "pack_tar"])
def test_a_second_opening_of_an_archive_reads_none(request, png, looks, kind):
    path = request.getfixturevalue(kind)({f"{n}.png": png for n in range(30)})
    digest = StimulusSet.from_source(path).digest
    looks.clear()
    assert StimulusSet.from_source(path).digest == digest
    assert not looks


def test_only_what_changed_is_read_again(fill, png, encode, looks):
    folder = fill({f"{n:03}.png": png for n in range(100)})
    before = StimulusSet.from_source(folder)
    looks.clear()
    (folder / "042.png").write_bytes(encode(np.zeros((2, 2), np.uint8)))
    after = StimulusSet.from_source(folder)
    assert [row for row in range(100) if before.sha256[row] != after.sha256[row]] == [42]
    assert min(looks) == 42
    assert len(looks) < 40  # those that were taken in work ahead


def test_rehash_reads_everything(tiny_stimuli, looks):
    StimulusSet.from_source(tiny_stimuli)
    StimulusSet.from_source(tiny_stimuli, rehash=True)
    assert len(looks) == 40


def test_a_table_that_is_wrong_puts_no_wrong_image_under_a_digest(tiny_stimuli, encode, looks):
    """Same size and times restored: the table cannot know, but reading does."""
    file = tiny_stimuli / "image_3.png"
    stimuli, before = StimulusSet.from_source(tiny_stimuli), os.stat(file)
    stored = bytearray(file.read_bytes())
    stored[-1] ^= 1
    file.write_bytes(stored)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(StimulusError, match=r"image_3.png' changed after the stimulus set was opened"):
        stimuli.open(3)


def test_mtime_does_not_change_the_digest(tiny_stimuli, stimuli):
    os.utime(tiny_stimuli / "image_3.png", (1, 1))
    assert StimulusSet.from_source(tiny_stimuli).digest == stimuli.digest


def test_the_name_of_one_file_changes_the_digest(tiny_stimuli, stimuli):
    (tiny_stimuli / "image_19.png").rename(tiny_stimuli / "image_20.png")
    found = StimulusSet.from_source(tiny_stimuli)
    assert found.sha256 == stimuli.sha256
    assert found.digest != stimuli.digest


def test_a_file_that_vanished_is_named(tiny_stimuli, stimuli):
    (tiny_stimuli / "image_3.png").unlink()
    with pytest.raises(StimulusError, match=r"image_3.png' cannot be read: No such file"):
        stimuli.open(3)


def test_images_come_from_many_threads(tiny_stimuli, stimuli):
    rows = [row for row in range(20) for _ in range(10)]
    with ThreadPoolExecutor(8) as pool:
        for row, image in zip(rows, pool.map(stimuli.open, rows), strict=True):
            assert image == Image.open(tiny_stimuli / f"image_{row}.png").copy()


def test_progress_is_told(tiny_stimuli):
    told = []
    StimulusSet.from_source(tiny_stimuli, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (20, 20)


@pytest.fixture
def damaged(tiny_stimuli):
    """One image without content, one truncated, one too large."""
    (tiny_stimuli / "image_2.png").write_bytes(b"")
    whole = (tiny_stimuli / "image_7.png").read_bytes()
    (tiny_stimuli / "image_7.png").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (3000, 3000)).save(tiny_stimuli / "image_9.png")
    return tiny_stimuli


def test_broken_images_can_be_listed_and_left_out(damaged, looks):
    for _ in range(2):  # the second time from the table
        kept = StimulusSet.from_source(damaged, skip_broken=True, max_pixels=1_000_000)
        assert [os.path.basename(file) for file, _ in kept.skipped] == [
            "image_2.png",
            "image_7.png",
            "image_9.png",
        ]
        reasons = [reason for _, reason in kept.skipped]
        assert reasons[0] == "the file is empty"
        assert "truncated" in reasons[1]
        assert reasons[2].startswith("3000 × 3000 = 9000000 pixels")
        assert kept.ids == tuple(f"image_{n}" for n in range(20) if n not in (2, 7, 9))
        assert all(kept.open(row).size == (48, 40) for row in range(17))
    assert len(looks) == 20


def test_a_truncated_image_is_found_when_it_is_opened(damaged):
    (damaged / "image_2.png").unlink()
    found = StimulusSet.from_source(damaged)
    with pytest.raises(BrokenImage, match=r"image_7.png' cannot be decoded: .*truncated.* --skip-broken"):
        found.open(found.ids.index("image_7"))


def test_a_bomb_is_refused_up_front(tiny_stimuli):
    Image.new("1", (3000, 3000)).save(tiny_stimuli / "image_9.png")
    with pytest.raises(
        ImageTooLarge, match=r"^Image '.*image_9.png' is too large: 3000 × 3000 = 9000000 pixels"
    ):
        StimulusSet.from_source(tiny_stimuli, max_pixels=1_000_000)


def test_nothing_left_is_an_empty_source(fill):
    with pytest.raises(
        EmptySource, match=r"No image of .* can be used. 2 of 2 images cannot be used. First: "
    ):
        StimulusSet.from_source(fill({"a.png": b"", "b.png": b"x"}), skip_broken=True)


def test_select_keeps_the_given_order(stimuli):
    chosen = stimuli.select(np.array(["image_11", "image_2"]))
    assert chosen.ids == ("image_11", "image_2")
    assert chosen.sha256 == (stimuli.sha256[11], stimuli.sha256[2])
    assert chosen.open(1) == stimuli.open(2)
    assert chosen.select(["image_2"]).open(0) == stimuli.open(2)


def test_select_names_what_is_missing(stimuli):
    with pytest.raises(StimulusError, match="2 of 3 ids are not in the stimulus set 'images', first 'x'"):
        stimuli.select(["x", "image_1", "y"])
    with pytest.raises(DuplicateIds, match="'image_1'"):
        stimuli.select(["image_1", "image_1"])


@pytest.mark.parametrize(
    "new", [{"image_3": "nsd-00003"}, lambda old: "nsd-00003" if old == "image_3" else old]
)
def test_rename_changes_ids_and_nothing_else(stimuli, new):
    renamed = stimuli.rename(new)
    assert renamed.ids == (*stimuli.ids[:3], "nsd-00003", *stimuli.ids[4:])
    assert renamed.sha256 == stimuli.sha256
    assert renamed.digest != stimuli.digest
    assert renamed.open(3) == stimuli.open(3)


def test_rename_to_one_id_names_both_old_ones(stimuli):
    with pytest.raises(DuplicateIds, match="the id 'x': 'image_0' and 'image_1'"):
        stimuli.rename(lambda old: "x")
    with pytest.raises(StimulusError, match="'nobody' cannot be renamed: it is not in the stimulus set"):
        stimuli.rename({"nobody": "x"})


def test_a_row_that_is_not_there_is_an_index_error(stimuli):
    with pytest.raises(IndexError, match="out of range"):
        stimuli.open(20)


def test_a_set_can_be_sent_to_a_worker(stimuli):
    sent = pickle.loads(pickle.dumps(stimuli))
    assert sent.manifest == stimuli.manifest
    assert sent.open(5) == stimuli.open(5)
    assert repr(sent) == f"StimulusSet('images', 20 images, digest {stimuli.digest[:12]})"
