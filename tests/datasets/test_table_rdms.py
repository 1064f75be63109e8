"""``table:`` reads RDMs that a user has, by id, and says what does not fit."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

from featpipe.datasets import RDMDataset, load_dataset, load_stimuli
from featpipe.errors import DatasetError
from featpipe.rsa import RDMs
from featpipe.rsa._exchange import save_rdms
from featpipe.stimuli import StimulusSet
from featpipe.testing import make_images, save_targets

N = 12
IDS = [f"image_{number}" for number in range(N)]


@pytest.fixture
def folder(tmp_path):
    make_images(tmp_path / "stimuli", [f"{name}.png" for name in IDS], size=8)
    return tmp_path


@pytest.fixture
def values(rng):
    """RDMs of three subjects."""
    square = rng.random((3, N, N))
    square += square.swapaxes(1, 2)
    square[:, np.arange(N), np.arange(N)] = 0
    return square


def described(folder, text, *, rows='rows = "sorted"'):
    (folder / "dataset.toml").write_text(f'stimuli = "stimuli"\n{rows}\n{text}')
    return f"table:{folder}"


def test_folder_joins_rows_in_natural_order(folder, values):
    np.savez(folder / "rdms.npz", rdms=values)
    dataset = load_dataset(f"table:{folder}")
    assert isinstance(dataset, RDMDataset)
    assert dataset.ids.tolist() == IDS  # 2 before 10
    np.testing.assert_array_equal(dataset.rdms.values, values)
    assert dataset.rdms.subjects == ("01", "02", "03")
    assert dataset.target_names == ("",)
    assert load_stimuli(f"table:{folder}").digest == dataset.stimuli.digest


@pytest.mark.parametrize("form", ["v5", "npz"])
def test_ids_beside_rdms_count_rather_than_the_order_of_rows(folder, values, form, rng):
    order = rng.permutation(N)
    shuffled = values[:, order][:, :, order]
    save_targets(folder / "rdms", {"IT_RDMs": shuffled, "ids": np.array(IDS)[order]}, form)
    dataset = load_dataset(f"table:{folder}")
    np.testing.assert_array_equal(dataset.rdms.take(IDS).values, values)


@pytest.mark.parametrize(
    ("ids", "match"),
    [
        (IDS[:-1], "has 11 ids inside, and IT_RDMs has 12 rows"),
        ([*IDS[:-1], IDS[0]], "has the id 'image_0' more than once"),
        ([f"other_{number}" for number in range(N)], "other_0"),
    ],
)
def test_ids_beside_rdms_that_fit_no_images_are_refused(folder, values, ids, match):
    np.savez(folder / "rdms.npz", IT_RDMs=values, ids=np.array(ids))
    with pytest.raises(DatasetError, match=match):
        load_dataset(f"table:{folder}")


@pytest.mark.parametrize("form", ["v5", "v7.3", "npz"])
def test_arrays_of_a_file_are_targets_by_name(folder, values, form):
    arrays = {"EVC_RDMs": values, "MEG_RDMs_late": values[::-1] * 2, "V4_RDMs": values[:1]}
    file = save_targets(folder / "measured", arrays, form)
    dataset = load_dataset(described(folder, f'rdms = "{file.name}"'))
    assert dataset.target_names == ("EVC", "MEG-late", "V4")
    np.testing.assert_array_equal(dataset.select_target("MEG-late").rdms.values, values[::-1] * 2)
    one = load_dataset(described(folder, f'rdms = "{file.name}:V4_RDMs"'), target="V4")
    assert one.rdms.n_rdms == 1


def test_a_table_names_the_targets(folder, values):
    np.save(folder / "a.npy", values)
    np.savez(folder / "b.npz", one=values[0], two=values[1])
    dataset = load_dataset(described(folder, '[rdms]\nIT = "a.npy"\nmodel = "b.npz:two"'))
    assert dataset.rdms.targets == ("IT", "IT", "IT", "model")
    np.testing.assert_array_equal(dataset.rdms.values[3], values[1])
    assert load_dataset(f"table:{folder}", subject="02").rdms.targets == ("IT",)


def test_ids_carry_rows_and_columns_to_their_images(folder, values, rng):
    order = rng.permutation(N)[:10]
    np.save(folder / "rdms.npy", values[:, order[:, None], order])
    pd.DataFrame({"id": np.array(IDS)[order]}).to_csv(folder / "ids.csv", index=False)
    dataset = load_dataset(described(folder, 'rdms = "rdms.npy"', rows='ids = "ids.csv:id"'))
    np.testing.assert_array_equal(
        dataset.rdms.take(np.array(IDS)[np.sort(order)]).values,
        values[:, np.sort(order)[:, None], np.sort(order)],
    )
    assert set(dataset.stimuli.ids) == set(dataset.ids)


@pytest.mark.parametrize("suffix", [".npz", ".mat"])
@pytest.mark.parametrize("toml", [True, False])
def test_a_saved_file_has_its_ids_inside(folder, values, rng, suffix, toml):
    order = rng.permutation(N)
    rdms = RDMs(values, IDS, subjects="abc", targets=["IT"] * 3)[order]
    save_rdms(folder / f"rdms{suffix}", rdms)
    dataset = load_dataset(
        described(folder, f'rdms = "rdms{suffix}"', rows="") if toml else f"table:{folder}"
    )
    assert dataset.rdms == rdms


def test_saved_files_of_several_targets_are_joined_by_id(folder, values, rng):
    order = rng.permutation(N)
    save_rdms(folder / "a.npz", RDMs(values, IDS))
    save_rdms(folder / "b.npz", RDMs(values, IDS)[order])
    rdms = load_dataset(described(folder, '[rdms]\nV1 = "a.npz"\nV2 = "b.npz"', rows="")).rdms
    np.testing.assert_array_equal(rdms.select(targets=["V2"]).values, values)


def test_pairs_may_be_missing_and_splits_are_respected(folder, values):
    values[:, 0, 5] = values[:, 5, 0] = np.nan
    np.save(folder / "rdms.npy", values)
    parts = ["train"] * 8 + ["test"] * 4
    pd.DataFrame({"id": IDS, "split": parts, "group": list("aabbccddeeff")}).to_csv(
        folder / "splits.csv", index=False
    )
    dataset = load_dataset(f"table:{folder}")
    assert dataset.groups.tolist() == list("aabbccddeeff")
    test = load_dataset(f"table:{folder}", split="test")
    assert test.ids.tolist() == IDS[8:]
    np.testing.assert_array_equal(test.rdms.values, values[:, 8:, 8:])


def test_folders_of_images_are_stimulus_sets(tmp_path, rng):
    make_images(tmp_path / "stimuli", [f"{s}/{k}.png" for s in "ab" for k in range(3)], size=8)
    rdms = RDMs(np.ones((1, 6, 6)))
    np.save(tmp_path / "rdms.npy", rdms.values)
    assert load_dataset(f"table:{tmp_path}").rdms.sets.tolist() == list("aaabbb")


BAD = {
    "responses too": ('rdms = "r.npy"\nresponses = "r.npy"', "names both rdms and responses"),
    "targets": (
        'rdms = "r.npy"\ntargets = "t.csv"',
        "names both rdms and targets, which goes with responses",
    ),
    "ceilings": ('rdms = "r.npy"\n[noise_ceiling]\nunit = "percent"', "names both rdms and noise_ceiling"),
    "a list": ('rdms = ["r.npy"]', "rdms must be a text or a table of texts per target"),
    "splits per subject": ('rdms = "r.npy"\n[splits]\na = "s.csv"', "splits must be a text"),
    "no such file": ('rdms = "none.npy"', "There is no file .*none.npy"),
    "no such kind": ('rdms = "dataset.toml"', "is of no kind that RDMs are read from: .mat, .npz, .npy"),
    "no such array": ('rdms = "two.npz:three"', "no RDMs called 'three'.*one .*two"),
    "several arrays for one target": (
        '[rdms]\nIT = "two.npz"',
        "several RDMs, 'one', 'two'.*Write two.npz:NAME",
    ),
    "no square": ('rdms = "flat.npy"', r"holds no RDMs, arrays of shape .* there are 'flat \(3, 7\)'"),
    "too few rows": ('rdms = "few.npy"', "12 stimuli and 11 rows in 'few.npy'"),
    "infinite": ('rdms = "inf.npy"', "inf in .*subject 01, holds inf for the pair 1, 2"),
    "not symmetric": ('rdms = "skew.npy"', "subject 03, is not symmetric"),
    "never measured": ('rdms = "nan.npy"', "1 of 3 RDMs hold no measured pair"),
    "a torn file": ('rdms = "torn.npy"', "torn.npy' cannot be read as .npy.*pickled objects are not loaded"),
    "a member of a saved file": ('rdms = "saved.npz:values"', "has ids inside and is read as a whole"),
    "several targets in one": (
        '[rdms]\nIT = "saved.npz"',
        "holds the targets a, b, c, and one is meant for IT",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named(folder, values, case):
    text, message = BAD[case]
    infinite, skew, unmeasured = values.copy(), values.copy(), values.copy()
    infinite[0, 1, 2] = np.inf
    skew[2, 4, 5] = 9
    unmeasured[1] = np.nan
    for name, array in {
        "r": values, "flat": values[:, 0, :7], "few": values[:, 1:, 1:],
        "inf": infinite, "skew": skew, "nan": unmeasured,
    }.items():  # fmt: skip
        np.save(folder / f"{name}.npy", array)
    np.savez(folder / "two.npz", one=values, two=values)
    save_rdms(folder / "saved.npz", RDMs(values, IDS, targets="abc"))
    (folder / "torn.npy").write_bytes(b"torn")
    with pytest.raises(DatasetError, match=message):
        load_dataset(described(folder, text))


def test_rows_of_arrays_must_be_said(folder, values):
    np.save(folder / "r.npy", values)
    with pytest.raises(DatasetError, match=r"'r.npy' has no ids inside, and .* does not say which row"):
        load_dataset(described(folder, 'rdms = "r.npy"', rows=""))
    save_rdms(folder / "s.npz", RDMs(values, IDS))
    with pytest.raises(DatasetError, match=r"'s.npz' has its ids inside; leave ids = 'ids.csv:id' out"):
        load_dataset(described(folder, 'rdms = "s.npz"', rows='ids = "ids.csv:id"'))


def test_repeats_are_refused(folder, values):
    np.save(folder / "rdms.npy", values)
    pd.DataFrame({"id": IDS, "n_repeats": 2}).to_csv(folder / "splits.csv", index=False)
    with pytest.raises(DatasetError, match="n_repeats, which weigh rows of responses"):
        load_dataset(f"table:{folder}")


def test_ids_inside_without_image(folder, values):
    save_rdms(folder / "rdms.npz", RDMs(values, [f"other_{i}" for i in range(N)]))
    with pytest.raises(DatasetError, match="12 of 12 ids have no image"):
        load_dataset(f"table:{folder}")


def test_dataset_checks_itself(folder, values):
    stimuli = StimulusSet.from_source(folder / "stimuli")
    rdms = RDMs(values, IDS, targets=["IT"] * 3)
    dataset = RDMDataset("d", stimuli, IDS, rdms, splits=["train"] * N)
    again = pickle.loads(pickle.dumps(dataset))
    assert again.rdms == rdms
    assert again.digests.tolist() == dataset.digests.tolist() == list(stimuli.sha256)
    with pytest.raises(DatasetError, match="Row 0 has the id 'image_11', and 'image_0' in the RDMs"):
        RDMDataset("d", stimuli, IDS[::-1], rdms)
    with pytest.raises(DatasetError, match="11 ids for RDMs of 12 stimuli"):
        RDMDataset("d", stimuli, IDS[1:], rdms)
    with pytest.raises(DatasetError, match="rdms must be RDMs, got ndarray"):
        RDMDataset("d", stimuli, IDS, values)
    with pytest.raises(DatasetError, match="3 splits for 12 stimuli"):
        RDMDataset("d", stimuli, IDS, rdms, splits=list("abc"))
    with pytest.raises(DatasetError, match="has no split 'test', only train"):
        dataset.select_split("test")
    with pytest.raises(DatasetError, match=r"got the text 'IT'; write \['IT'\]"):
        dataset.select_targets("IT")
    with pytest.raises(DatasetError, match="No target is chosen; dataset 'd' has IT"):
        dataset.select_targets([])
    assert repr(dataset) == "RDMDataset('d': 12 stimuli, 3 RDMs of IT)"
