"""Arrays from elsewhere: keyed by content, known by id."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest

from featpipe import CachedFeatures
from featpipe.errors import AmbiguousFeatures, DatasetError, NonFiniteFeatures, StimulusError
from featpipe.imported import import_array
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache

IDS = [f"image_{number}" for number in range(20)]


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "cache")


@pytest.fixture
def ids(tmp_path):
    pd.DataFrame({"id": IDS, "caption": "x"}).to_csv(tmp_path / "ids.csv", index=False)
    return tmp_path / "ids.csv"


def _save(path, values):
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["a/b"] = values
        return f"{path}:a/b"
    np.savez(path, b=values, c=np.zeros(3)) if path.suffix == ".npz" else np.save(path, values)
    return f"{path}:b" if path.suffix == ".npz" else str(path)


@pytest.mark.parametrize("ending", [".npy", ".npz", ".h5"])
@pytest.mark.parametrize("shape", [(20,), (20, 3), (20, 2, 4, 5)])
@pytest.mark.parametrize("dtype", ["float64", "int16", "bool"])
def test_any_array_of_numbers(tmp_path, cache, ids, rng, ending, shape, dtype):
    values = (rng.standard_normal(shape) * 3).astype(dtype)
    array = import_array(_save(tmp_path / f"x{ending}", values), cache, name="x", ids=ids)
    assert array.row_shape == (shape[1:] or (1,))
    read = CachedFeatures(cache.root, model="imported:x").fit_transform(IDS)
    np.testing.assert_array_equal(read, values.reshape(20, -1).astype(np.float32))


def test_the_key_is_the_content(tmp_path, cache, ids, rng):
    values = rng.standard_normal((20, 3))
    keys = []
    for change in (0, 0, 1e-9):
        np.save(tmp_path / "x.npy", values + change)
        keys.append(import_array(tmp_path / "x.npy", cache, name="x", ids=ids).key)
    assert keys[0] == keys[1] != keys[2]
    with pytest.raises(AmbiguousFeatures, match="differ in weights"):
        CachedFeatures(cache.root, model="imported:x").fit(IDS)


def test_order_of_the_ids_is_the_order_of_the_rows(tmp_path, cache, rng):
    values = rng.standard_normal((20, 3)).astype(np.float32)
    pd.DataFrame({"id": IDS[::-1]}).to_csv(tmp_path / "ids.csv", index=False)
    np.save(tmp_path / "x.npy", values)
    import_array(tmp_path / "x.npy", cache, name="x", ids=tmp_path / "ids.csv")
    np.testing.assert_array_equal(CachedFeatures(cache.root).fit_transform(IDS), values[::-1])


def test_found_by_id_whatever_set_is_asked_for(tmp_path, cache, ids, rng):
    np.save(tmp_path / "x.npy", rng.standard_normal((20, 3)))
    import_array(tmp_path / "x.npy", cache, name="x", ids=ids)
    assert CachedFeatures(cache.root, model="imported:x", stimuli="0" * 64).fit_transform(IDS[:2]).shape == (
        2,
        3,
    )


def test_images_give_their_digests(tmp_path, cache, ids, rng, tiny_stimuli):
    np.save(tmp_path / "x.npy", rng.standard_normal((20, 3)))
    images = StimulusSet.from_source(tiny_stimuli)
    array = import_array(tmp_path / "x.npy", cache, name="x", ids=ids, images=images)
    assert set(array.manifest.sha256) == set(images.sha256)
    pd.DataFrame({"id": ["nobody", *IDS[1:]]}).to_csv(ids, index=False)
    with pytest.raises(StimulusError, match="nobody"):
        import_array(tmp_path / "x.npy", cache, name="x", ids=ids, images=images)


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, "float32"), (np.inf, "float32"), (1e5, "float16"), (1e300, "float32")]
)
def test_what_would_not_be_finite_is_refused(tmp_path, cache, ids, value, dtype):
    values = np.zeros((20, 3))
    values[4, 1] = value
    np.save(tmp_path / "x.npy", values)
    other = ", or store float32" if dtype == "float16" else ""  # what is float32 already cannot be stored so
    with pytest.raises(NonFiniteFeatures, match=rf"as {dtype}, first for 'image_4'.*rows{other}\.$"):
        import_array(tmp_path / "x.npy", cache, name="x", ids=ids, store_dtype=dtype)
    assert cache.keys() == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((19, 2)), "19 rows and .* has 20 ids"),
        (np.array(["a"] * 20), "dtype <U1"),
        (np.zeros((20, 2), complex), "complex128"),
        (np.zeros((0, 2)), r"shape \(0, 2\)"),
        (np.float64(3), r"shape \(\)"),
    ],
)
def test_what_is_no_array_of_rows(tmp_path, cache, ids, values, message):
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(DatasetError, match=message):
        import_array(tmp_path / "x.npy", cache, name="x", ids=ids)


@pytest.mark.parametrize("name", ["", "a b", "../x", ".x", "a:b", "ä"])
def test_names_are_plain(tmp_path, cache, ids, name):
    with pytest.raises(DatasetError, match="cannot name an imported array"):
        import_array(tmp_path / "x.npy", cache, name=name, ids=ids)


def test_several_arrays_in_a_file_must_be_chosen(tmp_path, cache, ids):
    _save(tmp_path / "x.npz", np.zeros((20, 2)))
    with pytest.raises(DatasetError, match=r"holds 2 arrays, b, c: write FILE:NAME"):
        import_array(tmp_path / "x.npz", cache, name="x", ids=ids)
    _save(tmp_path / "x.h5", np.zeros((20, 2)))
    for member in ("a", "zz"):
        with pytest.raises(DatasetError, match="cannot be read as an array"):
            import_array(f"{tmp_path / 'x.h5'}:{member}", cache, name="x", ids=ids)


@pytest.mark.parametrize("ending", [".npy", ".npz", ".h5", ".txt"])
@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04"])
def test_damaged_files(tmp_path, cache, ids, ending, content):
    (tmp_path / f"x{ending}").write_bytes(content)
    with pytest.raises(DatasetError, match="cannot be read as an array"):
        import_array(tmp_path / f"x{ending}", cache, name="x", ids=ids)
