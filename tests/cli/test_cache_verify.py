"""From the command line: what is damaged is named, made good from images, and bit-equal to what it was."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from featpipe.store import FeatureCache, publish_index
from featpipe.testing import file_server

VERIFY = "cache verify --images table:table --trust --repair --cache"
MODEL = "--model python:tiny.py:build --trust"
EXTRACT = f"extract {MODEL} --layers stem:grid:2 --layers head:mean --images table:table --cache"


@pytest.fixture
def cache(world, tmp_path):
    """A copy of the world's cache that a test may damage."""
    return Path(shutil.copytree(world / "cache", tmp_path / "cache"))


def _content(cache):
    """SHA-256 of all that counts, by path; commit records say when, and are left out, as are seals."""
    files = (
        path for folder in ("arrays", "stimuli") for path in (cache / folder).rglob("*") if path.is_file()
    )
    timeless = [path for path in files if path.parent.name != "commits" and path.name != "sealed.json"]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in timeless}


def _shards(cache):
    return sorted(path for path in cache.glob("arrays/*/data.zarr/features/c/**/*") if path.is_file())


@pytest.fixture
def damaged(cache):
    """The cache with one byte of one shard flipped; the shard, and what the cache held before."""
    before, shard = _content(cache), _shards(cache)[0]
    content = bytearray(shard.read_bytes())
    content[7] ^= 1
    shard.write_bytes(content)
    return shard, before


def test_a_flipped_byte_is_named_and_made_good(featpipe, featpipe_json, cache, damaged):
    shard, before = damaged
    code, out, _ = featpipe(f"cache verify --cache {cache}")
    assert code == 1
    assert str(shard.relative_to(cache)) in out
    found = featpipe_json(f"{VERIFY} {cache}")
    assert found["repair"]["sound"]
    assert found["repair"]["recomputed"] == [[shard.relative_to(cache).parts[1], 0]]
    assert _content(cache) == before
    assert featpipe(f"cache verify --cache {cache}")[0] == 0


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--images images --trust", ["not the images of array", "40 of the 40", "first 'image_"]),
        (
            "--images table:table --trust --model python:other.py:build",
            ["is not what array", "would be right"],
        ),
        ("--images table:table", ["--trust"]),
        ("--images table:table --trust --weights random:7", ["random:7"]),
    ],
)
def test_with_other_images_or_weights_nothing_is_moved(featpipe, world, cache, damaged, words, wanted):
    other = world / "other.py"
    other.write_text((world / "tiny.py").read_text().replace("manual_seed(0)", "manual_seed(9)"))
    before = _content(cache)
    if "random:7" in words:
        (world / "free.py").write_text(
            (world / "tiny.py").read_text().replace("torch.manual_seed(0)", "pass")
        )
        words += " --model python:free.py:build"
    try:
        code, out, err = featpipe(f"cache verify --repair --cache {cache} {words}")
    finally:
        other.unlink()
        (world / "free.py").unlink(missing_ok=True)
    assert (code, out) == (2, "")
    assert [word for word in wanted if word not in err] == [], err
    assert _content(cache) == before
    assert not (cache / "aside").exists()


def test_without_images_it_is_moved_aside_until_an_extraction_fills_it(featpipe, cache, damaged):
    shard, before = damaged
    code, out, _ = featpipe(f"cache verify --repair --cache {cache}")
    assert code == 1
    assert "moved aside, and missing now: shard 0" in out
    assert not shard.exists()
    assert len(os.listdir(cache / "aside")) == 3  # with its commit and the seal
    assert featpipe(f"{EXTRACT} {cache}")[0] == 0
    assert featpipe(f"{EXTRACT.replace('stem:grid:2', 'stem:mean')} {cache}")[0] == 0
    assert _content(cache) == before


def test_metadata_are_made_good_without_images(featpipe, cache):
    before = _content(cache)
    for path in cache.glob("arrays/*/data.zarr/features/zarr.json"):
        path.write_bytes(path.read_bytes()[:-1])
    code, out, _ = featpipe(f"cache verify --repair --cache {cache}")
    assert (code, out.count("was written again")) == (0, 3)
    assert _content(cache) == before


def test_two_repairs_at_once_leave_a_sound_cache(world, featpipe, cache, damaged):
    """Each in a process of its own: one may find the other at it, and then says so."""
    _, before = damaged
    code = "import sys; from featpipe.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, *f"{VERIFY} {cache}".split()]
    both = [subprocess.Popen(command, cwd=world, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, errors
    assert all(end == 0 or "being worked on" in error for end, error in zip(codes, errors, strict=True))
    assert _content(cache) == before


def test_rows_are_computed_again(featpipe, featpipe_json, cache):
    words = f"cache verify --recompute 4 --seed 3 --images table:table --trust --cache {cache}"
    found = featpipe_json(words)
    assert found["seed"] == 3
    assert [(one["ok"], one["bit_equal"], one["n_rows"]) for one in found["recomputed"]] == [
        (True, True, 4)
    ] * 3
    code, out, _ = featpipe(words)
    assert (code, out.count("4 rows computed again, bit-equal")) == (0, 3)


def test_imported_arrays_cannot_be_computed_again(featpipe, featpipe_json, cache):
    key = featpipe_json(f"cache import embedding.npy --name emb --ids ids.csv --cache {cache}")["key"]
    words = f"cache verify --recompute 1 --images table:table --trust --cache {cache}"
    code, out, err = featpipe(f"{words} {key[:12]}")
    assert (code, out) == (2, "")
    assert "imported:emb" in err
    code, out, err = featpipe(words)
    assert (code, out.count("computed again")) == (0, 3)
    assert "1 imported arrays are left out" in err


def test_damage_of_an_imported_array_is_moved_aside_and_comes_back_by_import(featpipe, featpipe_json, cache):
    imported = "cache import embedding.npy --name emb --ids ids.csv --cache"
    key = featpipe_json(f"{imported} {cache}")["key"]
    (shard,) = (path for path in _shards(cache) if key in path.parts)
    before = _content(cache)
    shard.write_bytes(b"")
    code, out, _ = featpipe(f"{VERIFY} {cache}")
    assert (code, "cache import" in out) == (1, True)
    assert featpipe(f"{imported} {cache}")[0] == 0
    assert _content(cache) == before


def test_a_sample_of_the_same_seed_is_the_same(featpipe_json, cache):
    found = [featpipe_json(f"cache verify --sample 1 --seed 5 --cache {cache}") for _ in range(2)]
    assert found[0] == found[1]


def test_an_array_whose_spec_is_lost_is_said_and_can_be_removed(featpipe, featpipe_json, cache):
    """Nothing else in a cache says what it was."""
    spec = sorted(cache.glob("arrays/*/spec.json"))[0]
    spec.write_bytes(spec.read_bytes().replace(b"layer", b"lay3r"))
    key = spec.parent.name
    code, out, _ = featpipe(f"{VERIFY} {cache}")
    assert (code, f"cache rm {key}" in out) == (1, True)
    assert "damaged" in featpipe_json(f"cache rm {key} --yes --cache {cache}")["removed"][0]
    assert featpipe(f"cache verify --cache {cache}")[0] == 0


def test_a_cache_behind_a_url_is_verified_and_not_repaired_where_it_can_only_be_read(
    featpipe, featpipe_json, cache, damaged
):
    pytest.importorskip("urllib3")
    shard, _ = damaged
    publish_index(FeatureCache(cache).location)
    with file_server(cache) as server:
        code, out, _ = featpipe(f"cache verify --cache {server.url}")
        assert (code, out.count(str(shard.relative_to(cache)))) == (1, 1)
        code, out, err = featpipe(f"cache verify --repair --cache {server.url}")
        assert (code, out) == (2, "")
        assert "can only be read" in err
    code, out, err = featpipe("cache verify --cache memory://nothing")
    assert (code, out) == (2, "")
    assert "There is no cache at memory://nothing" in err
