"""Positions of vertices come from a surface of fsaverage, or there are none."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from featpipe.datasets import load_dataset
from featpipe.datasets._surface import parse_surface, read_positions
from featpipe.errors import DatasetError, MissingDependency
from featpipe.testing import make_algonauts2023, make_fsaverage

nibabel = pytest.importorskip("nibabel")


@pytest.fixture(scope="module")
def surface(tmp_path_factory):
    return make_fsaverage(tmp_path_factory.mktemp("surface"))


@pytest.fixture(scope="module")
def challenge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alg")
    make_algonauts2023(folder, subject=[1, 2])
    return folder


def test_each_vertex_is_where_fsaverage_has_it(challenge, surface):
    targets = load_dataset(f"algonauts2023:{challenge}", subject=1, surface=surface).targets
    for side, path in parse_surface(surface).items():
        points = nibabel.load(path).agg_data("pointset")
        whole = np.load(challenge / "subj01" / "roi_masks" / f"{side}.all-vertices_fsaverage_space.npy")
        found = targets.loc[targets["hemisphere"] == side, ["x", "y", "z"]].to_numpy()
        np.testing.assert_array_equal(found, points[np.flatnonzero(whole)])


def test_freesurfer_geometry_says_the_same_as_gifti(surface, tmp_path):
    gifti, binary = read_positions(surface), read_positions(make_fsaverage(tmp_path, form="freesurfer"))
    for side in ("lh", "rh"):
        np.testing.assert_array_equal(gifti[side], binary[side])


def test_positions_follow_a_target_and_several_subjects(challenge, surface):
    data = f"algonauts2023:{challenge}"
    whole = load_dataset(data, subject=2, surface=surface)
    joined = load_dataset(data, subject="1,2", target="rh.V1v", surface=surface)
    mine = joined.targets[joined.targets["subject"] == "subj02"]
    expected = whole.targets[whole.masks["rh.V1v"]]
    np.testing.assert_array_equal(mine[["x", "y", "z"]], expected[["x", "y", "z"]])


def test_without_a_surface_there_are_no_positions(challenge):
    assert not {"x", "y", "z"} & set(load_dataset(f"algonauts2023:{challenge}", subject=1).targets)


@pytest.mark.parametrize(
    ("n_vertices", "message"),
    [
        (10_242, r"10242 vertices \(as fsaverage5 has\), fsaverage has 163842"),
        (12, "has 12 vertices, fsaverage"),
    ],
)
def test_surfaces_of_another_resolution_are_refused(tmp_path, n_vertices, message):
    with pytest.raises(DatasetError, match=message):
        read_positions(make_fsaverage(tmp_path, n_vertices=n_vertices))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lh.white", "'lh.white' is not of the form lh=FILE,rh=FILE"),
        ("lh=a,lh=b", "not of the form"),
        ("lh=", "not of the form"),
        ("lh=a", "names lh; one file each for lh and rh"),
        ("lh=nowhere,rh=nowhere", "no surface file 'nowhere'"),
    ],
)
def test_other_requests_are_refused(text, message):
    with pytest.raises(DatasetError, match=message):
        read_positions(text)


@pytest.mark.parametrize("name", ["junk.surf.gii", "junk", "junk.gii.gz"])
@pytest.mark.parametrize(
    "content", [b"", b"no surface", b"<?xml version='1.0'?><GIFTI", bytes(range(256)) * 9]
)
def test_junk_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=r"cannot be read as a surface|no points in it"):
        read_positions({"lh": str(tmp_path / name), "rh": str(tmp_path / name)})


def test_gifti_without_points_is_refused(tmp_path):
    path = tmp_path / "curv.shape.gii"
    values = nibabel.gifti.GiftiDataArray(np.zeros(5, np.float32), intent="NIFTI_INTENT_SHAPE")
    nibabel.save(nibabel.gifti.GiftiImage(darrays=[values]), path)
    with pytest.raises(DatasetError, match="has no points in it"):
        read_positions({"lh": str(path), "rh": str(path)})


def test_a_mask_that_does_not_fit_the_responses_is_refused(tmp_path, surface):
    home = make_algonauts2023(tmp_path)
    path = home / "roi_masks" / "rh.all-vertices_fsaverage_space.npy"
    np.save(path, np.ones(163_842, dtype=np.uint8))
    with pytest.raises(DatasetError, match="marks 163842 of 163842 vertices of fsaverage; 72 of 163842"):
        load_dataset(f"algonauts2023:{tmp_path}", surface=surface)


def test_other_data_take_no_surface():
    with pytest.raises(
        DatasetError, match=r"--surface goes with algonauts2023:, not synthetic:.*columns x, y, z"
    ):
        load_dataset("synthetic:n=10", surface="lh=a,rh=b")


def test_without_nibabel_the_extra_is_named(surface, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(MissingDependency, match=r"featpipe\[surface\]"):
        read_positions(surface)
