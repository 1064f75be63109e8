"""RDMs of layers, read a few rows at a time, are those of the layers in memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.rsa import _streamed
from featpipe.rsa._distances import rdm
from featpipe.rsa._streamed import feature_rdms

METRICS = ["correlation", "cosine", "euclidean", "sqeuclidean"]
ROW = 4 * 1700  # bytes of a row of all layers


@pytest.fixture
def layers(rng):
    maps = np.maximum(rng.standard_normal((23, 4, 20, 20)), 0).astype(np.float32)
    return {"maps": maps, "vector": 5 + rng.standard_normal((23, 100)).astype(np.float32)}


@pytest.fixture
def read_rows():
    """How many rows each call has read."""
    return []


@pytest.fixture
def blocks(layers, read_rows):
    ids = np.array([f"92/{row:02d}" for row in range(23)])

    def stream(layer, wanted):
        read_rows.append(len(wanted))
        return list(layers.values())[layer][np.searchsorted(ids, wanted)]

    return LayerBlocks(
        ids,
        names=list(layers),
        shapes=[(4, 20, 20), (100,)],
        dims=[("channel", "height", "width"), ("channel",)],
        digests=["1", "2"],
        read=lambda layer, wanted: pytest.fail("a whole layer was read"),
        stream=stream,
    )


def _flat(values):
    return values.reshape(len(values), -1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("buffer", [1, 12 * ROW, 1 << 30])  # one row at a time, tiles, all at once
def test_one_rdm_a_layer(blocks, layers, metric, buffer):
    found = feature_rdms(blocks, metric, buffer=buffer)
    assert found.subjects == ("maps", "vector")
    assert found.ids.tolist() == blocks.ids.tolist()
    for values, layer in zip(found.values, layers.values(), strict=True):
        expected = rdm(_flat(layer).astype(np.float64), metric)
        np.testing.assert_allclose(values, expected.values[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("buffer", [12 * ROW, 1 << 30])
def test_joint_is_the_concatenated_embedding(blocks, layers, metric, buffer):
    found = feature_rdms(blocks, metric, joint=True, buffer=buffer)
    whole = np.hstack([_flat(layer) for layer in layers.values()]).astype(np.float64)
    assert found.subjects == ("maps+vector",)
    np.testing.assert_allclose(found.values, rdm(whole, metric).values, rtol=1e-6, atol=1e-9)


def test_layers_stay_as_they_are(blocks, layers):
    before = {name: values.copy() for name, values in layers.items()}
    feature_rdms(blocks, buffer=12 * ROW)
    for name, values in layers.items():
        np.testing.assert_array_equal(values, before[name])


def test_a_smaller_buffer_reads_fewer_rows_at_a_time(blocks, read_rows):
    feature_rdms(blocks[:20], joint=True, buffer=1 << 30)
    assert sum(read_rows) == 40  # each row of both layers once
    read_rows.clear()
    feature_rdms(blocks[:20], joint=True, buffer=12 * ROW)
    assert max(read_rows) <= 6
    assert sum(read_rows) > 40


def test_only_selected_stimuli(blocks):
    whole = feature_rdms(blocks)
    assert feature_rdms(blocks[[7, 3, 11]]) != whole
    np.testing.assert_allclose(
        feature_rdms(blocks[[7, 3, 11]]).values, whole[[7, 3, 11]].values, rtol=1e-6, atol=1e-9
    )


def test_distances_per_feature_and_in_float32(blocks):
    found = feature_rdms(blocks, "sqeuclidean", per_feature=True, dtype=np.float32)
    assert found.values.dtype == np.float32
    expected = feature_rdms(blocks, "sqeuclidean").values / np.array([1600, 100])[:, None, None]
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)


def test_the_buffer_follows_the_result_and_the_memory_there_is(monkeypatch):
    monkeypatch.setattr(_streamed, "available_memory", lambda: 4 << 30)
    assert _streamed._buffer(1000) == 256 << 20
    assert _streamed._buffer(1 << 30) == 1 << 30
    assert _streamed._buffer(3 << 30) == 1 << 29
    with pytest.raises(RequestError, match=r"need 5\.4 GB and 4\.3 GB are available"):
        _streamed._buffer(5 << 30)


_MEMORY = """
import resource
from pathlib import Path
import numpy as np
from featpipe.blocks import LayerBlocks
from featpipe.rsa._streamed import feature_rdms
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
def read(layer, ids):
    rows = np.empty((len(ids), 100_000), np.float32)
    for row, number in zip(rows, ids.astype(int)):
        np.random.default_rng(number).random(out=row, dtype=np.float32)
    return rows
def blocks(n):
    return LayerBlocks(np.arange(n).astype(str), names=["a"], shapes=[(100_000,)], dims=[("channel",)],
                       digests=["1"], read=read, stream=read)
feature_rdms(blocks(3), buffer=1 << 20)
before = peak()
feature_rdms(blocks(300), buffer=24 << 20)
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_the_buffers_not_the_layers():
    """A layer of 114 MiB goes through a buffer of 24."""
    done = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 48


@pytest.mark.parametrize(
    ("rows", "arguments", "match"),
    [
        (slice(1), {}, "no pairs among 1 stimuli"),
        (slice(5), {"metric": "chebyshev"}, "no metric 'chebyshev'"),
        (slice(5), {"metric": "mahalanobis"}, "need a matrix and noise="),
        (slice(5), {"per_feature": True}, "no scale to divide"),
        (slice(5), {"dtype": int}, "float32 or float64"),
    ],
)
def test_bad_input_is_named_before_anything_is_read(blocks, read_rows, rows, arguments, match):
    with pytest.raises(RequestError, match=match):
        feature_rdms(blocks[rows], **arguments)
    assert not read_rows


def test_nan_is_named_by_its_stimulus(blocks, layers):
    layers["vector"][7, 3] = np.nan
    with pytest.raises(RequestError, match="stimulus '92/07' hold NaN"):
        feature_rdms(blocks)
