"""Every changed byte is found, and put down to the array and rows that it belongs to."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re

import numpy as np
import pytest

from featpipe.errors import CacheCorrupt, FeatpipeError, RequestError
from featpipe.spec import canonical_json
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache, Problem
from featpipe.store._documents import with_checksum
from featpipe.store._seal import encode_seal
from featpipe.store.checking._verify import NOT_REPEATED
from featpipe.store.location import Folder

pytestmark = pytest.mark.usefixtures("impatient_disk")


@pytest.fixture
def flip(rng):
    """Change one byte of a file, and give a way back."""

    def change(path, place):
        content = path.read_bytes()
        other = content[place] ^ int(rng.integers(1, 256))
        path.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
        return lambda: path.write_bytes(content)

    return change


@pytest.fixture
def two_arrays(tmp_path, make_writer, fill):
    """A cache of two arrays of one set, one compressed and one not, and the keys."""
    arrays = [fill(*make_writer(tmp_path, codec=codec, layer=codec)) for codec in ("none", "zstd-fast")]
    return FeatureCache(tmp_path), [array.key for array in arrays]


def _index_bytes(array):
    return 16 * array.layout.chunks_per_shard + 4


def _places(cache, key):
    """Return kind -> list of (path, first byte, behind the last, shard or None)."""
    array = cache.array(key)
    shards = [(array.shard_path(s), s) for s in sorted(array.committed)]
    sizes = {path: path.stat().st_size for path, _ in shards}
    static = [path for path in array.folder.rglob("*") if path.is_file() and path.parent.name != "commits"]
    seal = array.folder / "sealed.json"
    static = [path for path in static if path not in sizes and path != seal]
    chunks = [path for path in static if path.suffix != ".json"]
    return {
        "data": [(path, 0, sizes[path] - _index_bytes(array), s) for path, s in shards],
        "index": [(path, sizes[path] - _index_bytes(array), sizes[path], s) for path, s in shards],
        "commit": [(array.folder / f"commits/{s}.json", 0, None, s) for _, s in shards],
        "metadata": [(path, 0, None, None) for path in sorted(set(static) - set(chunks))],
        "seal": [(seal, 0, None, None)],
        "ids and digests": [(path, 0, None, None) for path in sorted(chunks)],
    }


def test_a_flipped_byte_anywhere_is_found_and_put_down_to_its_rows(two_arrays, flip, rng):
    """450 flips: data, index, commit, seal, metadata, ids and digests of both arrays, and the stimulus set."""
    cache, keys = two_arrays
    assert cache.verify() == []
    files = [path for path in cache.root.rglob("*") if path.is_file()]
    assert len(files) == 1 + 2 * (7 + 3 + 3 + 1)  # stimuli, static, shards, commits, seal
    places = {(key, kind): where for key in keys for kind, where in _places(cache, key).items()}
    stimuli = cache.root / "stimuli" / cache.array(keys[0]).stimuli_digest / "stimuli.json"
    places[stimuli.parent.name, "stimuli"] = [(stimuli, 0, None, None)]
    for (key, kind), where in list(places.items()) * 36:
        path, start, stop, shard = where[int(rng.integers(len(where)))]
        restore = flip(path, int(rng.integers(start, stop or path.stat().st_size)))
        found = cache.verify()
        file = str(path.relative_to(cache.root))
        assert file in {problem.file for problem in found}, (kind, found)
        assert {problem.key for problem in found} == {key}, (kind, found)
        if shard is not None:
            rows = cache.array(key).layout.rows_of(shard)
            assert [(p.shard, p.rows) for p in found] == [(shard, (rows.start, rows.stop))], (kind, found)
        restore()
    assert cache.verify() == []


def test_a_problem_names_array_shard_rows_and_file(tiny_cache, flip):
    array, _ = tiny_cache
    flip(array.shard_path(2), 5)
    (problem,) = FeatureCache(array.root).verify([array.key])
    file = str(array.shard_path(2).relative_to(array.root))
    what = "its bytes are not those that were written"
    assert problem == Problem(array.key, 2, (16, 21), file, what)
    assert str(problem) == f"{array.key[:12]}, shard 2, rows 16 to 20: {file}: {what}"


def test_missing_shards_are_no_problem(tmp_path, make_writer, fill):
    array = fill(*make_writer(tmp_path), shards=[1])
    assert FeatureCache(tmp_path).verify() == []
    assert array.missing == [0, 2]


@pytest.mark.parametrize("name", ["commits", "data.zarr/features/c", "data.zarr/stimulus/c"])
def test_a_file_that_is_gone_or_cut_is_found(tiny_cache, name):
    array, _ = tiny_cache
    path = sorted(p for p in (array.folder / name).rglob("*") if p.is_file())[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert FeatureCache(array.root).verify()
    if name != "commits":
        path.unlink()
        assert FeatureCache(array.root).verify()


def test_a_stranger_among_commits_is_found(tiny_cache):
    array, _ = tiny_cache
    (array.folder / "commits/7.json").write_text("{}")
    (problem,) = FeatureCache(array.root).verify()
    assert problem.what == "it is no commit record"


def test_damage_beside_a_broken_stimulus_set_is_still_found(tiny_cache, flip):
    array, _ = tiny_cache
    flip(array.root / "stimuli" / array.stimuli_digest / "stimuli.json", 0)
    flip(array.folder / "data.zarr/image_sha256/c/0/0", 40)
    found = FeatureCache(array.root).verify()
    assert any(problem.file.endswith("image_sha256/c/0/0") for problem in found)


def test_a_sample_reads_some_shards_of_each(tiny_cache):
    array, _ = tiny_cache
    seen = []
    assert FeatureCache(array.root).verify(sample=1, progress=lambda *at: seen.append(at)) == []
    assert seen == [(1, 1)]


def test_set_aside_shards_are_missing_and_come_back(tiny_cache, make_writer, fill, flip):
    array, rows = tiny_cache
    flip(array.shard_path(1), 9)
    cache = FeatureCache(array.root)
    assert cache.set_aside(cache.verify()) == [(array.key, 1)]
    assert array.missing == [1]
    fill(make_writer(array.root)[0], rows)
    assert cache.verify() == []
    np.testing.assert_array_equal(array.read(), rows)


def test_a_spec_under_another_key_is_corrupt(tiny_cache):
    array, _ = tiny_cache
    array.folder.rename(array.folder.with_name("0" * 64))
    with pytest.raises(CacheCorrupt, match=r"0{64} holds a spec.json of another key .*cache rm"):
        FeatureCache(array.root).arrays()
    assert {problem.key for problem in FeatureCache(array.root).verify()} == {"0" * 64}


@pytest.mark.parametrize(
    ("number", "message"),
    [(2, "format 2, and this featpipe reads format 1. Update featpipe"), (0, "Extract the features again")],
)
def test_another_format_says_what_to_do(tmp_path, make_spec, make_manifest, number, message):
    """As a cache of another version would be: its key covers its format."""
    from featpipe.spec import digest_of

    document = make_spec().document(make_manifest(3).digest) | {"format": number, "new_field": 1}
    folder = tmp_path / "arrays" / digest_of(document)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_bytes(canonical_json(document))
    with pytest.raises(RequestError, match=message):
        FeatureCache(tmp_path).array(folder.name)


def _set(*path_and_value):
    *path, last, value = path_and_value

    def change(document):
        inner = document
        for name in path:
            inner = inner[name]
        inner[last] = value

    return change


SHARDING = ("codecs", 0, "configuration")


@pytest.mark.parametrize(
    "change",
    [
        _set("zarr_format", 2),
        _set("data_type", "float64"),
        _set("data_type", ["float32"]),
        _set("shape", 0, 10**30),
        _set("shape", [21, 3, 2, 1 << 40]),
        _set("shape", [21.0, 3, 2, 2]),
        _set("shape", []),
        _set("fill_value", 0),
        _set("dimension_names", ["stimulus", "a", "a", "b"]),
        _set("dimension_names", None),
        _set("attributes", {"x": 1}),
        _set("chunk_grid", "configuration", "chunk_shape", [0, 3, 2, 2]),
        _set("chunk_grid", "configuration", "chunk_shape", [-8, 3, 2, 2]),
        _set(*SHARDING, "chunk_shape", [3, 3, 2, 2]),
        _set(*SHARDING, "chunk_shape", [True, 3, 2, 2]),
        _set(*SHARDING, "index_location", "start"),
        _set(*SHARDING, "codecs", []),
        _set(*SHARDING, "codecs", [{"name": "gzip", "configuration": {"level": 5}}]),
        _set("codecs", {"name": "bytes"}),
        _set("storage_transformers", [{"name": "http"}]),
    ],
)
def test_metadata_of_strangers_is_refused_before_use(tiny_cache, change):
    array, _ = tiny_cache
    path = array.folder / "data.zarr/features/zarr.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(CacheCorrupt, match=r"zarr\.json"):
        FeatureCache(array.root).array(array.key)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"{}", b"null", b"\xff", b"[" * 100_000, b'{"a":NaN}', b" " * (1 << 20) + b"{}"],
)
@pytest.mark.parametrize("name", ["data.zarr/features/zarr.json", "commits/0.json"])
def test_json_that_is_none_is_refused(tiny_cache, content, name):
    array, _ = tiny_cache
    (array.folder / name).write_bytes(content)
    with pytest.raises(FeatpipeError, match=r"zarr\.json|0\.json"):
        FeatureCache(array.root).array(array.key).commit(0)
    assert FeatureCache(array.root).verify()


def _problems_of(cache, file):
    return [problem.what for problem in cache.verify() if problem.file.endswith(file)]


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


def _folder(path):
    path.unlink()
    path.mkdir()


def _link(path):
    away = next(folder for folder in path.parents if folder.name == "cache").with_name("away")
    path.rename(away)
    path.symlink_to(away)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (_pipe, "neither file nor folder|no plain file"),
        (_folder, "folder|plain file"),
        (lambda path: path.write_bytes(b""), "bytes|read|begin|call for|written|another key"),
        (lambda path: os.truncate(path, 1 << 40), "bytes|larger"),  # a terabyte that takes no room
        (lambda path: path.unlink(), "not there|gone"),
        (_link, "link"),
    ],
    ids=["pipe", "folder", "empty", "terabyte", "gone", "link"],
)
@pytest.mark.parametrize(
    "name",
    ["spec.json", "data.zarr/zarr.json", "data.zarr/features/zarr.json", "data.zarr/stimulus/c/0", "commits/1.json",
     "data.zarr/features/c/1/0/0/0", "stimuli.json"],
)  # fmt: skip
def test_no_damage_stops_it(tiny_cache, name, damage, word):
    """Whatever stands where a file should be is reported, under its name, and nothing else is but what hangs on it."""
    array, _ = tiny_cache
    sets = array.root / "stimuli" / array.stimuli_digest
    path = (sets if name == "stimuli.json" else array.folder) / name
    damage(path)
    cache = FeatureCache(array.root)
    if name == "commits/1.json" and not os.path.lexists(path):
        found = {problem.file: (problem.shard, problem.what) for problem in cache.verify()}
        assert found.pop(f"{array.base}/sealed.json") == (None, UNSEALED)
        # Without a commit a shard is no damage, unless the seal has it.
        assert found == {f"{array.base}/commits/1.json": (1, "it is gone, and the seal has it")}
        return
    assert re.search(word, " ".join(_problems_of(cache, name)))
    assert {problem.key for problem in cache.verify()} <= {array.key, array.stimuli_digest}


@pytest.mark.parametrize(
    "place", ["", "data.zarr", "data.zarr/features", "data.zarr/features/c/1/0/0", "commits"]
)
def test_what_the_format_does_not_name_is_found(tiny_cache, place):
    array, _ = tiny_cache
    cache = FeatureCache(array.root)
    (array.folder / place / "notes.txt").write_text("mine")
    (array.folder / place / "more").mkdir()
    assert {problem.file.rsplit("/", 1)[1] for problem in cache.verify()} == {"notes.txt", "more"}


def test_strays_beside_arrays_and_sets_are_found(tiny_cache):
    array, _ = tiny_cache
    cache = FeatureCache(array.root)
    (cache.root / "arrays/old").mkdir()
    (cache.root / "stimuli/readme").write_text("")
    (cache.root / "stimuli" / array.stimuli_digest / "copy.json").write_text("")
    assert [problem.file.rsplit("/", 1)[1] for problem in cache.verify()] == ["old", "readme", "copy.json"]
    assert len(cache.verify([array.key])) == 1  # what lies beside is not looked at with a key


UNSEALED = "it seals an array that lacks shards"


def test_a_seal_of_other_commits_is_found_and_an_array_without_one_is_sound(tiny_cache):
    array, _ = tiny_cache
    seal = array.folder / "sealed.json"
    commits = [commit | {"provenance": {}} for commit in array.commits()]
    commits = [json.loads(with_checksum({k: v for k, v in c.items() if k != "checksum"})) for c in commits]
    seal.write_bytes(encode_seal(array.key, commits))
    (problem,) = FeatureCache(array.root).verify()
    assert problem == Problem(array.key, None, None, f"{array.base}/sealed.json", NOT_REPEATED)
    seal.unlink()
    assert FeatureCache(array.root).verify() == []


def test_a_seal_that_is_no_plain_file_is_found_once(tiny_cache):
    array, _ = tiny_cache
    for damage in (_pipe, _link):
        damage(array.folder / "sealed.json")
        assert [problem.file for problem in FeatureCache(array.root).verify()] == [
            f"{array.base}/sealed.json"
        ]
        (array.folder / "sealed.json").unlink()
        (array.folder / "sealed.json").write_bytes(b"{}")


def test_a_shard_without_a_commit_is_no_damage(tiny_cache):
    array, _ = tiny_cache
    (array.folder / "sealed.json").unlink()
    (array.folder / "commits/1.json").unlink()
    array.shard_path(1).write_bytes(b"half")
    assert FeatureCache(array.root).verify() == []


def test_files_that_may_not_be_read_are_problems(tiny_cache, monkeypatch):
    array, _ = tiny_cache
    opened = os.open

    def refuse(path, *how, **more):
        if str(path).endswith(("commits/0.json", "c/1/0/0/0", "stimulus/c/0")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *how, **more)

    monkeypatch.setattr(os, "open", refuse)
    found = FeatureCache(array.root).verify()
    assert ["Permission denied" in problem.what for problem in found] == [True] * 3


def test_a_seed_draws_the_same_shards_again(tmp_path, make_writer, fill, flip):
    array = fill(*make_writer(tmp_path, n_stimuli=80))
    cache = FeatureCache(tmp_path)
    flip(array.shard_path(3), 1)
    seen = [bool(cache.verify(sample=2, seed=seed)) for seed in range(30)]
    assert seen == [bool(cache.verify(sample=2, seed=seed)) for seed in range(30)]
    assert 0 < sum(seen) < 20  # two of ten shards: a fifth of the seeds see it


def test_two_sound_metadata_that_differ_are_told_apart_by_the_commits(tiny_cache):
    """Another name of an axis is as good as any, but not what the shards were committed beside."""
    array, _ = tiny_cache
    path = array.folder / "data.zarr/features/zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"height"', b'"heighu"'))
    assert [problem.file for problem in FeatureCache(array.root).verify()] == [
        str(path.relative_to(array.root))
    ]


@pytest.mark.parametrize("n_stimuli", [1, 21, 16_000])
@pytest.mark.parametrize("name", ['a"b\\c', "bïld\u2028\x01", "x" * 300])
def test_a_set_of_any_size_and_ids_is_read_in_blocks(tmp_path, n_stimuli, name):
    from featpipe.store._static import encode_ids
    from featpipe.store.checking._set_check import check_set

    ids = tuple(f"{name}{row}" for row in range(n_stimuli))
    manifest = StimulusManifest(ids, tuple(f"{row:064x}" for row in range(n_stimuli)), 'x"]', "],[")
    FeatureCache(tmp_path).add_stimuli(manifest, shard_rows=16)
    facts = check_set(Folder(tmp_path), f"stimuli/{manifest.digest}/stimuli.json", manifest.digest)
    chunks = encode_ids(ids), bytes.fromhex("".join(manifest.sha256))
    assert (facts.n_stimuli, facts.shard_rows, facts.ids_size) == (n_stimuli, 16, len(chunks[0]))
    assert (facts.ids_sha256, facts.digests_sha256) == tuple(hashlib.sha256(c).hexdigest() for c in chunks)


def test_a_set_with_an_id_twice_is_found(tmp_path):
    from featpipe.spec import digest_of
    from featpipe.store.checking._set_check import check_set

    images = [["a", "0" * 64], ["a", "1" * 64]]
    (tmp_path / "s.json").write_bytes(
        with_checksum({"format": 1, "images": images, "name": "", "shard_rows": 8, "source": ""})
    )
    with pytest.raises(CacheCorrupt, match="two of its images have one id"):
        check_set(Folder(tmp_path), "s.json", digest_of(images))


def test_a_folder_in_place_of_a_commit_is_put_down_to_its_shard(tiny_cache):
    array, _ = tiny_cache
    _folder(array.folder / "commits/1.json")
    seal, problem = FeatureCache(array.root).verify()
    assert (seal.shard, seal.what) == (None, UNSEALED)
    assert (problem.shard, problem.rows) == (1, (8, 16))


def test_very_many_strangers_are_counted(tiny_cache):
    array, _ = tiny_cache
    for number in range(120):
        (array.folder / f"commits/x{number}").write_text("")
    found = FeatureCache(array.root).verify()
    assert (len(found), found[-1].file) == (101, array.base)
    assert found[-1].what == "20 more files or folders are none that the format names"
