"""What is sent is what arrives, an array shared by many tasks is written once, and nothing is left behind."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("distributed")  # brings cloudpickle

from featpipe.runs._parcels import SMALL, Sender, pack_result

LARGE = SMALL // 8 + 1


@pytest.fixture
def sender(tmp_path):
    return Sender(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "bool", "U9"])
@pytest.mark.parametrize("layout", ["C", "F", "view"])
def test_arrays_arrive_as_they_were(sender, rng, dtype, layout):
    values = rng.integers(0, 2, (LARGE, 16)).astype(dtype)
    values = values[:, ::2] if layout == "view" else np.asarray(values, order=layout)
    parcel = sender.pack({"deep": [values, "text"]})
    assert len(parcel.content) < 2000
    arrived = parcel.opened()["deep"][0]
    assert (type(arrived), arrived.dtype) == (np.ndarray, values.dtype)
    assert layout == "view" or arrived.flags.c_contiguous == values.flags.c_contiguous
    np.testing.assert_array_equal(arrived, values)
    with pytest.raises(ValueError, match="read-only"):
        arrived[0] = values[1]


def test_a_shared_array_is_written_once(sender, tmp_path, rng):
    values = rng.standard_normal(LARGE)
    for task in range(5):
        sender.pack((task, values, {"again": values}))
    assert len(list(tmp_path.iterdir())) == 1
    sender.pack(values.copy())
    assert len(list(tmp_path.iterdir())) == 2


def test_small_things_and_objects_travel_as_they_are(sender, tmp_path):
    value = {"small": np.arange(5), "objects": np.array([{1}, None], dtype=object), "local": lambda x: x + 1}
    arrived = sender.pack(value).opened()
    assert arrived["local"](1) == 2
    assert arrived["objects"].tolist() == [{1}, None]
    assert not list(tmp_path.iterdir())


def test_whatever_is_large_goes_through_a_file(sender, tmp_path):
    text = "x" * 10 * SMALL
    parcel = sender.pack(text)
    assert (parcel.content, parcel.opened(), parcel.opened()) == (None, text, text)
    sender.forget()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [3, LARGE])
def test_results_are_read_once_and_can_be_written_to(tmp_path, rng, size):
    found = {
        "scores": rng.standard_normal(size),
        "columns": np.asfortranarray(rng.standard_normal((size, 3))),
        "n": 1,
    }
    parcel = pack_result(found, tmp_path)
    assert len(list(tmp_path.iterdir())) == (size == LARGE)
    assert parcel.content is None or len(parcel.content) <= SMALL
    arrived = parcel.opened_once()
    np.testing.assert_array_equal(arrived["columns"], found["columns"])
    arrived["scores"][:] = 0
    assert not list(tmp_path.iterdir())
