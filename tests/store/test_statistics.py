"""Statistics of an array are those that numpy gives for all its rows at once."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from featpipe.store import Statistics, array_statistics
from featpipe.store.finding._statistics import row_blocks

pytestmark = pytest.mark.usefixtures("impatient_disk")


def _require_same(found, values):
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    assert found.n_values == values.size
    assert (found.n_nan, found.n_infinite) == (np.isnan(values).sum(), np.isinf(values).sum())
    assert found.n_zeros == (values == 0).sum()
    assert (found.smallest, found.largest) == (finite.min(), finite.max())
    assert found.mean == pytest.approx(finite.mean(), rel=1e-12)
    assert found.sd == pytest.approx(finite.std(), rel=1e-12)


def _spoil(rows, kind):
    if kind == "holes":
        rows[3:9, 0], rows[20], rows[5, 1], rows[9, 2] = np.nan, np.nan, np.inf, -np.inf
    elif kind == "rectified":
        rows[rows < 0] = -0.0
    elif kind == "shifted":
        rows += 1e4  # where the naive formula of the variance loses all digits
    return rows


@pytest.mark.parametrize("kind", ["plain", "holes", "rectified", "shifted"])
@pytest.mark.parametrize(("dtype", "codec"), [("float32", "none"), ("float16", "zstd-fast")])
def test_statistics_are_those_of_numpy(tmp_path, make_writer, fill, monkeypatch, kind, dtype, codec):
    monkeypatch.setattr("featpipe.store._layout._WANTED_CHUNK", 100)
    writer, rows = make_writer(tmp_path, dtype=dtype, codec=codec)
    rows = _spoil(rows, kind)
    array = fill(writer, rows)
    _require_same(array_statistics(array), rows)


def test_rows_that_are_missing_do_not_count(tmp_path, make_writer, fill):
    writer, rows = make_writer(tmp_path)
    seen = []
    found = array_statistics(fill(writer, rows, [0, 2]), lambda done, total: seen.append((done, total)))
    _require_same(found, np.concatenate([rows[:8], rows[16:]]))
    assert seen == [(8, 13), (13, 13)]


@pytest.mark.parametrize("parts", [1, 2, 7, 40])
def test_parts_add_up_to_the_whole(rng, parts):
    values = _spoil(rng.standard_normal((40, 5)) * 100, "holes")
    merged = Statistics()
    for part in np.array_split(values, parts):
        merged = merged.merged(Statistics.of(part))
    _require_same(merged, values)


@pytest.mark.parametrize("values", [[], [math.nan, math.inf]])
def test_what_does_not_exist_is_null(values):
    shown = Statistics().merged(Statistics.of(np.array(values))).to_json()
    assert {shown[name] for name in ("mean", "sd", "min", "max")} == {None}
    assert (shown["values"], shown["infinite"]) == (len(values), len(values) // 2)


def test_memory_is_that_of_a_block(tmp_path, make_writer, fill):
    writer, _ = make_writer(tmp_path, shape=(1 << 18,), n_stimuli=40)
    array = fill(writer, np.ones((40, 1 << 18), np.float32))  # 40 MiB in shards of 8
    tracemalloc.start()
    try:
        assert array_statistics(array).mean == 1
        assert (
            tracemalloc.get_traced_memory()[1] < 36 << 20
        )  # 8 MiB as float32, once more as float64, and masks
    finally:
        tracemalloc.stop()


def test_blocks_hold_every_row_once(tmp_path, make_writer, fill):
    writer, rows = make_writer(tmp_path)
    array = fill(writer, rows)
    blocks = list(row_blocks(array, [0, 2], block=1))
    assert np.concatenate(blocks).tolist() == [*range(8), *range(16, 21)]
