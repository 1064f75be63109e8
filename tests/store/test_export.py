"""An exported file holds the rows, ids, image digests and spec, as the plain library of its format reads it."""

from __future__ import annotations

import hashlib
import json
import sys
import tracemalloc

import h5py
import numpy as np
import pandas as pd
import pytest

from featpipe.errors import MissingDependency, RequestError, StimulusNotCached
from featpipe.imported import import_array
from featpipe.store import ENDINGS, FeatureCache, export_array

pytestmark = pytest.mark.usefixtures("impatient_disk")
_NEEDS = {"netcdf": "h5netcdf", "parquet": "pyarrow.parquet"}


def _read_npy(path):
    table = pd.read_csv(f"{path}.ids.csv", dtype=str, keep_default_na=False)
    spec = path.with_name(f"{path.name}.spec.json").read_text(encoding="utf-8")
    return np.load(path), table["id"].tolist(), table["image_sha256"].tolist(), spec


def _read_h5(path):
    with h5py.File(path) as file:
        assert file["features"].dims[0].label == "stimulus"
        digests = [row.tobytes().hex() for row in file["image_sha256"]]
        return file["features"][:], file["stimulus"].asstr()[:].tolist(), digests, file.attrs["spec"]


def _read_netcdf(path):
    xarray = pytest.importorskip("xarray")
    with xarray.open_dataset(path, engine="h5netcdf") as data:
        assert data.features.dims[0] == "stimulus"
        assert "stimulus" in data.features.coords
        digests = [row.tobytes().hex() for row in data.image_sha256.values]
        return data.features.values, data.stimulus.values.tolist(), digests, data.attrs["spec"]


def _read_parquet(path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(path)
    said = {name.decode(): text.decode() for name, text in table.schema.metadata.items()}
    values = np.stack(table["features"].to_pandas().to_numpy())
    assert values.dtype == said["dtype"]
    rows = values.reshape(-1, *json.loads(said["row_shape"]))
    return rows, table["stimulus"].to_pylist(), table["image_sha256"].to_pylist(), said["spec"]


_READERS = {"npy": _read_npy, "h5": _read_h5, "netcdf": _read_netcdf, "parquet": _read_parquet}


def _skip_without(to):
    pytest.importorskip(_NEEDS.get(to, "numpy"))


@pytest.mark.parametrize("to", ENDINGS)
@pytest.mark.parametrize(("dtype", "codec"), [("float32", "none"), ("float16", "zstd-fast")])
def test_the_plain_library_reads_what_was_cached(tmp_path, make_writer, fill, monkeypatch, to, dtype, codec):
    _skip_without(to)
    monkeypatch.setattr("featpipe.store._layout._WANTED_CHUNK", 100)
    monkeypatch.setattr("featpipe.store.finding._export._BLOCK", 200)  # several blocks a shard
    writer, rows = make_writer(tmp_path / "cache", dtype=dtype, codec=codec)
    rows[4, 0], rows[7, 1] = np.nan, np.inf
    array = fill(writer, rows)
    path = export_array(array, tmp_path / "out" / f"file{ENDINGS[to]}")
    values, ids, digests, spec = _READERS[to](path)
    assert values.dtype == ("float32" if to == "netcdf" else dtype)  # netCDF has no float16
    np.testing.assert_array_equal(values, rows)
    assert (tuple(ids), tuple(digests)) == (array.manifest.ids, array.manifest.sha256)
    assert hashlib.sha256(spec.encode()).hexdigest() == array.key


@pytest.mark.parametrize("to", ENDINGS)
def test_of_an_incomplete_array_the_rows_that_are_there(tmp_path, make_writer, fill, to):
    _skip_without(to)
    writer, rows = make_writer(tmp_path / "cache", shape=(3,))
    array = fill(writer, rows, [0, 2])
    out = tmp_path / f"file{ENDINGS[to]}"
    with pytest.raises(StimulusNotCached, match=r"8 of 21 stimuli.*--partial"):
        export_array(array, out)
    assert list(tmp_path.glob("*file*")) == []
    values, ids, digests, _ = _READERS[to](export_array(array, out, partial=True))
    kept = [*range(8), *range(16, 21)]
    np.testing.assert_array_equal(values, rows[kept])
    assert ids == [array.ids[row] for row in kept]
    assert digests == [array.manifest.sha256[row] for row in kept]


@pytest.mark.parametrize("to", ENDINGS)
def test_a_file_is_there_whole_or_not_at_all(tmp_path, make_writer, fill, to):
    _skip_without(to)
    writer, rows = make_writer(tmp_path / "cache")
    array = fill(writer, rows)
    array.shard_path(2).write_bytes(b"torn")
    with pytest.raises(Exception, match="Shard 2"):
        export_array(array, tmp_path / "out" / f"file{ENDINGS[to]}")
    assert [
        p.name for p in (tmp_path / "out").iterdir() if not p.name.endswith((".ids.csv", ".spec.json"))
    ] == []


def test_what_was_exported_can_be_imported_again(tmp_path, tiny_cache):
    array, rows = tiny_cache
    path = export_array(array, tmp_path / "f.npy")
    again = import_array(path, FeatureCache(tmp_path / "other"), name="again", ids=f"{path}.ids.csv")
    np.testing.assert_array_equal(again.read(), rows)
    assert again.ids == array.ids


def test_a_name_is_made_of_what_is_exported(tmp_path, monkeypatch, make_writer, fill):
    monkeypatch.chdir(tmp_path)
    writer, rows = make_writer(tmp_path / "cache", model="python:../a b.py:build", layer="head/../0")
    array = fill(writer, rows)
    path = export_array(array, to="h5")
    assert path.parent.resolve() == tmp_path
    assert path.name == f"python-..-a-b.py-build_head-..-0_none_{array.key[:8]}.h5"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"to": "csv"}, r"npy, h5, netcdf, parquet, not to 'csv'"),
        ({"out": "x.bin"}, r"x\.bin does not say which format.*--to"),
        ({}, r"--to .*--out"),
        ({"out": "there.npy"}, r"there\.npy is there already.*--overwrite"),
        ({"out": "folder.npy"}, r"folder\.npy is a folder"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path, tiny_cache, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.npy").touch()
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(RequestError, match=words):
        export_array(tiny_cache[0], **given)
    assert (tmp_path / "there.npy").stat().st_size == 0
    if given.get("out") == "there.npy":
        assert np.load(export_array(tiny_cache[0], "there.npy", overwrite=True)).shape == tiny_cache[1].shape


def test_an_array_without_rows_is_not_exported(tmp_path, make_writer):
    writer, _ = make_writer(tmp_path / "cache")
    with pytest.raises(StimulusNotCached, match="no rows yet"):
        export_array(writer.array, tmp_path / "x.npy", partial=True)


@pytest.mark.parametrize(("to", "library"), [("netcdf", "h5netcdf"), ("parquet", "pyarrow")])
def test_a_library_that_is_not_there_is_named_with_its_extra(tmp_path, tiny_cache, monkeypatch, to, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependency, match=rf"needs {library}: pip install 'featpipe\[{to}\]'"):
        export_array(tiny_cache[0], tmp_path / "file", to=to)
    assert list(tmp_path.glob("file*")) == []


@pytest.mark.parametrize("to", ENDINGS)
def test_memory_is_that_of_a_block(tmp_path, make_writer, fill, monkeypatch, to):
    _skip_without(to)
    monkeypatch.setattr("featpipe.store.finding._export._BLOCK", 1 << 20)
    writer, _ = make_writer(tmp_path / "cache", shape=(1 << 16,), n_stimuli=160)
    array = fill(writer, np.zeros((160, 1 << 16), np.float32))  # 40 MiB in shards of 2 MiB
    export_array(array, tmp_path / f"warm{ENDINGS[to]}")  # imports
    tracemalloc.start()
    try:
        export_array(array, tmp_path / f"file{ENDINGS[to]}")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
