"""The report is one file that shows what the run folder says, and no more than that."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
import sys

import numpy as np
import pandas as pd
import pytest

from featpipe.errors import MissingDependency, RecipeError
from featpipe.report import write_report

REGIONS = {"V1v": 0.7, "hV4": 0.55, "FFA-1": 0.4, "PPA": 0.3}


def make_run(folder, *, regions=REGIONS, n_each=12, ceiling=True, n_folds=5, seed=0):
    """Write a run folder as `featpipe fit` leaves it, with made-up scores."""
    rng = np.random.default_rng(seed)
    groups = [f"{side}.{name}" for name in regions for side in ("lh", "rh")]
    membership = np.repeat(groups, n_each)
    level = np.repeat([regions[g.partition(".")[2]] for g in groups], n_each)
    r = level + 0.08 * rng.standard_normal((n_folds, len(level)))
    scores = {"pearson_r": r, "r2": r**2 - 0.03}
    frames = [
        pd.DataFrame(
            {
                "target": np.arange(len(level)),
                "group": membership,
                "fold": fold,
                "metric": m,
                "value": v[fold],
            }
        )
        for m, v in scores.items()
        for fold in range(n_folds)
    ]
    tidy = pd.concat(frames)
    summary = {"scores": {}, "n_stimuli": 200, "n_targets": len(level), "n_folds": n_folds}
    for metric, values in scores.items():
        summary["scores"][metric] = _means(values.mean(axis=0), membership, sorted(groups))
    if ceiling:
        bound = np.minimum(level**2 * 1.5, 1)
        summary["noise_ceiling"] = _means(bound, membership, sorted(groups))
        summary["noise_ceiling_r"] = _means(np.sqrt(bound), membership, sorted(groups))
        r2 = summary["scores"]["r2"]
        share = {g: r2["groups"][g] / summary["noise_ceiling"]["groups"][g] for g in groups}
        summary["scores"]["noise_normalized_r2"] = {"overall": 0.61, "groups": share}
    record = {
        "recipe": {"name": "baseline_ridge", "path": "pipelines/baseline_ridge.py", "sha256": "ab" * 32},
        "summary": "Ridge from one layer to every target, the penalty chosen per target.",
        "citation": "Hoerl & Kennard (1970). Ridge regression. Technometrics 12.",
        "data": {"given": "table:my data", "name": "my data", "subject": "subj01", "stimuli": "cd" * 32},
        "cache": "cache",
        "cv": "5",
        "given": {"set": {"features__layers": ["blocks.3"]}, "search": {}},
        "folds": [[f"image_{k}" for k in range(40)]] * n_folds,
        "features": [
            {
                "key": "ef" * 32,
                "spec": {"model": "timm:mobilenetv2_100", "layer": "blocks.3", "reduction": "grid:4"},
                "values": 1024,
                "weights_label": "random:0",
            }
        ],
        "pipeline": {"features": "CachedFeatures()", "ridge": "RidgeEncoder()"},
        "seconds": {"extract": 21.4, "evaluate": 3.2, "fit": 0.7},
        "finished": "2025-01-01T00:00:00+00:00",
        "versions": {"featpipe": "0.1.0", "numpy": "2.4.6", "python": "3.11.2"},
        "threads": {"blas": 2},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "summary.json").write_text(json.dumps(summary))
    tidy.to_csv(folder / "scores.csv", index=False)
    return folder


def _means(values, membership, groups):
    return {
        "overall": float(values.mean()),
        "groups": {group: float(values[membership == group].mean()) for group in groups},
    }


def edit(folder, name, change):
    path = folder / name
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def images(page):
    return [
        base64.b64decode(code).decode() for code in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", page)
    ]


def text_of(page):
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def test_one_file_that_loads_nothing(run):
    path = write_report(run)
    assert path == run / "report.html"
    page = path.read_text()
    assert "<script" not in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "http" not in page.replace("http-equiv", "")
    assert len(images(page)) == 2


def test_scores_stand_beside_their_ceiling(run):
    summary = json.loads((run / "summary.json").read_text())
    page = text_of(write_report(run).read_text())
    for value in (summary["scores"]["pearson_r"], summary["scores"]["r2"], summary["noise_ceiling"]):
        assert f"{value['groups']['rh.hV4']:.3f}" in page
        assert f"{value['overall']:.3f}" in page


def test_regions_follow_the_visual_hierarchy(run):
    page = text_of(write_report(run).read_text())
    table = page[page.index("Scores by region") :]
    places = [table.index(f"{name} left 12") for name in REGIONS]
    assert places == sorted(places)  # by name, FFA-1 would come first
    plot = images(write_report(run).read_text())[0]
    heights = [float(re.search(rf'y="([\d.]+)"[^>]*>{name}<', plot)[1]) for name in REGIONS]
    assert heights == sorted(heights)


def test_without_ceiling_and_groups(run):
    def bare(summary):
        del summary["noise_ceiling"]
        del summary["scores"]["noise_normalized_r2"]
        for score in summary["scores"].values():
            score["groups"] = {}

    edit(run, "summary.json", bare)
    page = write_report(run).read_text()
    assert len(images(page)) == 1
    assert "eiling" not in text_of(page).partition("Provenance")[0]


def with_inference(summary):
    """Add what `featpipe fit` says about uncertainty and about r under its ceiling."""
    r, of_r = summary["scores"]["pearson_r"], summary["noise_ceiling_r"]
    groups = list(r["groups"])
    summary["noise_ceiling_from"] = "variance components of the repeats"
    summary["noise_normalized_r"] = {
        "overall": 0.8131,
        "groups": {g: r["groups"][g] / of_r["groups"][g] for g in groups},
    }
    summary["inference"] = {
        "interval": {
            "level": 0.95,
            "n": 1000,
            "overall": [0.4711, 0.4999],
            "groups": {g: [-0.0123, 0.9876] for g in groups[1:]},
        },
        "permutation": {"n": 2000, "overall": 0.0005, "groups": {}},
        "significant": {
            "q": 0.05,
            "correction": "bh",
            "n_tested": 95,
            "overall": 73,
            "groups": dict.fromkeys(groups, 9),
        },
    }


def test_intervals_shares_and_chance_stand_beside_scores(run):
    edit(run, "summary.json", with_inference)
    summary = json.loads((run / "summary.json").read_text())
    page = text_of(write_report(run).read_text())
    r, of_r = (summary[name]["groups"]["rh.hV4"] for name in ("noise_normalized_r", "noise_ceiling_r"))
    score = summary["scores"]["pearson_r"]["groups"]["rh.hV4"]
    assert f"right 12 {score:.3f} [−0.012, 0.988] {of_r:.3f} {r:.3f}" in page
    unknown = summary["scores"]["pearson_r"]["groups"]["lh.FFA-1"]
    assert f"left 12 {unknown:.3f} – " in page  # no interval of it
    assert "[0.471, 0.500] over all targets" in page
    assert "73 of 95 targets are above chance at a false discovery rate of 5 %" in page
    assert "estimated from the repeats" in page


def test_without_inference_there_is_no_word_of_it(run):
    page = text_of(write_report(run).read_text())
    assert "chance" not in page
    assert "interval" not in page
    assert "repeats" not in page


def test_unknown_scores_are_dashes(run):
    edit(run, "summary.json", lambda s: s["scores"]["r2"]["groups"].update({"lh.PPA": None}))
    assert "PPA left 12 0.3" in text_of(write_report(run).read_text())
    assert "–" in text_of(write_report(run).read_text())


def test_nothing_that_data_say_becomes_markup(tmp_path):
    attack = "</td><script>alert(1)</script>&\"'"
    run = make_run(tmp_path / "run", regions={attack: 0.5, r"$\frac{": 0.4})
    edit(run, "run.json", lambda r: r.update(citation=attack, cv=attack, finished=attack))
    edit(run, "run.json", lambda r: r["recipe"].update(name=attack))
    page = write_report(run).read_text()
    assert "<script" not in page
    assert attack in html.unescape(page)
    assert all("<script" not in image for image in images(page))


def test_command_can_be_pasted(run):
    page = html.unescape(write_report(run).read_text())
    words = shlex.split(re.search(r"<pre class=.wrap.>(.*?)</pre>", page, re.DOTALL)[1].replace("\\\n", " "))
    assert words == [
        *("featpipe", "fit", "pipelines/baseline_ridge.py", "--data", "table:my data", "--subject", "subj01"),
        *("--cache", "cache", "--cv", "5", "--set", 'features__layers=["blocks.3"]', "--out", f"{run}-again"),
    ]


def test_recorded_command_comes_first(run):
    edit(run, "run.json", lambda r: r.update(command=["featpipe", "demo", "--out", "a b"]))
    assert "featpipe demo --out 'a b'" in text_of(write_report(run).read_text())


def test_equal_runs_give_equal_pages(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_targets_of_one_name_stay_apart(run):
    scores = pd.read_csv(run / "scores.csv").assign(target="voxel")
    scores.to_csv(run / "scores.csv", index=False)
    assert "All targets 96" in text_of(write_report(run).read_text())


def test_overlapping_groups_count_a_target_in_each(run):
    scores = pd.read_csv(run / "scores.csv")
    scores["group"] = scores["group"].replace("lh.V1v", "lh.V1v;lh.early")
    scores.to_csv(run / "scores.csv", index=False)

    def add(summary):
        for score in (*summary["scores"].values(), summary["noise_ceiling"]):
            score["groups"]["lh.early"] = 0.5

    edit(run, "summary.json", add)
    page = text_of(write_report(run).read_text())
    assert "V1v left 12" in page
    assert "early left 12" in page


def test_a_whole_brain_is_reported_in_seconds(tmp_path):
    run = make_run(tmp_path / "run", n_each=2500, n_folds=3)
    assert write_report(run).stat().st_size < 500_000


def test_out_may_be_anywhere(run, tmp_path):
    assert write_report(run, tmp_path / "new" / "page.html").is_file()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "summary.json").unlink(), "no finished run folder: it has no summary.json"),
        (lambda run: (run / "scores.csv").unlink(), "it has no scores.csv"),
        (lambda run: (run / "run.json").write_text("{"), "run.json' is no valid JSON"),
        (lambda run: (run / "run.json").write_text("[]"), "run.json' holds no JSON object"),
        (lambda run: (run / "summary.json").write_text("{}"), "holds no scores"),
        (lambda run: (run / "scores.csv").write_text(""), "cannot be read as a table"),
        (lambda run: (run / "scores.csv").write_text("a,b\n1,2\n"), "must have the columns target"),
        (
            lambda run: (run / "scores.csv").write_text("target,group,fold,metric,value\na,b,0,r2,x\n"),
            "numbers in",
        ),
    ],
)
def test_what_is_no_run(run, spoil, message):
    spoil(run)
    with pytest.raises(RecipeError, match=message):
        write_report(run)


@pytest.mark.parametrize("name", ["jinja2", "matplotlib"])
def test_missing_extra_says_how_to_get_it(run, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match=rf"Reports need {name}: pip install 'featpipe\[report\]'"):
        write_report(run)
