"""``table:`` reads what a user has, by id, and says what does not fit."""

from __future__ import annotations

import importlib.util

import h5py
import numpy as np
import pandas as pd
import pytest

from featpipe.datasets import load_dataset, load_stimuli
from featpipe.errors import DatasetError
from featpipe.testing import make_images, make_table_dataset

needs_netcdf = pytest.mark.skipif(
    importlib.util.find_spec("h5netcdf") is None, reason="needs the extra netcdf"
)


@pytest.fixture
def folder(tmp_path):
    """Twelve images, responses row by row in natural order, targets with groups."""
    return make_table_dataset(tmp_path / "recordings", n=12)


def write_toml(folder, text):
    (folder / "dataset.toml").write_text(text)
    return f"table:{folder / 'dataset.toml'}"


def test_folder_joins_rows_in_natural_order(folder):
    dataset = load_dataset(f"table:{folder}")
    assert dataset.ids.tolist() == [f"image_{number}" for number in range(12)]  # 2 before 10
    np.testing.assert_array_equal(dataset.responses, np.load(folder / "responses.npy"))
    assert list(dataset.masks) == ["lh.V1v", "rh.V1v", "lh.hV4", "rh.hV4"]
    assert dataset.name == "recordings"


def test_ids_column_carries_each_row_to_its_image(folder, rng):
    order = rng.permutation(12)
    responses = np.load(folder / "responses.npy")
    np.save(folder / "shuffled.npy", responses[order])
    pd.DataFrame({"image": [f"image_{k}" for k in order]}).to_csv(folder / "trials.csv", index=False)
    text = 'stimuli = "stimuli"\nresponses = "shuffled.npy"\nids = "trials.csv:image"'
    dataset = load_dataset(write_toml(folder, text))
    back = np.argsort([int(i.removeprefix("image_")) for i in dataset.ids])
    np.testing.assert_array_equal(dataset.responses[back], responses)
    assert dataset.stimuli.digest == load_dataset(f"table:{folder}").stimuli.digest


def test_images_without_responses_are_left_out_of_the_stimuli(folder):
    np.save(folder / "some.npy", np.zeros((2, 3)))
    (folder / "ids.csv").write_text("id\nimage_7\nimage_3\n")
    dataset = load_dataset(
        write_toml(folder, 'stimuli = "stimuli"\nresponses = "some.npy"\nids = "ids.csv:id"')
    )
    assert dataset.stimuli.ids == ("image_3", "image_7")
    assert dataset.ids.tolist() == ["image_7", "image_3"]
    by_id = dict(zip(dataset.stimuli.ids, dataset.stimuli.sha256, strict=True))
    assert dataset.digests.tolist() == [by_id["image_7"], by_id["image_3"]]


def test_repeats_are_averaged_without_those_missing(folder, rng):
    repeats = rng.standard_normal((12, 8, 4)).astype(np.float32)
    repeats[0, :, 2:] = np.nan
    repeats[1, 0] = np.nan  # never shown
    np.save(folder / "responses.npy", repeats)
    dataset = load_dataset(f"table:{folder}")
    np.testing.assert_allclose(dataset.responses[0], repeats[0, :, :2].mean(axis=1), rtol=1e-5)
    assert np.isnan(dataset.responses).sum() == 1
    np.testing.assert_array_equal(dataset.repeats, repeats)
    assert dataset.n_repeats is None


def _save_h5(path, values):
    with h5py.File(path, "w") as file:
        file["sessions/betas"] = values


def _save_nc(path, values):
    import xarray

    xarray.Dataset({"betas": (("stimulus", "target"), values)}).to_netcdf(path, engine="h5netcdf")


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("r.npy", np.save),
        ("r.npz:betas", lambda path, v: np.savez(path, betas=v, other=v[:1])),
        ("r.h5:sessions/betas", _save_h5),
        ("r.csv", lambda path, v: pd.DataFrame(v, index=pd.Index(range(12), name="id")).to_csv(path)),
        pytest.param("r.nc", _save_nc, marks=needs_netcdf),
    ],
)
def test_every_format_gives_the_same_numbers(folder, rng, name, save):
    values = rng.standard_normal((12, 5)).astype(np.float32)
    save(folder / name.partition(":")[0], values)
    data = write_toml(folder, f'stimuli = "stimuli"\nrows = "sorted"\nresponses = "{name}"')
    np.testing.assert_allclose(load_dataset(data).responses, values, rtol=1e-6)


def test_splits_are_joined_by_id(folder):
    (folder / "splits.csv").write_text(
        "id,split,group,n_repeats\n"
        + "".join(f"image_{k},{'test' if k > 8 else 'train'},g{k // 3},{k + 1}\n" for k in range(11, -1, -1))
    )
    dataset = load_dataset(f"table:{folder}")
    assert dataset.splits.tolist() == ["train"] * 9 + ["test"] * 3
    assert dataset.groups.tolist() == [f"g{k // 3}" for k in range(12)]
    np.testing.assert_array_equal(dataset.n_repeats, np.arange(1, 13))
    assert load_dataset(f"table:{folder}", split="test").ids.tolist() == ["image_9", "image_10", "image_11"]


def test_one_table_per_subject(folder):
    np.save(folder / "two.npy", np.load(folder / "responses.npy")[:, :3])
    text = 'stimuli = "stimuli"\nrows = "sorted"\n[responses]\nsubj01 = "responses.npy"\nsubj02 = "two.npy"'
    data = write_toml(folder, text)
    assert load_dataset(data, subject=2).n_targets == 3
    assert load_dataset(data, subject="subj01").subject == "subj01"
    with pytest.raises(DatasetError, match="has 2 subjects, subj01, subj02: choose one"):
        load_dataset(data)
    with pytest.raises(DatasetError, match="has no subject '3', only subj01, subj02"):
        load_dataset(data, subject=3)


def test_subject_column_chooses_among_targets(folder):
    targets = pd.read_csv(folder / "targets.csv").assign(subject=["01"] * 3 + ["02"] * 5)
    targets.to_csv(folder / "targets.csv", index=False)
    dataset = load_dataset(f"table:{folder}", subject=1)
    assert (dataset.n_targets, dataset.subject) == (3, "01")
    assert load_dataset(f"table:{folder}").n_targets == 8


def test_target_names_a_group(folder):
    dataset = load_dataset(f"table:{folder}", target="rh.hV4")
    assert set(dataset.targets["name"]) == {"rh.hV4.0", "rh.hV4.1"}
    assert load_dataset(f"table:{folder}", target="rh").n_targets == 4
    with pytest.raises(DatasetError, match=r"no group of targets 'rh.V4'. There are rh.hV4"):
        load_dataset(f"table:{folder}", target="rh.V4")


@pytest.mark.parametrize(
    ("said", "values", "expected"),
    [
        ('unit = "percent"', [0, 25, 81], [0, 0.25, 0.81]),
        ('unit = "fraction"', [0, 0.25, 0.81], [0, 0.25, 0.81]),
        ('unit = "percent"\nof = "r"', [0, 50, 90], [0, 0.25, 0.81]),
    ],
)
def test_ceilings_become_fractions_of_variance(folder, said, values, expected):
    np.save(folder / "ceiling.npy", np.array(values, dtype=float))
    np.save(folder / "three.npy", np.zeros((12, 3)))
    text = 'stimuli = "stimuli"\nrows = "sorted"\nresponses = "three.npy"\n'
    text += '[noise_ceiling]\nfile = "ceiling.npy"\n'
    np.testing.assert_allclose(load_dataset(write_toml(folder, text + said)).noise_ceiling, expected)


def test_stimuli_alone_need_no_responses(folder):
    (folder / "responses.npy").write_bytes(b"broken")
    assert len(load_stimuli(f"table:{folder}")) == 12


@pytest.mark.data
def test_links_are_read_under_their_own_names(tmp_path, real_data):
    """The V4 recordings as a user lays them out: links to files of other names, repeats with NaN."""
    source = real_data / "v4" / "210325"
    (tmp_path / "stimuli.zip").symlink_to(source / "images.zip")
    (tmp_path / "responses.npy").symlink_to(source / "responses_repeats.npy")
    dataset = load_dataset(f"table:{tmp_path}")
    assert dataset.repeats.shape == (640, 50, 10)
    assert dataset.ids[9] == "image0010"
    np.testing.assert_allclose(dataset.responses, np.load(source / "responses.npy"), rtol=1e-4, atol=1e-5)


@pytest.mark.data
def test_real_recordings_in_a_folder_of_their_archive(tmp_path, real_data):
    source = real_data / "v4" / "190923"
    (tmp_path / "stimuli.zip").symlink_to(source / "images.zip")
    (tmp_path / "responses.npy").symlink_to(source / "responses.npy")
    dataset = load_dataset(f"table:{tmp_path}")
    assert (dataset.n_stimuli, dataset.n_targets, dataset.ids[0]) == (1200, 33, "image0001")


def test_ids_of_subfolders(tmp_path):
    make_images(tmp_path / "stimuli", ["a/1.png", "b/1.png"])
    np.save(tmp_path / "responses.npy", np.zeros((2, 1)))
    assert load_dataset(f"table:{tmp_path}").ids.tolist() == ["a/1", "b/1"]


def test_names_that_sort_in_two_ways_are_pointed_out(tmp_path):
    make_table_dataset(tmp_path, n=12)
    with pytest.warns(
        UserWarning, match=r"row 2 is 'image_2'; sorted as texts it would be 'image_10'.*write ids ="
    ):
        load_dataset(f"table:{tmp_path}")


def test_a_selected_target_keeps_its_number(tmp_path):
    make_table_dataset(tmp_path, n=12)
    (tmp_path / "targets.csv").unlink()
    dataset = load_dataset(f"table:{tmp_path}")
    assert dataset.select_targets(np.arange(dataset.n_targets) == 5).targets["target"].tolist() == [5]
