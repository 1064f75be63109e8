"""An array opens as other libraries' own types, with the same rows and ids in each."""

from __future__ import annotations

import hashlib
import pickle
import sys

import numpy as np
import pytest

from featpipe.errors import MissingDependency, RequestError, StimulusNotCached
from featpipe.store import FORMS, FeatureCache, open_array

pytestmark = pytest.mark.usefixtures("impatient_disk")
_LIBRARY = {"dask": "dask.array", "xarray": "xarray"}


@pytest.mark.parametrize("codec", ["none", "zstd-fast"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_rows(tmp_path, make_writer, fill, form, codec):
    pytest.importorskip(_LIBRARY.get(form, "numpy"))
    writer, rows = make_writer(tmp_path, codec=codec, dtype="float16")
    array = fill(writer, rows)
    opened = FeatureCache(tmp_path).open(array.key[:10], as_=form)
    assert (opened.shape, opened.dtype) == (rows.shape, rows.dtype)
    np.testing.assert_array_equal(np.asarray(opened[:]), rows)
    np.testing.assert_array_equal(np.asarray(opened[5:19, 1:]), rows[5:19, 1:])


@pytest.mark.parametrize("form", FORMS)
def test_an_incomplete_array_is_refused_or_has_nan(tmp_path, make_writer, fill, form):
    pytest.importorskip(_LIBRARY.get(form, "numpy"))
    writer, rows = make_writer(tmp_path)
    array = fill(writer, rows, [0, 2])
    with pytest.raises(StimulusNotCached, match=r"8 of 21 stimuli have no row yet.*extract.*partial=True"):
        open_array(array, form)
    rows[8:16] = np.nan
    np.testing.assert_array_equal(np.asarray(open_array(array, form, partial=True)[:]), rows)


@pytest.mark.parametrize("form", ["numpy", "zarr", "dask", "xarray"])
def test_from_a_remote_place_too(make_writer, form):
    pytest.importorskip("obstore")
    pytest.importorskip(_LIBRARY.get(form, "numpy"))
    root = f"memory://open/{form}"
    writer, rows = make_writer(root)
    for shard in range(3):
        part = writer.array.layout.rows_of(shard)
        writer.publish(shard, rows[part.start : part.stop], {})
    opened = FeatureCache(root).open(writer.array.key, as_=form)
    np.testing.assert_array_equal(np.asarray(opened[:]), rows)
    np.testing.assert_array_equal(np.asarray(opened[9:18:3]), rows[9:18:3])


def test_zarr_from_a_remote_place_is_read_only_and_lacks_what_is_not_committed(make_writer):
    pytest.importorskip("obstore")
    writer, rows = make_writer("memory://open/partial", codec="zstd-fast")
    writer.publish(1, rows[8:16], {})
    opened = FeatureCache("memory://open/partial").open(writer.array.key, as_="zarr", partial=True)
    np.testing.assert_array_equal(opened[8:16], rows[8:16])
    assert np.isnan(opened[:8]).all()
    with pytest.raises(RequestError, match="opened to be read"):
        opened[0] = 0


def test_zarr_is_read_only(tiny_cache):
    array, _ = tiny_cache
    opened = open_array(array, "zarr")
    with pytest.raises(ValueError, match="read-only"):
        opened[0] = 0


def test_a_dask_array_has_a_block_a_shard_and_reads_only_what_is_used(tiny_cache, monkeypatch):
    pytest.importorskip("dask.array")
    array, rows = tiny_cache
    lazy = open_array(array, "dask")
    assert lazy.chunks[0] == (8, 8, 5)
    assert lazy.name == open_array(array, "dask").name  # equal rows are one task wherever they meet
    read = []
    monkeypatch.setattr(type(array), "open_shard", _noting(type(array).open_shard, read))
    np.testing.assert_array_equal(lazy[17:19].mean(axis=0).compute(), rows[17:19].mean(axis=0))
    assert set(read) == {2}


def _noting(method, read):
    def open_shard(self, shard):
        read.append(shard)
        return method(self, shard)

    return open_shard


@pytest.mark.parametrize(
    "index", [3, slice(4, 18, 3), slice(None, None, -1), [20, 0, 7], (slice(2, 12), 1), (5, [0, 2])]
)
def test_a_dask_array_is_indexed_as_numpy_is(tiny_cache, index):
    pytest.importorskip("dask.array")
    array, rows = tiny_cache
    np.testing.assert_array_equal(open_array(array, "dask")[index].compute(scheduler="sync"), rows[index])


def test_a_task_is_a_few_hundred_bytes(tmp_path, make_writer, fill):
    pytest.importorskip("dask.array")
    writer, rows = make_writer(tmp_path, n_stimuli=4000, shape=(2,))
    array = fill(writer, rows)
    assert len(array.ids) == len(array.manifest) == 4000
    lazy = open_array(array, "dask")
    assert len(pickle.dumps(dict(lazy.dask))) / lazy.npartitions < 1500
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(lazy)).compute(), rows)


def test_an_xarray_is_selected_by_id_and_knows_what_it_is(tiny_cache):
    pytest.importorskip("xarray")
    array, rows = tiny_cache
    data = open_array(array, "xarray")
    assert data.dims == ("stimulus", "channel", "height", "width")
    assert tuple(data.stimulus.values) == array.ids
    np.testing.assert_array_equal(data.sel(stimulus=[array.ids[20], array.ids[3]]).values, rows[[20, 3]])
    assert hashlib.sha256(data.attrs["spec"].encode()).hexdigest() == array.key


def test_xarray_needs_no_dask(tiny_cache, monkeypatch):
    pytest.importorskip("xarray")
    array, rows = tiny_cache
    monkeypatch.setattr("featpipe.store.finding._open.find_spec", lambda name: None)
    data = open_array(array, "xarray")
    assert isinstance(data.variable._data, np.ndarray)
    np.testing.assert_array_equal(data.values, rows)


@pytest.mark.parametrize(
    ("form", "library", "extra"), [("dask", "dask.array", "dask"), ("xarray", "xarray", "netcdf")]
)
def test_a_library_that_is_not_there_is_named_with_its_extra(tiny_cache, monkeypatch, form, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependency, match=rf"needs {form}: pip install 'featpipe\[{extra}\]'"):
        open_array(tiny_cache[0], form)


def test_an_unknown_form_is_refused(tiny_cache):
    with pytest.raises(RequestError, match="numpy, zarr, dask, xarray, not as 'torch'"):
        open_array(tiny_cache[0], "torch")
