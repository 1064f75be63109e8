"""Every changed byte is found, and put down to the array and rows that it belongs to."""

from __future__ import annotations

import json

import numpy as np
import pytest

from featpipe.errors import CacheCorrupt, FeatpipeError, RequestError
from featpipe.spec import canonical_json
from featpipe.store import FeatureCache, Problem

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
    static = [path for path in static if path not in sizes]
    chunks = [path for path in static if path.suffix != ".json"]
    return {
        "data": [(path, 0, sizes[path] - _index_bytes(array), s) for path, s in shards],
        "index": [(path, sizes[path] - _index_bytes(array), sizes[path], s) for path, s in shards],
        "commit": [(array.folder / f"commits/{s}.json", 0, None, s) for _, s in shards],
        "metadata": [(path, 0, None, None) for path in sorted(set(static) - set(chunks))],
        "ids and digests": [(path, 0, None, None) for path in sorted(chunks)],
    }


def test_a_flipped_byte_anywhere_is_found_and_put_down_to_its_rows(two_arrays, flip, rng):
    """400 flips: data, index, commit, metadata, ids and digests of both arrays, and the stimulus set."""
    cache, keys = two_arrays
    assert cache.verify() == []
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
