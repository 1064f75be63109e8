"""The demonstration, in small."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.demo import CEILINGS, ROIS, SUBJECTS, run_demo
from featpipe.store import FeatureCache

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The runs of a demonstration with fewer images, what it said, and its folder."""
    out, lines = tmp_path_factory.mktemp("demo"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("demo-cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        runs = run_demo(out, n_stimuli=96, say=lines.append)
    return runs, "\n".join(lines), out


def test_scores_are_above_chance_and_below_the_ceiling(demo):
    for run in demo[0]:
        scores = run.read_json("summary.json")["scores"]
        for name, r in scores["pearson_r"]["groups"].items():
            assert 0.1 < r < np.sqrt(CEILINGS[name[3:]]) + 0.05
        assert scores["pearson_r"]["overall"] > 0.25


def test_ceilings_are_those_of_the_simulation(demo):
    ceilings = demo[0][0].read_json("summary.json")["noise_ceiling"]["groups"]
    assert ceilings == {
        f"{side}.{roi}": pytest.approx(CEILINGS[roi]) for roi in ROIS for side in ("lh", "rh")
    }


def test_table_has_a_line_per_roi_and_hemisphere(demo):
    said = demo[1]
    for side in ("lh", "rh"):
        assert all(said.count(f"{side}.{roi} ") >= len(SUBJECTS) for roi in ROIS)
    assert "overall" in said


def test_report_cache_and_data_are_there(demo):
    runs, said, out = demo
    for run in runs:
        page = (run.path / "report.html").read_text()
        assert "lh.V1v" in page
        assert str(run.path / "report.html") in said
    assert len(FeatureCache(out / "cache").keys()) == len(ROIS)
    assert (out / "data" / "dataset.toml").is_file()


def test_subjects_differ(demo):
    first, second = (run.read_json("summary.json")["scores"]["pearson_r"]["overall"] for run in demo[0])
    assert first != second


def test_a_second_demonstration_in_the_same_folder_gives_the_same(demo, capsys):
    runs, _, out = demo
    before = [(run.path / "summary.json").read_bytes() for run in runs]
    again = run_demo(out, n_stimuli=96, say=lambda line: None)
    assert [(run.path / "summary.json").read_bytes() for run in again] == before
