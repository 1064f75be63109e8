"""RDMs leave and come back unchanged: in files, in rsatoolbox, under the challenge's names."""

from __future__ import annotations

import sys
import zipfile

import numpy as np
import pytest
import scipy.io

from featpipe.errors import DatasetError, MissingDependency, RequestError
from featpipe.rsa import (
    RDMs,
    concat,
    from_rsatoolbox,
    load_rdms,
    read_challenge_rdms,
    save_rdms,
    to_rsatoolbox,
    write_challenge_rdms,
    write_submission,
)
from featpipe.rsa._challenge import challenge_variable
from featpipe.testing import save_targets


def random_square(rng, *shape):
    square = rng.random((*shape, shape[-1]))
    square = square + square.swapaxes(-1, -2)
    square[..., np.arange(shape[-1]), np.arange(shape[-1])] = 0
    return square


@pytest.fixture
def rdms(rng):
    """Two sets joined, two subjects, two targets, one of them over time."""
    labels = {
        "subjects": ["01", "01", "02", "02"],
        "targets": ["EVC", "MEG-early"] * 2,
        "times": [0, 3, 0, 3],
    }
    parts = [
        RDMs(random_square(rng, 4, n), [f"{s}/é{k}" for k in range(n)], **labels)
        for s, n in (("a", 5), ("b", 4))
    ]
    return concat(parts)


@pytest.mark.parametrize("suffix", [".npz", ".mat"])
@pytest.mark.parametrize("kind", ["all", "one", "float32", "untimed", "two stimuli"])
def test_files_give_the_same_rdms(tmp_path, rdms, suffix, kind):
    given = {
        "all": rdms,
        "one": rdms.rows(np.array([2])),
        "float32": RDMs(rdms.values.astype(np.float32), rdms.ids),
        "untimed": rdms.average_times(),
        "two stimuli": rdms[[1, 2]],
    }[kind]
    save_rdms(tmp_path / f"rdms{suffix}", given)
    back = load_rdms(tmp_path / f"rdms{suffix}")
    assert back == given
    assert back.values.dtype == given.values.dtype
    assert [path.name for path in tmp_path.iterdir()] == [f"rdms{suffix}"]  # no part of it left behind


def test_files_without_ids_are_refused(tmp_path, rdms):
    with pytest.raises(RequestError, match=r"written as .npz or .mat, not 'rdms.csv'"):
        save_rdms(tmp_path / "rdms.csv", rdms)
    np.savez(tmp_path / "a.npz", EVC_RDMs=rdms.values)
    with pytest.raises(DatasetError, match="holds EVC_RDMs, not values and ids"):
        load_rdms(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", values=rdms.values, ids=rdms.ids[1:])
    with pytest.raises(DatasetError, match="do not fit together: There are 8 ids for 9"):
        load_rdms(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", values=np.array([{}]), ids=rdms.ids)
    with pytest.raises(DatasetError, match="pickled objects are not loaded"):
        load_rdms(tmp_path / "c.npz")
    with pytest.raises(DatasetError, match="There is no file"):
        load_rdms(tmp_path / "d.npz")


def test_rsatoolbox_and_back(rdms):
    rsatoolbox = pytest.importorskip("rsatoolbox")
    theirs = to_rsatoolbox(rdms)
    assert isinstance(theirs, rsatoolbox.rdm.RDMs)
    assert (theirs.n_rdm, theirs.n_cond) == (4, 9)
    np.testing.assert_array_equal(theirs.get_matrices()[:, 0, 1], rdms.values[:, 0, 1])
    assert from_rsatoolbox(theirs) == rdms
    selected = theirs.subset("target", "MEG-early").subset_pattern("ids", ["a/é3", "a/é1"])
    back = from_rsatoolbox(selected)
    assert back == rdms.select(targets=["MEG-early"]).take(back.ids)


def test_rsatoolbox_patterns_by_another_name(rng):
    toolbox = pytest.importorskip("rsatoolbox.rdm")
    values = random_square(rng, 1, 3)
    theirs = toolbox.RDMs(values, pattern_descriptors={"conds": ["x", "y", "z"]})
    assert from_rsatoolbox(theirs, ids="conds") == RDMs(values, ["x", "y", "z"])
    with pytest.raises(RequestError, match=r"no pattern descriptor 'ids' but conds; .* ids='conds'"):
        from_rsatoolbox(theirs)
    assert from_rsatoolbox(toolbox.RDMs(values)) == RDMs(values)


def test_without_rsatoolbox(monkeypatch, rdms):
    monkeypatch.setitem(sys.modules, "rsatoolbox.rdm", None)
    with pytest.raises(MissingDependency, match="rsatoolbox, which is not installed: pip install"):
        to_rsatoolbox(rdms)


# Predictions and submissions


@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_predictions_come_back_by_target_with_ids(tmp_path, rng, suffix):
    matrices = {name: random_square(rng, 6) for name in ("EVC", "MEG-late", "lh.V1v", "")}
    ids = [f"78/{k}" for k in range(6)]
    seen = np.arange(6) % 2 == 0
    write_challenge_rdms(tmp_path / f"p{suffix}", matrices, ids, in_training=seen)
    found = read_challenge_rdms(tmp_path / f"p{suffix}")
    assert list(found.rdms) == list(matrices)
    for name, matrix in matrices.items():
        np.testing.assert_array_equal(found.rdms[name], matrix)
    assert found.ids.tolist() == ids
    assert found.in_training.tolist() == seen.tolist()


def test_predictions_have_the_challenges_names_in_the_file(tmp_path, rng):
    rdm = RDMs(random_square(rng, 1, 4), list("abcd"))
    write_challenge_rdms(tmp_path / "p.mat", {"IT_RDMs": rdm, "MEG-early": rdm, "lh.V1v": rdm})
    names = {name for name, *_ in scipy.io.whosmat(tmp_path / "p.mat")}
    assert names == {"IT_RDMs", "MEG_RDMs_early", "lh_V1v_RDMs", "targets", "ids"}
    found = read_challenge_rdms(tmp_path / "p.mat")
    assert list(found.rdms) == ["IT", "MEG-early", "lh.V1v"]
    assert found.ids.tolist() == list("abcd")
    assert found.in_training is None
    assert challenge_variable("1st") == "x1st_RDMs"


@pytest.mark.parametrize("track", ["fmri", "meg"])
def test_a_submission_is_what_the_challenge_asks_for(tmp_path, rng, track):
    targets = {"fmri": ("EVC", "IT"), "meg": ("MEG-early", "MEG-late")}[track]
    variables = {"fmri": ["EVC_RDMs", "IT_RDMs"], "meg": ["MEG_RDMs_early", "MEG_RDMs_late"]}[track]
    matrices = {target: random_square(rng, 7) for target in targets}
    rounded = {
        target: (matrix + 1e-9 * rng.random((7, 7))).astype(np.float32) for target, matrix in matrices.items()
    }
    write_submission(tmp_path / f"submit_{track}.zip", track, rounded)
    with zipfile.ZipFile(tmp_path / f"submit_{track}.zip") as archive:
        assert archive.namelist() == [f"submit_{track}.mat"]
        archive.extractall(tmp_path)
    inside = scipy.io.loadmat(tmp_path / f"submit_{track}.mat")
    assert [name for name in inside if not name.startswith("__")] == variables
    for variable, target in zip(variables, targets, strict=True):
        found = inside[variable]
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, found.T)
        np.testing.assert_array_equal(np.diagonal(found), 0)
        np.testing.assert_allclose(found, matrices[target], atol=1e-6)
    read = read_challenge_rdms(tmp_path / f"submit_{track}.zip")
    assert list(read.rdms) == list(targets)
    assert read.ids is None


@pytest.mark.parametrize("form", ["v5", "v7.3", "npz"])
def test_submissions_of_others_are_read(tmp_path, rng, form):
    arrays = {"EVC_RDMs": random_square(rng, 5), "IT_RDMs": random_square(rng, 5)}
    arrays["IT_RDMs"][1, 2] += 1e-12  # such rounding tells rows from columns
    file = save_targets(tmp_path / "submit_fmri", arrays, form)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(file, f"results/{file.name}")
        archive.writestr("__MACOSX/._submit_fmri.mat", b"")
    for path in (file, tmp_path / "all.zip"):
        found = read_challenge_rdms(path).rdms
        np.testing.assert_array_equal(found["EVC"], arrays["EVC_RDMs"])
        np.testing.assert_array_equal(found["IT"], arrays["IT_RDMs"])


SQUARE = 1 - np.eye(4)
BAD_SUBMISSIONS = {
    "track": ("eeg", {}, "tracks fmri and meg, not 'eeg'"),
    "a target too few": ("fmri", {"EVC": SQUARE}, "exactly the targets EVC and IT, got EVC"),
    "a target too many": ("fmri", {"EVC": SQUARE, "IT": SQUARE, "V4": SQUARE}, "got EVC, IT, V4"),
    "sizes": (
        "fmri",
        {"EVC": SQUARE, "IT": SQUARE[1:, 1:]},
        "different numbers of stimuli: EVC of 4, IT of 3",
    ),
    "vectors": ("fmri", {"EVC": SQUARE[0], "IT": SQUARE}, r"EVC is float64 of shape \(4,\)"),
    "subjects": (
        "fmri",
        {"EVC": np.stack([SQUARE] * 2), "IT": SQUARE},
        r"shape \(2, 4, 4\).*one RDM per target",
    ),
    "similarities": ("fmri", {"EVC": np.eye(4), "IT": SQUARE}, "EVC has a diagonal that is not zero"),
    "asymmetry": ("fmri", {"EVC": np.triu(SQUARE), "IT": SQUARE}, "EVC is not symmetric"),
    "NaN": ("fmri", {"EVC": SQUARE, "IT": np.where(SQUARE, np.nan, 0)}, "IT holds nan for the pair 0, 1"),
}


@pytest.mark.parametrize("case", BAD_SUBMISSIONS)
def test_other_submissions_are_refused_and_nothing_is_written(tmp_path, case):
    track, matrices, message = BAD_SUBMISSIONS[case]
    with pytest.raises(RequestError, match=message):
        write_submission(tmp_path / "s.zip", track, matrices)
    assert not list(tmp_path.iterdir())


def test_a_submission_is_a_zip(tmp_path):
    with pytest.raises(RequestError, match=r"is a .zip, such as submit_fmri.zip, not 's.mat'"):
        write_submission(tmp_path / "s.mat", "fmri", {"EVC": SQUARE, "IT": SQUARE})


def test_other_files_of_predictions_are_refused(tmp_path):
    with pytest.raises(RequestError, match="There is no RDM to write"):
        write_challenge_rdms(tmp_path / "p.npz", {})
    with pytest.raises(RequestError, match="would have one name in the file"):
        write_challenge_rdms(tmp_path / "p.npz", {"a.b": SQUARE, "a_b": SQUARE})
    with pytest.raises(RequestError, match="There are 3 ids for RDMs of 4 stimuli"):
        write_challenge_rdms(tmp_path / "p.npz", {"EVC": SQUARE}, ["a", "b", "c"])
    np.savez(tmp_path / "r.npz", predictions=SQUARE)
    with pytest.raises(
        DatasetError, match=r"holds predictions and no predicted RDMs. They are called EVC_RDMs"
    ):
        read_challenge_rdms(tmp_path / "r.npz")
    np.savez(tmp_path / "m.npz", EVC_RDMs=np.stack([SQUARE] * 15))
    with pytest.raises(DatasetError, match=r"m.npz' cannot be used: EVC_RDMs is .*\(15, 4, 4\)"):
        read_challenge_rdms(tmp_path / "m.npz")


def test_damaged_archives_are_named(tmp_path):
    with pytest.raises(DatasetError, match="There is no file"):
        read_challenge_rdms(tmp_path / "none.zip")
    (tmp_path / "torn.zip").write_bytes(b"PK\x03\x04torn")
    with pytest.raises(DatasetError, match=r"torn.zip' cannot be read as a .zip"):
        read_challenge_rdms(tmp_path / "torn.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DatasetError, match=r"holds no .mat file, only readme.txt"):
        read_challenge_rdms(tmp_path / "other.zip")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("submit_fmri.mat", "hello")
    with pytest.raises(DatasetError, match=r"'submit_fmri.mat' inside .*bad.zip' cannot be read as .mat"):
        read_challenge_rdms(tmp_path / "bad.zip")
