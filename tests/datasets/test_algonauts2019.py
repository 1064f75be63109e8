"""The challenge's image sets are read as the organisers lay them out, and joined by id."""

from __future__ import annotations

import pickle
import shutil

import h5py
import numpy as np
import pytest
from scipy.stats import spearmanr

from featpipe.datasets import RDMDataset, load_dataset, load_stimuli
from featpipe.errors import DatasetError
from featpipe.rsa._arrays import read_arrays
from featpipe.rsa._challenge import CHALLENGE_VARIABLES
from featpipe.testing import make_algonauts2019, save_targets

FORMS = ("v5", "v7.3", "npz", "npy")


@pytest.fixture(scope="module")
def challenge(tmp_path_factory):
    """Sets of 12 and 15 images, MEG over three times, and 6 test images without targets. Not to be changed."""
    return make_algonauts2019(tmp_path_factory.mktemp("challenge"), n_test=6)


@pytest.fixture
def one_set(tmp_path):
    """The folder of one set of 12 images, to be spoilt."""
    make_algonauts2019(tmp_path, sets={"92": 12}, n_times=None)
    return tmp_path / "Training_Data" / "92_Image_Set"


def read(folder, **options):
    return load_dataset(f"algonauts2019:{folder}", **options)


def test_sets_are_joined_with_unmeasured_pairs_between_them(challenge):
    dataset = read(challenge)
    assert isinstance(dataset, RDMDataset)
    assert dataset.n_stimuli == 27
    assert dataset.ids.tolist()[:2] == ["92/image_01", "92/image_02"]
    assert dataset.ids[-1] == "118/image_015"
    assert dataset.target_names == tuple(CHALLENGE_VARIABLES)
    across = dataset.rdms.sets[:, None] != dataset.rdms.sets
    np.testing.assert_array_equal(
        np.isnan(dataset.rdms.values), np.broadcast_to(across, dataset.rdms.values.shape)
    )


def test_rows_are_those_of_the_file(challenge):
    rdms = read(challenge, target="IT").rdms
    for name, part in rdms.split_sets():
        file = challenge / "Training_Data" / f"{name}_Image_Set" / "target_fmri.mat"
        np.testing.assert_array_equal(part.values, read_arrays(file)["IT_RDMs"])
    assert rdms.subjects == ("01", "02", "03", "04")


def test_meg_has_an_rdm_per_subject_and_time(challenge):
    rdms = read(challenge / "Training_Data" / "92_Image_Set", target="MEG-late").rdms
    file = challenge / "Training_Data" / "92_Image_Set" / "target_meg.mat"
    meg = read_arrays(file)["MEG_RDMs_late"]  # (4 subjects, 3 times, 12, 12)
    assert rdms.subjects == tuple(np.repeat(["01", "02", "03", "04"], 3))
    assert rdms.times == (0, 1, 2) * 4
    np.testing.assert_array_equal(rdms.values.reshape(meg.shape), meg)
    np.testing.assert_allclose(rdms.average_times().values, meg.mean(axis=1), rtol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_variable_is_the_same_in_every_format(tmp_path, rng, form, dtype):
    values = rng.random((3, 2, 5, 5)).astype(dtype)
    file = save_targets(tmp_path / "target_meg", {"MEG_RDMs_early": values}, form)
    found = read_arrays(file / "MEG_RDMs_early.npy" if form == "npy" else file)["MEG_RDMs_early"]
    np.testing.assert_array_equal(found, values)
    assert found.dtype == dtype


@pytest.mark.parametrize("n_times", [None, 2])
def test_every_format_gives_the_same_dataset(tmp_path, n_times):
    forms = FORMS if n_times else FORMS[:3]  # averages have a file of their own, which no .npy could name
    first, *others = [
        read(make_algonauts2019(tmp_path / form, form=form, n_times=n_times, n_subjects=2)) for form in forms
    ]
    for other in others:
        assert other.rdms == first.rdms
        assert other.digests.tolist() == first.digests.tolist()


def test_planted_rdms_are_found(tmp_path):
    """With little noise all subjects agree, within each set."""
    rdms = read(make_algonauts2019(tmp_path, noise=0.01), target="EVC").rdms
    for _, part in rdms.split_sets():
        assert spearmanr(part.upper().T).statistic.min() > 0.98


@pytest.mark.parametrize("place", ["", "Training_Data"])
def test_any_folder_above_the_sets_will_do(challenge, place):
    assert read(challenge / place).rdms == read(challenge).rdms


@pytest.mark.parametrize("split", [None, "train", "test"])
def test_one_set_alone_is_itself(challenge, split):
    dataset = read(challenge / "Training_Data" / "118_Image_Set", split=split)
    assert dataset.ids.tolist() == [f"118/image_{number:03d}" for number in range(1, 16)]


def test_sets_may_lie_side_by_side_and_one_without_targets_is_to_be_predicted(tmp_path, challenge):
    for folder in challenge.glob("*/*_Image_Set"):
        shutil.copytree(folder, tmp_path / folder.name)
    dataset = read(tmp_path)
    assert dataset.rdms == read(challenge).rdms
    assert dataset.test_stimuli.digest == read(challenge).test_stimuli.digest


def test_the_test_set_is_never_trained_on_even_with_targets_beside_the_others(tmp_path):
    make_algonauts2019(tmp_path / "made", n_test=5, test_targets=True)
    for folder in (tmp_path / "made").glob("*/*_Image_Set"):
        shutil.copytree(folder, tmp_path / "flat" / folder.name)
    assert set(read(tmp_path / "flat").rdms.sets) == {"92", "118"}
    assert set(read(tmp_path / "flat", split="test").rdms.sets) == {"78"}


def test_images_without_targets_can_be_opened(challenge):
    for stimuli in (
        load_stimuli(f"algonauts2019:{challenge}", split="test"),
        load_stimuli(f"algonauts2019:{challenge / 'Test_Data'}"),
        load_stimuli(f"algonauts2019:{challenge / 'Test_Data' / '78_Image_Set'}"),
        read(challenge).test_stimuli,
    ):
        assert stimuli.ids == tuple(f"78/image_{number:02d}" for number in range(1, 7))
        assert stimuli.open(3).size == (24, 24)
    assert load_stimuli(f"algonauts2019:{challenge}").digest == read(challenge).stimuli.digest


def test_joined_stimuli_are_opened_from_their_own_folder(challenge):
    joined = pickle.loads(pickle.dumps(read(challenge).stimuli))
    alone = load_stimuli(f"algonauts2019:{challenge / 'Training_Data' / '118_Image_Set'}")
    row = joined.ids.index("118/image_003")
    assert joined.sha256[row] == alone.sha256[2]
    np.testing.assert_array_equal(np.asarray(joined.open(row)), np.asarray(alone.open(2)))
    assert joined.select(["118/image_003"]).open(0).size == (24, 24)


def test_a_test_set_with_targets_is_scored(tmp_path):
    make_algonauts2019(tmp_path, n_test=5, test_targets=True, form="v7.3")
    dataset = read(tmp_path, split="test", target="MEG-early")
    assert dataset.ids[0] == "78/image_01"
    assert dataset.test_stimuli is None
    assert read(tmp_path / "Test_Data", target="MEG-early").rdms == dataset.rdms
    assert read(tmp_path / "Test_Data" / "78_Image_Set", target="MEG-early").rdms == dataset.rdms


def test_names_in_any_letter_case(one_set):
    one_set.rename(one_set.parent / "92_image_set")
    folder = one_set.parent / "92_image_set"
    expected = read(folder, target="EVC").rdms
    (folder / "target_fmri.mat").rename(folder / "Target_fMRI.mat")
    (folder / "92images").rename(folder / "Images")
    arrays = {name.lower(): values for name, values in read_arrays(folder / "Target_fMRI.mat").items()}
    (folder / "Target_fMRI.mat").unlink()
    save_targets(folder / "TARGET_FMRI", arrays, "npz")
    assert read(folder, target="EVC").rdms == expected


def test_images_may_lie_in_the_set_itself(one_set):
    expected = read(one_set).rdms
    for path in (one_set / "92images").iterdir():
        path.rename(one_set / path.name)
    (one_set / "92images").rmdir()
    assert read(one_set).rdms == expected


def test_time_course_is_preferred_to_its_average(one_set):
    average = read_arrays(one_set / "target_meg_timeavg.mat")
    save_targets(one_set / "target_meg", {k: np.stack([v, v], axis=1) for k, v in average.items()}, "v7.3")
    rdms = read(one_set, target="MEG-early").rdms
    assert rdms.times == (0, 1) * 4


def test_subject_and_targets_are_selected(challenge):
    dataset = read(challenge)
    assert (
        read(challenge, subject="2", target="EVC").rdms.values.tobytes()
        == dataset.select_target("EVC").select_subject(2).rdms.values.tobytes()
    )
    assert read(challenge, subject=2).subject == "02"
    assert dataset.select_targets(["IT", "EVC"]).target_names == ("EVC", "IT")
    rows = np.array([3, 14, 5])
    assert dataset.select_rows(rows).rdms == dataset.rdms[rows]
    assert dataset.select_rows(rows).digests.tolist() == dataset.digests[rows].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "evc"}, "no target 'evc'; did you mean 'EVC'"),
        ({"target": "MEG_late"}, "did you mean 'MEG-late'"),
        ({"target": "V4"}, "There are EVC, IT, MEG-early, MEG-late"),
        ({"subject": 9}, "has no subject '9', only 01, 02"),
        ({"split": "validation"}, "no split 'validation', only train and test"),
        ({"split": "test"}, "78_Image_Set' has no targets: there is no target_fmri.mat"),
    ],
)
def test_wrong_choices_are_named(challenge, options, message):
    with pytest.raises(DatasetError, match=message):
        read(challenge, **options)


def spoilt(change):
    """Rewrite EVC_RDMs of a set."""

    def spoil(folder):
        arrays = read_arrays(folder / "target_fmri.mat")
        values = arrays["EVC_RDMs"].copy()
        changed = change(values)
        save_targets(
            folder / "target_fmri", arrays | {"EVC_RDMs": values if changed is None else changed}, "v5"
        )

    return spoil


def put(value, *place):
    return lambda values: values.__setitem__(place, value)


def truncate(folder):
    path = folder / "target_fmri.mat"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def truncate_hdf5(folder):
    save_targets(folder / "target_fmri", read_arrays(folder / "target_fmri.mat"), "v7.3")
    truncate(folder)


def other_file(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def without(variable):
    def spoil(folder):
        arrays = read_arrays(folder / "target_fmri.mat")
        del arrays[variable]
        save_targets(folder / "target_fmri", arrays, "v7.3")

    return spoil


def link_outside(folder):
    (folder / "target_fmri.mat").rename(folder / "other.h5")
    with h5py.File(folder / "target_fmri.mat", "w") as file:
        file["EVC_RDMs"] = h5py.ExternalLink("other.h5", "EVC_RDMs")
        file["IT_RDMs"] = np.zeros((12, 12, 4))


def drop_image(folder):
    next((folder / "92images").iterdir()).unlink()


BAD = {
    "NaN": (
        spoilt(put(np.nan, 2, 3, 4)),
        r"EVC_RDMs in .*target_fmri.mat', subject 03, holds nan for the pair 3, 4",
    ),
    "infinity": (spoilt(put(np.inf, 0, 1, 0)), "subject 01, holds inf for the pair 1, 0"),
    "asymmetry": (spoilt(put(7.0, 1, 2, 5)), "subject 02, is not symmetric: 7 for the pair 2, 5"),
    "a row too few": (
        spoilt(lambda v: v[:, 1:, 1:]),
        r"shape \(4, 11, 11\); \(subjects, 12, 12\) would be right",
    ),
    "an image too few": (
        drop_image,
        r"shape \(4, 12, 12\); \(subjects, 11, 11\) would be right.*one row and column",
    ),
    "reversed axes": (spoilt(lambda v: v.T.copy()), r"shape \(12, 12, 4\).*Its axes stand in reverse order"),
    "vectors of pairs": (spoilt(lambda v: v[:, 0]), r"shape \(4, 12\)"),
    "complex": (spoilt(lambda v: v.astype(complex)), "holds no variable EVC_RDMs of numbers, only IT_RDMs"),
    "a variable missing": (without("EVC_RDMs"), "target_fmri.mat' holds no variable EVC_RDMs"),
    "truncated v5": (truncate, "target_fmri.mat'.*(truncated|no variable)"),
    "truncated v7.3": (truncate_hdf5, "target_fmri.mat' cannot be read as .mat.*truncated"),
    "empty file": (other_file("target_fmri.mat", b""), "target_fmri.mat' cannot be read as .mat"),
    "not MATLAB": (other_file("target_fmri.mat", b"hello" * 100), "target_fmri.mat' cannot be read as .mat"),
    "a link out of the file": (link_outside, "holds no variable EVC_RDMs of numbers, only IT_RDMs"),
    "two folders of images": (
        lambda f: (f / "images").mkdir(),
        "several folders of images, 92images, images",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_damage_is_named(one_set, case):
    spoil, message = BAD[case]
    spoil(one_set)
    with pytest.raises(DatasetError, match=message):
        read(one_set)


def test_truncated_anywhere_is_an_error_and_nothing_else(one_set):
    path = one_set / "target_fmri.mat"
    arrays = read_arrays(path)
    for form in ("v5", "v7.3", "npz"):
        save_targets(one_set / "target_fmri", arrays, form)
        file = path.with_suffix(".npz") if form == "npz" else path
        whole = file.read_bytes()
        for size in np.linspace(1, len(whole) - 1, 12).astype(int):
            file.write_bytes(whole[:size])
            with pytest.raises(DatasetError, match="target_fmri"):
                read(one_set, target="EVC") and read(one_set, target="IT")
        file.unlink()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "There is no folder .*write algonauts2019:DIR"),
        ("empty", "holds no image set of the challenge"),
        ("Training_Data/118_Image_Set/118images", "holds no image set"),
    ],
)
def test_other_folders_are_refused(tmp_path, place, message):
    make_algonauts2019(tmp_path, sets={"118": 4})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=message):
        read(tmp_path / place)


def test_a_target_that_one_set_lacks(tmp_path):
    make_algonauts2019(tmp_path)
    (tmp_path / "Training_Data" / "92_Image_Set" / "target_meg.mat").unlink()
    with pytest.raises(DatasetError, match=r"92_Image_Set' has no targets MEG-early, MEG-late.*\(EVC, IT\)"):
        read(tmp_path)
    assert read(tmp_path, target="IT").n_stimuli == 27


def test_sets_with_and_without_time_are_not_joined(tmp_path):
    make_algonauts2019(tmp_path, sets={"92": 5})
    make_algonauts2019(tmp_path, sets={"118": 6}, n_times=None)
    with pytest.raises(DatasetError, match=r"92_Image_Set and 118_Image_Set cannot be joined.*differ in"):
        read(tmp_path, target="MEG-early")
    assert read(tmp_path, target="EVC").n_stimuli == 11


def test_numbers_of_subjects_must_agree(tmp_path):
    make_algonauts2019(tmp_path, sets={"92": 5})
    make_algonauts2019(tmp_path, sets={"118": 6}, n_subjects=3)
    with pytest.raises(DatasetError, match=r"cannot be joined.*same subjects.*'04'"):
        read(tmp_path)


@pytest.mark.data
def test_real_data(real_data):
    dataset = read(real_data / "algonauts2019")
    assert dataset.n_stimuli == 210
    assert dataset.rdms.n_rdms == 60
    first = {
        target: dataset.rdms.select(targets=[target]).values[0, 0, :3] for target in dataset.target_names
    }
    np.testing.assert_allclose(first["EVC"], [0, 0.58118169, 0.56870146], atol=1e-8)
    np.testing.assert_allclose(first["IT"], [0, 0.32595707, 0.25652939], atol=1e-8)
    np.testing.assert_allclose(first["MEG-early"], [0, 0.57554781, 0.55697483], atol=1e-8)
    np.testing.assert_allclose(first["MEG-late"], [0, 0.64621872, 0.61158049], atol=1e-8)
    assert dataset.ids.tolist()[91:93] == ["92/image_92", "118/image_001"]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "target", "ceiling"),
    [("92", "EVC", 0.1589), ("92", "IT", 0.3075), ("118", "EVC", 0.1048), ("118", "IT", 0.0728)],
)
def test_real_rdms_give_the_official_ceilings(real_data, name, target, ceiling):
    """So rows, subjects and targets are where they should be."""
    rdms = read(real_data / "algonauts2019" / "Training_Data" / f"{name}_Image_Set", target=target).rdms
    mean = rdms.mean().upper()[0]
    found = np.mean([spearmanr(subject, mean).statistic ** 2 for subject in rdms.upper()])
    assert round(found, 4) == ceiling


def test_similarities_are_no_dissimilarities(tmp_path):
    make_algonauts2019(tmp_path, sets={"92": 12}, form="npz", n_times=None)
    file = tmp_path / "Training_Data" / "92_Image_Set" / "target_fmri.npz"
    with np.load(file) as saved:
        arrays = {name: 1 - values for name, values in saved.items()}
    np.savez(file, **arrays)
    with pytest.raises(DatasetError, match=r"has 1 on its diagonal, above most .* looks like similarities"):
        load_dataset(f"algonauts2019:{tmp_path}")
