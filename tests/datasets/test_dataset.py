"""A dataset is checked when it is made, and selections keep everything aligned."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from featpipe.ceilings import variance_components
from featpipe.datasets import group_masks, load_dataset, region_order
from featpipe.errors import DatasetError
from featpipe.testing import make_table_dataset


@pytest.fixture
def dataset():
    made = load_dataset("synthetic:n=12,targets=8,size=8")
    labels = np.array(["train"] * 8 + ["test"] * 4)
    return replace(
        made, splits=labels, groups=labels, n_repeats=np.arange(1, 13), repeats=made.responses[:, :, None]
    )


def test_rows_stay_aligned(dataset):
    rows = np.array([11, 3, 5])
    part = dataset.select_rows(rows)
    for name in ("ids", "responses", "repeats", "splits", "groups", "n_repeats", "digests"):
        np.testing.assert_array_equal(getattr(part, name), getattr(dataset, name)[rows])
    assert part.stimuli is dataset.stimuli
    np.testing.assert_array_equal(dataset.select_split("test").ids, dataset.ids[8:])


def test_one_image_under_two_ids_has_one_digest(tmp_path):
    folder = make_table_dataset(tmp_path, n=12)
    shutil.copy(folder / "stimuli" / "image_2.png", folder / "stimuli" / "image_7.png")
    digests = load_dataset(f"table:{folder}").digests
    assert digests[2] == digests[7]
    assert len(set(digests)) == 11


def test_targets_stay_aligned(dataset):
    mask = dataset.masks["rh.PPA"] | dataset.masks["lh.V1v"]
    part = dataset.select_targets(mask)
    np.testing.assert_array_equal(part.responses, dataset.responses[:, mask])
    np.testing.assert_array_equal(part.repeats, dataset.repeats[:, mask])
    assert part.targets["roi"].tolist() == ["V1v", "PPA"]
    assert {name: kept.tolist() for name, kept in part.masks.items()} == {
        "lh.V1v": [True, False],
        "rh.PPA": [False, True],
    }


def test_table_of_targets_is_not_changed_in_place(dataset):
    targets = pd.DataFrame({"noise_ceiling": np.ones(8)}, index=range(5, 13))
    replace(dataset, targets=targets)
    assert targets.index[0] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"responses": np.zeros((11, 8))}, "11 rows of responses for 12 ids"),
        ({"repeats": np.zeros((12, 8))}, r"Repeats have shape \(12, 8\); \(12, 8, 'n_repeats'\)"),
        ({"repeats": np.full((12, 8, 2), np.inf)}, "Repeats hold infinity"),
        ({"splits": np.array(["train"])}, "1 splits for 12 stimuli"),
        ({"groups": np.array(["g"] * 11 + [" "])}, "1 stimuli have no entry in groups, first row 11"),
        ({"n_repeats": np.ones(3)}, "3 n_repeats for 12 stimuli"),
        ({"masks": {"lh.V1v": np.ones(8)}}, r"'lh.V1v' is float64 of shape \(8,\)"),
        ({"masks": {"lh.V1v": np.ones(7, dtype=bool)}}, r"'lh.V1v' is bool of shape \(7,\)"),
        ({"ids": np.array([])}, "the list of ids is empty"),
    ],
)
def test_what_does_not_fit(dataset, change, message):
    with pytest.raises(DatasetError, match=message):
        replace(dataset, **change)


def test_split_that_is_not_there(dataset):
    with pytest.raises(DatasetError, match="no split 'val', only test, train"):
        dataset.select_split("val")
    with pytest.raises(DatasetError, match="no splits"):
        load_dataset("synthetic:n=12,targets=8,size=8", split="test")


def test_regions_follow_the_visual_hierarchy():
    names = ["rh.PPA", "lh.mine", "rh.V1v", "V2", "lh.hV4", "lh.V1v", "rh.early", "IT"]
    assert region_order(names) == ["lh.V1v", "rh.V1v", "V2", "lh.hV4", "IT", "rh.PPA", "rh.early", "lh.mine"]


def test_targets_with_an_empty_cell_are_in_no_group():
    targets = pd.DataFrame({"hemisphere": ["lh", "lh", "rh"], "roi": ["V1", "", "V1"]})
    masks = group_masks(targets, ["hemisphere", "roi"])
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "lh.V1": [True, False, False],
        "rh.V1": [False, False, True],
    }


def with_repeats(dataset):
    rng = np.random.default_rng(4)
    single = dataset.responses[:, :, None] + rng.standard_normal((*dataset.responses.shape, 3))
    targets = dataset.targets.drop(columns="noise_ceiling")
    return replace(dataset, repeats=single, responses=single.mean(axis=2), targets=targets)


def test_ceiling_of_repeats_is_that_of_the_selected_rows_and_targets(dataset):
    made = with_repeats(dataset)
    expected = variance_components(made.repeats).noise_ceiling
    np.testing.assert_allclose(made.noise_ceiling, expected)
    assert made.noise_ceiling_from == "variance components of the repeats"
    rows, mask = np.arange(8), made.masks["lh.V1v"]
    of_rows = variance_components(made.repeats[:8]).noise_ceiling
    np.testing.assert_allclose(made.select_rows(rows).noise_ceiling, of_rows)
    np.testing.assert_allclose(made.noise_ceiling_on(rows), of_rows)
    np.testing.assert_allclose(made.select_targets(mask).noise_ceiling, expected[mask])


def test_ceiling_that_is_given_comes_first(dataset):
    assert dataset.repeats is not None
    assert dataset.noise_ceiling_from == "targets"
    np.testing.assert_array_equal(dataset.noise_ceiling, dataset.targets["noise_ceiling"])
    bare = replace(dataset, repeats=None, targets=dataset.targets.drop(columns="noise_ceiling"))
    assert bare.noise_ceiling is bare.noise_ceiling_from is bare.noise_ceiling_on(np.arange(3)) is None


def test_table_of_repeats_has_a_ceiling(tmp_path):
    folder = make_table_dataset(tmp_path, n=40, noise_ceiling=0.5, n_repeats=3)
    targets = pd.read_csv(folder / "targets.csv")
    assert load_dataset(f"table:{folder}").noise_ceiling_from == "targets"
    targets.drop(columns="noise_ceiling").to_csv(folder / "targets.csv", index=False)
    found = load_dataset(f"table:{folder}")
    assert found.noise_ceiling_from == "variance components of the repeats"
    expected = variance_components(np.load(folder / "responses.npy")).noise_ceiling
    np.testing.assert_allclose(found.noise_ceiling, expected, rtol=1e-5)
