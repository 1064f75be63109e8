"""The challenges' scores follow the organisers' formulas, and say what noise would score."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.errors import DatasetError, RequestError
from featpipe.metrics import pearson_r
from featpipe.model_selection import (
    algonauts2021_score,
    algonauts2023_score,
    algonauts2023_vertex_scores,
    expected_noise_score,
)

R = np.array([0.5, -0.4, 0.9, 0.2, 0.0])
CEILING = np.array([0.5, 0.5, 0.4, 0.0, 0.0])
SCORES = np.array([50.0, 0.0, 100.0, 100.0, 0.0])


def naive_2023(r, ceiling):
    """As the development kit writes it."""
    scores = []
    for corr, nc in zip(r, ceiling, strict=True):
        corr = max(corr, 0)
        nc = nc if nc != 0 else 1e-14
        scores.append(min(100, corr**2 / nc * 100))
    return scores


def test_each_vertex_follows_the_rule(rng):
    np.testing.assert_allclose(algonauts2023_vertex_scores(R, CEILING), SCORES)
    r, ceiling = rng.uniform(-1, 1, 300), np.maximum(rng.uniform(-0.2, 1, 300), 0)
    np.testing.assert_allclose(algonauts2023_vertex_scores(r, ceiling), naive_2023(r, ceiling))


def test_aggregates_have_names():
    found = algonauts2023_score(
        R,
        CEILING,
        subjects=["subj01", "subj01", "subj01", "subj02", "subj02"],
        hemispheres=["lh", "rh", "lh", "rh", "lh"],
        rois={"lh.V1v": np.array([True, False, True, False, False]), "none": np.zeros(5, dtype=bool)},
    )
    assert (found["score"], found["mean"], found["median"]) == pytest.approx((50, 50, 50))
    assert found["subjects"] == pytest.approx({"subj01": 50, "subj02": 50})
    assert found["hemispheres"] == pytest.approx({"lh": 50, "rh": 50})
    assert found["rois"] == {"lh.V1v": pytest.approx(75), "none": None}
    assert (found["n_vertices"], found["n_zero_ceiling"]) == (5, 2)
    assert found["without_zero_ceiling"] == pytest.approx(50)
    assert found["noise_score"] is None


def test_median_is_the_aggregate_of_all_parts():
    r = np.array([0.1, 0.2, 0.9])
    found = algonauts2023_score(r, np.ones(3), aggregate="median", subjects=["a", "a", "a"])
    assert found["score"] == found["median"] == found["subjects"]["a"] == pytest.approx(4)
    assert found["mean"] == pytest.approx(86 / 3)


def test_subjects_weigh_by_their_vertices():
    found = algonauts2023_score([0.5, 0.5, 1.0], np.ones(3), subjects=["a", "a", "b"])
    assert found["score"] == pytest.approx(50)
    assert np.mean(list(found["subjects"].values())) == pytest.approx(62.5)


def test_percent_gives_the_same_score():
    expected = algonauts2023_score(R, CEILING)["score"]
    for unit in ("percent", "auto"):
        assert algonauts2023_score(R, 100 * CEILING, unit=unit)["score"] == pytest.approx(expected)
    with pytest.raises(DatasetError, match="looks like percent"):
        algonauts2023_score(R, 100 * CEILING)


@pytest.mark.parametrize("n_stimuli", [8, 60])
def test_score_of_noise(n_stimuli):
    rng = np.random.default_rng(2)
    r = pearson_r(*rng.standard_normal((2, n_stimuli, 40_000)))
    for ceiling in (0.0, 0.003, 0.05, 0.6, 1.0):
        found = expected_noise_score(np.full(1, ceiling), n_stimuli)[0]
        simulated = algonauts2023_vertex_scores(r, np.full(len(r), ceiling)).mean()
        assert found == pytest.approx(simulated, abs=1.0, rel=0.03)


def test_noise_gains_by_ceilings_of_zero():
    found = algonauts2023_score(np.zeros(4), [0, 0.5, 0.5, 0.5], n_stimuli=101)
    assert found["noise_score"] == pytest.approx((50 + 3 * 50 / 0.5 / 100) / 4, abs=0.01)
    assert found["noise_score_without_zero_ceiling"] == pytest.approx(1, abs=0.01)


@pytest.mark.data
def test_noise_on_real_ceilings(real_data):
    sides = [np.load(real_data / "nsd_noise_ceiling" / "subj08" / f"{side}.npy") for side in ("lh", "rh")]
    ceiling = np.concatenate(sides)
    found = algonauts2023_score(np.zeros(len(ceiling)), ceiling, unit="auto", n_stimuli=395)
    assert found["n_zero_ceiling"] / found["n_vertices"] == pytest.approx(0.023, abs=0.0005)
    assert found["noise_score"] == pytest.approx(2.8, abs=0.05)


def test_2021_is_r_over_the_root_of_the_reliability():
    rois = {
        "V1": np.array([True, False, False, True, False]),
        "EBA": np.array([False, True, True, False, False]),
    }
    found = algonauts2021_score(R, CEILING, rois=rois)
    each = [0.5 / np.sqrt(0.5), -0.4 / np.sqrt(0.5), 0.9 / np.sqrt(0.4)]
    assert found["full_track"] == pytest.approx(np.mean(each))
    assert found["rois"] == pytest.approx({"V1": each[0], "EBA": np.mean(each[1:])})
    assert found["mini_track"] == pytest.approx((each[0] + np.mean(each[1:])) / 2)
    assert found["r"] == pytest.approx(R[:3].mean())
    assert found["noise_ceiling_r"] == pytest.approx(np.sqrt(CEILING[:3]).mean())
    assert (found["n_voxels"], found["n_zero_ceiling"]) == (5, 2)


def test_2021_without_a_scored_voxel_is_none():
    found = algonauts2021_score([0.2], [0.0], rois={"V1": np.array([True])})
    assert found["full_track"] is found["mini_track"] is found["rois"]["V1"] is None


@pytest.mark.parametrize(
    ("r", "ceiling", "more", "message"),
    [
        ([0.1, 0.2], [0.5], {}, r"shape \(2,\) and ceilings \(1,\)"),
        ([0.1, np.nan], [0.5, 0.5], {}, "1 correlations are missing"),
        ([0.1, 1.2], [0.5, np.nan], {}, "1 ceilings are missing"),
        ([0.1], [0.5], {"aggregate": "sum"}, "choose from mean, median"),
        ([0.1], [0.5], {"subjects": ["a", "b"]}, "2 subjects for 1 vertices"),
        ([0.1], [0.5], {"rois": {"V1v": np.array([1])}}, r"'V1v' is int64 of shape \(1,\)"),
        ([0.1], [0.5], {"n_stimuli": 2}, "from 3 images on"),
    ],
)
def test_bad_input_is_named(r, ceiling, more, message):
    with pytest.raises(RequestError, match=message):
        algonauts2023_score(r, ceiling, **more)
