"""The challenge's folders are read as the organisers lay them out."""

from __future__ import annotations

import builtins
import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

from featpipe.datasets import REGIONS, load_dataset, load_stimuli, subjects_of
from featpipe.datasets._mapping import read_mapping
from featpipe.datasets._recordings import Recording, join_recordings
from featpipe.errors import DatasetError
from featpipe.metrics import pearson_r
from featpipe.stimuli import StimulusSet
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


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Three subjects of 30 training images, three of them the same for all."""
    folder = tmp_path_factory.mktemp("several")
    make_algonauts2023(folder, subject=[1, 2, 3], n_train=30, test_responses=True, ceiling="fraction")
    return f"algonauts2023:{folder}"


def test_several_subjects_are_one_dataset_over_the_union_of_their_images(several):
    alone = {name: load_dataset(several, subject=name) for name in ("subj01", "subj03")}
    joined = load_dataset(several, subject=["1", "3"])
    assert joined.ids.tolist() == sorted({i for part in alone.values() for i in part.ids})
    assert joined.n_stimuli == 2 * 30 - 3
    naive = np.full(joined.responses.shape, np.nan, dtype=np.float32)
    for number, part in enumerate(alone.values()):
        for i, row in zip(part.ids, part.responses, strict=True):
            naive[joined.ids.tolist().index(i), number * 136 : (number + 1) * 136] = row
    np.testing.assert_array_equal(joined.responses, naive)


def test_targets_of_several_subjects_say_whose_they_are(several):
    joined, second = load_dataset(several, subject="1,2"), load_dataset(several, subject=2)
    assert joined.subject == "subj01,subj02"
    assert joined.targets["subject"].tolist() == ["subj01"] * 136 + ["subj02"] * 136
    assert joined.targets["target"].tolist()[136] == "subj02.0"
    np.testing.assert_array_equal(joined.masks["subj02.rh.FFA-1"][136:], second.masks["rh.FFA-1"])
    assert not joined.masks["subj02.rh.FFA-1"][:136].any()
    np.testing.assert_array_equal(joined.noise_ceiling[136:], second.noise_ceiling)


@pytest.mark.parametrize("subject", ["1,2", "subj02,subj01", [1, 2], ("2", "01"), ["1", "1", "2"]])
def test_subjects_are_named_in_any_form_and_order(several, subject):
    assert load_dataset(several, subject=subject, target="lh.V1v").subject == "subj01,subj02"


def test_all_subjects_are_everyone(several):
    assert load_dataset(several, subject="all", target="lh.V1v").subject == "subj01,subj02,subj03"
    assert subjects_of(several) == ["subj01", "subj02", "subj03"]


@pytest.mark.parametrize("target", ["lh.V1v", "rh", "subj02", "subj02.lh.V1v", "subj02.rh"])
def test_a_target_is_read_alone(several, target):
    whole, part = load_dataset(several, subject="1,2"), load_dataset(several, subject="1,2", target=target)
    wanted = [
        target in (s, h, f"{s}.{h}") or any(whole.masks[m][n] for m in whole.masks if m.endswith(target))
        for n, (s, h) in enumerate(zip(whole.targets["subject"], whole.targets["hemisphere"], strict=True))
    ]
    rows = np.isin(whole.ids, part.ids)
    np.testing.assert_array_equal(part.responses, whole.responses[np.ix_(rows, wanted)])
    assert part.targets["target"].tolist() == whole.targets["target"][wanted].tolist()
    left = whole.responses[~rows][:, wanted]
    assert np.isnan(left).all()  # images that nobody saw whose targets are read


def test_images_of_several_subjects_are_each_there_once(several):
    union = load_stimuli(several, subject="all", split="train")
    alone = [load_stimuli(several, subject=s) for s in (1, 2, 3)]
    assert set(union.ids) == {i for part in alone for i in part.ids}
    for part in alone:
        assert union.select(part.ids).sha256 == part.sha256
        assert union.open(union.ids.index(part.ids[7])).tobytes() == part.open(7).tobytes()


def test_one_id_of_two_images_is_refused(tmp_path):
    homes = [make_algonauts2023(tmp_path, subject=s, n_train=30) for s in (1, 2)]
    images = [{p.stem.partition("_")[2]: p for p in home.glob("training_split/*/*.png")} for home in homes]
    shared = sorted(images[0].keys() & images[1].keys())[0]
    images[1][shared].write_bytes(next(p for i, p in images[1].items() if i != shared).read_bytes())
    with pytest.raises(DatasetError, match=f"{shared} is one image for subj01 and another for subj02"):
        load_dataset(f"algonauts2023:{tmp_path}", subject="1,2")


def test_what_does_not_fit_in_memory_is_refused_with_its_size(several, monkeypatch):
    monkeypatch.setattr("featpipe.datasets._recordings.available_memory", lambda: 30_000)
    message = r"subj01, subj02, 57 images × 272 targets, take 0.00 GB.*--target lh.V1v, or fewer subjects"
    with pytest.raises(DatasetError, match=message):
        load_dataset(several, subject="1,2")
    assert load_dataset(several, subject="1,2", target="lh.V1v").n_targets < 20


@pytest.mark.parametrize(
    ("subject", "target", "message"),
    [
        ("1,7", None, "no subject '7', only subj01, subj02, subj03"),
        ("1,", None, "no subject ''"),
        ([], None, "No subject of .* is chosen; there are subj01"),
        ("1,2", "lh.V9", r"None of subj01, subj02 of 'algonauts2023' has .* 'lh.V9'. There are 'lh.V1v'"),
        ("1,2", "subj03.lh.V1v", "None of subj01, subj02"),
        ("1,2", "subj02.lh.V9", "'subj02' has no group of targets 'lh.V9'"),
    ],
)
def test_subjects_and_targets_that_are_not_there(several, subject, target, message):
    with pytest.raises(DatasetError, match=message):
        load_dataset(several, subject=subject, target=target)


@pytest.mark.parametrize("data", ["synthetic:n=10", "table:x", "algonauts2019:x"])
def test_subjects_of_other_data_are_not_joined(data):
    with pytest.raises(DatasetError, match=r"cannot be joined into one dataset; those of algonauts2023: can"):
        load_dataset(data, subject=["1", "2"])


def test_responses_of_other_types_and_layouts_are_read_as_they_are(tmp_path):
    home = make_algonauts2023(tmp_path)
    expected = load_dataset(f"algonauts2023:{tmp_path}").responses
    path = home / "training_split" / "training_fmri" / "lh_training_fmri.npy"
    values = np.load(path)
    for variant in (np.asfortranarray(values), values.astype(">f4"), values.astype(np.float64)):
        np.save(path, variant)
        np.testing.assert_array_equal(load_dataset(f"algonauts2023:{tmp_path}").responses, expected)


def test_two_images_of_one_number_are_refused(tmp_path):
    home = make_algonauts2023(tmp_path)
    images = home / "training_split" / "training_images"
    first = next(images.glob("train-0001*"))
    (images / "train-0001_nsd-72999.png").write_bytes(first.read_bytes())
    with pytest.raises(DatasetError, match="have one number; which is first"):
        load_dataset(f"algonauts2023:{tmp_path}")


def test_made_up_subjects_share_images_and_have_signal_at_their_ceilings(tmp_path):
    make_algonauts2023(
        tmp_path,
        subject=[1, 2],
        n_train=300,
        n_test=200,
        test_responses=True,
        ceiling="percent",
        image_size=8,
    )
    train, test = (load_dataset(f"algonauts2023:{tmp_path}", subject=1, split=s) for s in ("train", "test"))
    other = load_dataset(f"algonauts2023:{tmp_path}", subject=2)
    assert len(set(train.ids) & set(other.ids)) == 30
    means = [
        np.stack([np.asarray(d.stimuli.open(row), dtype=float).reshape(4, 2, 4, 2, 3).mean((1, 3)).ravel()
                  for row in range(d.n_stimuli)]) for d in (train, test)
    ]  # fmt: skip
    predicted = Ridge(1.0).fit(means[0], train.responses).predict(means[1])
    explained = pearson_r(test.responses, predicted) ** 2
    assert abs(explained.mean() - test.noise_ceiling.mean()) < 0.08
    assert np.corrcoef(explained, test.noise_ceiling)[0, 1] > 0.9


def test_reading_needs_the_array_and_little_more(tmp_path, rng):
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (3000, 2, 2, 3), dtype=np.uint8))
    np.save(tmp_path / "lh.npy", rng.standard_normal((3000, 2000), dtype=np.float32))
    side = np.load(tmp_path / "lh.npy", mmap_mode="r")
    stimuli = StimulusSet.from_source(tmp_path / "images.npy")
    targets = pd.DataFrame({"target": range(4000)})
    tracemalloc.start()
    dataset = join_recordings([Recording("subj01", stimuli, [side, side], targets, {})], name="made up")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.4 * dataset.responses.nbytes
