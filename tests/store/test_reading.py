"""Reading gives what numpy indexing gives, whatever the layout."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featpipe.errors import CacheCorrupt, FeaturesNotCached, RequestError, StimulusNotCached
from featpipe.store import CODECS, FeatureCache
from featpipe.store import _layout as layout_module
from featpipe.store import _reading as reading_module

pytestmark = pytest.mark.usefixtures("impatient_disk")
SHAPES = [(1,), (5,), (2, 3), (3, 2, 2), (4, 40, 40)]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_with_repeats_equals_numpy(make_writer, fill, monkeypatch, codec, dtype, data):
    shape = data.draw(st.sampled_from(SHAPES))
    n_stimuli = data.draw(st.integers(1, 40))
    monkeypatch.setattr(layout_module, "_WANTED_CHUNK", data.draw(st.sampled_from([1, 100, 20_000, 1 << 21])))
    monkeypatch.setattr(reading_module, "_LARGE_ROW", data.draw(st.sampled_from([1, 256 << 10])))
    monkeypatch.setattr(reading_module, "_FAR", data.draw(st.sampled_from([1, 512 << 10])))
    monkeypatch.setattr(reading_module, "_PLAIN_UNIT", data.draw(st.sampled_from([1, 8 << 20])))
    monkeypatch.setattr(reading_module, "_SMALL_READ", data.draw(st.sampled_from([0, 4 << 20])))
    wanted = data.draw(st.lists(st.integers(0, n_stimuli - 1), max_size=60))
    with tempfile.TemporaryDirectory() as folder:
        writer, rows = make_writer(folder, shape=shape, dtype=dtype, codec=codec, n_stimuli=n_stimuli)
        array = fill(writer, rows)
        chosen = np.array(wanted, dtype=np.int64)
        np.testing.assert_array_equal(array.read(chosen, threads=data.draw(st.integers(1, 3))), rows[chosen])
        np.testing.assert_array_equal(array.read(), rows)
        assert array.read().dtype == dtype


@pytest.mark.parametrize("codec", ["none", "zstd-fast", "blosc-lz4"])
def test_special_values_keep_their_bits(tmp_path, make_writer, fill, codec):
    writer, rows = make_writer(tmp_path, codec=codec)
    rows[0], rows[1], rows[2], rows[3] = np.nan, -0.0, np.inf, 1e-45
    array = fill(writer, rows)
    assert array.read().tobytes() == rows.tobytes()
    assert array.commit(0)["non_finite"] == 2 * rows[0].size


def test_reads_into_a_given_array(tiny_cache):
    array, rows = tiny_cache
    out = np.empty((2, *array.row_shape), np.float32)
    assert array.read(np.array([20, 0]), out=out) is out
    np.testing.assert_array_equal(out, rows[[20, 0]])


def test_rows_of_a_missing_shard_name_the_stimulus(tmp_path, make_writer, fill):
    array = fill(*make_writer(tmp_path), shards=[0, 2])
    assert (array.missing, array.complete) == ([1], False)
    assert len(array.read(np.array([0, 7, 16]))) == 3
    with pytest.raises(StimulusNotCached, match=r"2 of 3 stimuli have no row .* first 'bïld_9': 2 of 3"):
        array.read(np.array([0, 9, 8]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([-1], "between 0 and 20, got -1"),
        ([21], "between 0 and 20, got 21"),
        ([0.5], "integers, got"),
        ([True], "integers, got"),
        ([[1]], "one-dimensional"),
    ],
)
def test_rows_that_are_none_are_refused(tiny_cache, rows, message):
    with pytest.raises(RequestError, match=message):
        tiny_cache[0].read(np.array(rows))


def test_an_array_that_does_not_fit_is_refused(tiny_cache):
    with pytest.raises(RequestError, match="C-contiguous float32 array of shape"):
        tiny_cache[0].read(out=np.empty((21, 3, 2, 2)))


def test_ids_and_manifest_agree(tiny_cache, make_manifest):
    array, _ = tiny_cache
    assert array.ids == array.manifest.ids == make_manifest(21).ids
    assert array.manifest.digest == array.stimuli_digest


def test_arrays_travel_to_workers(tiny_cache):
    array, rows = tiny_cache
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array)).read(), rows)


def test_finding_arrays_by_spec(tmp_path, make_writer):
    for layer in ("a", "b"):
        make_writer(tmp_path, layer=layer)
    cache = FeatureCache(tmp_path)
    assert [array.spec.layer for array in cache.match(lambda spec: spec.layer == "b")] == ["b"]
    assert [array.key for array in cache.arrays()] == cache.keys()


@pytest.mark.parametrize("key", ["0" * 64, "../../etc", "", "A" * 64])
def test_a_key_that_is_not_there_says_so(tmp_path, key):
    with pytest.raises(FeaturesNotCached, match=r"cache ls|64 hexadecimal"):
        FeatureCache(tmp_path).array(key)


def test_nothing_is_created_by_looking(tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    assert (cache.keys(), cache.arrays(), cache.verify()) == ([], [], [])
    assert not cache.root.exists()


def test_reading_needs_neither_zarr_nor_torch(tiny_cache):
    array, _ = tiny_cache
    code = (
        "import sys; from featpipe.store import FeatureCache;"
        "FeatureCache(sys.argv[1]).array(sys.argv[2]).read();"
        "assert not {'zarr', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, array.root, array.key], check=True)


def _truncated(content):
    return content[:-7]


def _index_flipped(content):
    return content[:-10] + bytes([content[-10] ^ 1]) + content[-9:]


def _cut_in_front(content):
    return content[9:]


@pytest.mark.parametrize("damage", [_truncated, _index_flipped, _cut_in_front, lambda _: b""])
@pytest.mark.parametrize("codec", ["none", "zstd-fast", "blosc-lz4"])
def test_a_broken_shard_is_an_error_that_names_it(tmp_path, make_writer, fill, codec, damage):
    array = fill(*make_writer(tmp_path, codec=codec))
    path = array.shard_path(1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        CacheCorrupt, match=rf"Shard 1 \(rows 8 to 15\) of array {array.key} .*layer1.*damaged"
    ):
        array.read()
    assert len(array.read(np.array([0, 20]))) == 2


@pytest.mark.parametrize("codec", ["zstd-fast", "blosc-lz4", "blosc-zstd-bit"])
def test_no_broken_byte_reaches_a_decompressor(tmp_path, make_writer, fill, codec):
    array = fill(*make_writer(tmp_path, codec=codec))
    path = array.shard_path(0)
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with pytest.raises(CacheCorrupt, match="is damaged"):
            array.read(np.arange(8))


def test_a_made_up_index_is_refused(tmp_path, make_writer, fill, monkeypatch):
    """With a right checksum, but sizes and offsets that lie."""
    from featpipe.store._codec import crc32c

    monkeypatch.setattr(layout_module, "_WANTED_CHUNK", 1)
    array = fill(*make_writer(tmp_path, codec="zstd"))
    path = array.shard_path(0)
    content = path.read_bytes()
    n_bytes = array.layout.chunks_per_shard * 16
    index = np.frombuffer(content[-n_bytes - 4 : -4], "<u8").reshape(-1, 2)
    for entry, value in [((0, 0), 1), ((1, 0), 0), ((1, 1), 1 << 62), ((2, 1), 0), ((3, 0), 2**64 - 1)]:
        lie = index.copy()
        lie[entry] = value
        path.write_bytes(content[: -n_bytes - 4] + lie.tobytes() + crc32c(lie.tobytes()))
        with pytest.raises(CacheCorrupt, match="in its index"):
            array.read(np.arange(8))


def test_a_shard_that_is_gone_is_an_error(tiny_cache):
    array, _ = tiny_cache
    array.shard_path(2).unlink()
    with pytest.raises(CacheCorrupt, match=r"Shard 2 .* its file is gone"):
        array.read()
