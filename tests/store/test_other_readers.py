"""Stock readers open the cache without a warning, and zarr itself would write the same bytes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from featpipe.store import CODECS
from featpipe.store._shard import encode_shard

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("impatient_disk")]


@pytest.mark.parametrize("codec", ["none", "zstd-fast", "blosc-lz4"])
@pytest.mark.parametrize("consolidated", [True, False])
def test_zarr_reads_it(tmp_path, make_writer, fill, codec, consolidated):
    writer, rows = make_writer(tmp_path, codec=codec)
    array = fill(writer, rows)
    group = zarr.open_group(array.folder / "data.zarr", mode="r", use_consolidated=consolidated)
    np.testing.assert_array_equal(group["features"][:], rows)
    np.testing.assert_array_equal(group["features"][9:18:3], rows[9:18:3])
    assert tuple(group["stimulus"][:]) == array.manifest.ids
    assert group["image_sha256"][:].tobytes().hex() == "".join(array.manifest.sha256)
    assert set(group.array_keys()) == {"features", "stimulus", "image_sha256"}


def test_zarr_reads_a_missing_shard_as_nan(tmp_path, make_writer, fill):
    writer, rows = make_writer(tmp_path)
    array = fill(writer, rows, shards=[0, 2])
    values = zarr.open_group(array.folder / "data.zarr", mode="r")["features"][:]
    assert np.isnan(values[8:16]).all()
    np.testing.assert_array_equal(values[16:], rows[16:])


@pytest.mark.parametrize("options", [{}, {"chunks": None}, {"consolidated": False}])
def test_xarray_opens_it_with_ids_as_coordinate(tiny_cache, options):
    xarray = pytest.importorskip("xarray")
    if "chunks" not in options:
        pytest.importorskip("dask")
    array, rows = tiny_cache
    with xarray.open_zarr(array.folder / "data.zarr", **options) as data:
        assert data.features.dims == ("stimulus", "channel", "height", "width")
        np.testing.assert_array_equal(data.features.values, rows)
        np.testing.assert_array_equal(data.features.sel(stimulus=array.ids[13]).values, rows[13])
        assert data.image_sha256.dims == ("stimulus", "byte")


@pytest.mark.parametrize("codec", ["none", "zstd-fast", "blosc-lz4", "blosc-zstd-bit", "zstd"])
def test_tensorstore_reads_features_and_digests(tmp_path, make_writer, fill, codec):
    tensorstore = pytest.importorskip("tensorstore")
    writer, rows = make_writer(tmp_path, codec=codec, dtype="float16")
    array = fill(writer, rows)

    def read(name):
        store = {"driver": "file", "path": str(array.folder / "data.zarr" / name)}
        return tensorstore.open({"driver": "zarr3", "kvstore": store}, open=True).result().read().result()

    np.testing.assert_array_equal(read("features"), rows)
    assert read("image_sha256").tobytes().hex() == "".join(array.manifest.sha256)


def test_ids_can_be_decoded_by_the_text(tiny_cache):
    """As cache/README.md says: a count, then a length and UTF-8 for each, uint32 little-endian."""
    array, _ = tiny_cache
    content = (array.folder / "data.zarr/stimulus/c/0").read_bytes()
    ids, at = [], 4
    for _ in range(struct.unpack_from("<I", content)[0]):
        (length,) = struct.unpack_from("<I", content, at)
        ids.append(content[at + 4 : at + 4 + length].decode())
        at += 4 + length
    assert tuple(ids) == array.manifest.ids


def _zarr_codecs(codec, itemsize):
    settings = dict(CODECS[codec])
    if codec == "none":
        return None
    main = ZstdCodec(**settings) if codec.startswith("zstd") else BloscCodec(typesize=itemsize, **settings)
    return [main, Crc32cCodec()]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(7,), (3, 50, 50)])
def test_shards_are_those_that_zarr_writes(tmp_path, make_writer, monkeypatch, codec, dtype, shape):
    monkeypatch.setattr("featpipe.store._layout._WANTED_CHUNK", 4 * int(np.prod(shape)) * 4)
    writer, rows = make_writer(tmp_path, shape=shape, dtype=dtype, codec=codec)
    layout = writer.array.layout
    store = MemoryStore()
    reference = zarr.create_array(
        store,
        shape=rows.shape,
        shards=(layout.shard_rows, *shape),
        chunks=(layout.chunk_rows, *shape),
        dtype=dtype,
        fill_value=np.nan,
        compressors=_zarr_codecs(codec, rows.dtype.itemsize),
        config={"write_empty_chunks": True},
    )
    reference[:] = rows
    for shard in range(layout.n_shards):
        part = layout.rows_of(shard)
        ours = b"".join(encode_shard(rows[part.start : part.stop], layout))
        name = "/".join(["c", str(shard), *("0" for _ in shape)])
        assert store._store_dict[name].to_bytes() == ours
