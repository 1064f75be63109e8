"""The challenge's folders are read as the organisers lay them out."""

from __future__ import annotations

import builtins
import pickle

import numpy as np
import pytest

from featpipe.datasets import REGIONS, load_dataset, load_stimuli
from featpipe.datasets._mapping import read_mapping
from featpipe.errors import DatasetError
from featpipe.testing import VERTICES, make_algonauts2023


def test_hemispheres_stand_side_by_side(tmp_path):
    home = make_algonauts2023(tmp_path)
    dataset = load_dataset(f"algonauts2023:{tmp_path}")
    fmri = home / "training_split" / "training_fmri"
    np.testing.assert_array_equal(dataset.responses[:, :64], np.load(fmri / "lh_training_fmri.npy"))
    np.testing.assert_array_equal(dataset.responses[:, 64:], np.load(fmri / "rh_training_fmri.npy"))
    assert dataset.targets["hemisphere"].tolist() == ["lh"] * 64 + ["rh"] * 72
    assert dataset.targets["vertex"].tolist() == [*range(64), *range(72)]
    assert dataset.subject == "subj01"


def test_ids_are_those_of_nsd_in_the_order_of_the_rows(tmp_path):
    home = make_algonauts2023(tmp_path, n_train=11)
    files = sorted(path.stem for path in (home / "training_split" / "training_images").iterdir())
    dataset = load_dataset(f"algonauts2023:{tmp_path}")
    assert dataset.ids.tolist() == [name.partition("_")[2] for name in files]
    assert dataset.ids.tolist() == list(dataset.stimuli.ids)
    assert all(i.startswith("nsd-") for i in dataset.test_stimuli.ids)
    assert not set(dataset.ids) & set(dataset.test_stimuli.ids)


def test_masks_name_region_and_hemisphere_and_leave_empty_ones_out(tmp_path):
    home = make_algonauts2023(tmp_path)
    dataset = load_dataset(f"algonauts2023:{home}")
    labels = np.load(home / "roi_masks" / "rh.floc-faces_challenge_space.npy")
    np.testing.assert_array_equal(dataset.masks["rh.FFA-1"][64:], labels == 2)
    assert not dataset.masks["rh.FFA-1"][:64].any()
    assert "lh.aTL-faces" not in dataset.masks  # the last region of each class is made empty
    expected = [f"{h}.{r}" for names in REGIONS.values() for r in names[:-1] for h in ("lh", "rh")]
    assert list(dataset.masks) == expected


def test_real_vertex_counts(tmp_path):
    make_algonauts2023(tmp_path, subject=6, n_train=3, n_test=1, vertices="real")
    dataset = load_dataset(f"algonauts2023:{tmp_path}")
    assert dataset.responses.shape == (3, sum(VERTICES[6]))
    assert dataset.responses.dtype == np.float32


@pytest.mark.parametrize("unit", ["fraction", "percent"])
def test_ceilings_of_either_unit_are_fractions(tmp_path, unit):
    make_algonauts2023(tmp_path / "f", ceiling="fraction")
    make_algonauts2023(tmp_path / "u", ceiling=unit)
    expected, ceiling = (load_dataset(f"algonauts2023:{tmp_path / k}").noise_ceiling for k in "fu")
    np.testing.assert_allclose(ceiling, expected, rtol=1e-5)
    assert 0.5 < ceiling.max() <= 1


@pytest.mark.data
def test_real_noise_ceilings(tmp_path, real_data):
    home = make_algonauts2023(tmp_path, n_train=2, n_test=1, vertices="real")
    (home / "test_split" / "noise_ceiling").mkdir()
    for side in ("lh", "rh"):
        values = np.load(real_data / "nsd_noise_ceiling" / "subj01" / f"{side}.npy")
        np.save(home / "test_split" / "noise_ceiling" / f"{side}_noise_ceiling.npy", values)
    ceiling = load_dataset(f"algonauts2023:{tmp_path}").noise_ceiling
    assert 0.8 < ceiling.max() < 0.9
    assert (ceiling == 0).any()


def test_subjects_are_chosen_by_number_or_name(tmp_path):
    make_algonauts2023(tmp_path, subject=1)
    assert load_dataset(f"algonauts2023:{tmp_path}").subject == "subj01"
    make_algonauts2023(tmp_path, subject=8)
    assert load_dataset(f"algonauts2023:{tmp_path}", subject=8).subject == "subj08"
    with pytest.raises(DatasetError, match="2 subjects, subj01, subj08: choose one"):
        load_dataset(f"algonauts2023:{tmp_path}")
    with pytest.raises(DatasetError, match="no subject '3', only subj01, subj08"):
        load_dataset(f"algonauts2023:{tmp_path}", subject="3")
    with pytest.raises(DatasetError, match="no subject '8', only subj01"):
        load_dataset(f"algonauts2023:{tmp_path / 'subj01'}", subject=8)


def test_test_split_has_responses_in_the_organisers_release_only(tmp_path):
    make_algonauts2023(tmp_path / "public")
    make_algonauts2023(tmp_path / "release", test_responses=True)
    assert load_dataset(f"algonauts2023:{tmp_path / 'release'}", split="test").n_stimuli == 4
    with pytest.raises(DatasetError, match="Only the organisers' release"):
        load_dataset(f"algonauts2023:{tmp_path / 'public'}", split="test")
    assert len(load_stimuli(f"algonauts2023:{tmp_path / 'public'}", split="test")) == 4


def test_one_region_is_one_target_group(tmp_path):
    make_algonauts2023(tmp_path)
    whole = load_dataset(f"algonauts2023:{tmp_path}")
    part = load_dataset(f"algonauts2023:{tmp_path}", target="lh.V1v")
    np.testing.assert_array_equal(part.responses, whole.responses[:, whole.masks["lh.V1v"]])
    assert part.masks["lh.V1v"].all()


class Attack:
    """Pickles to a call that would leave a mark."""

    def __reduce__(self):
        return (exec, ("import builtins; builtins.featpipe_was_here = True",))


@pytest.mark.parametrize("value", [Attack(), {1: Attack()}, {1: Attack}, {1: slice(3)}])
def test_a_pickle_that_asks_for_more_is_refused_and_runs_nothing(tmp_path, value):
    box = np.empty((), dtype=object)
    box[()] = value
    np.save(tmp_path / "mapping_streams.npy", box, allow_pickle=True)
    with pytest.raises(DatasetError, match=r"is no mapping of the challenge .*asks for"):
        read_mapping(tmp_path / "mapping_streams.npy")
    assert not hasattr(builtins, "featpipe_was_here")


def test_a_pickled_call_of_ndarray_itself_is_refused(tmp_path):
    class Huge:
        def __reduce__(self):
            return (np.ndarray, ((1 << 45,), "b"))

    header = tmp_path / "mapping_streams.npy"
    np.save(header, np.array(None, dtype=object), allow_pickle=True)
    start = header.read_bytes().index(b"\n") + 1
    header.write_bytes(header.read_bytes()[:start] + pickle.dumps(Huge()))
    with pytest.raises(DatasetError, match="is no mapping of the challenge"):
        read_mapping(header)


def test_mappings_of_old_and_new_numpy(tmp_path):
    mapping = {0: "Unknown", 1: "V1v", np.int64(2): "V1d"}
    path = tmp_path / "mapping_prf-visualrois.npy"
    np.save(path, mapping, allow_pickle=True)
    assert read_mapping(path) == {0: "Unknown", 1: "V1v", 2: "V1d"}
    header = path.read_bytes()[: path.read_bytes().index(b"\n") + 1]
    old = pickle.dumps(np.array(mapping, dtype=object), protocol=3)  # as numpy 1 wrote it
    path.write_bytes(header + old.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_mapping(path) == {0: "Unknown", 1: "V1v", 2: "V1d"}


def test_a_mapping_as_large_as_a_bomb_is_not_opened(tmp_path):
    path = tmp_path / "mapping_streams.npy"
    path.write_bytes(b"\0" * ((1 << 20) + 1))
    with pytest.raises(DatasetError, match="too many for names of regions"):
        read_mapping(path)
