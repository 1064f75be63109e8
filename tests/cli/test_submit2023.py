"""The 2023 challenge on the command line: every subject extracted, fitted, scored and handed in."""

from __future__ import annotations

import zipfile
from dataclasses import replace

import pytest

from featpipe.cli._subjects import fit_every_subject
from featpipe.extraction import Means
from featpipe.recipes import load_recipe
from featpipe.runs import FitRequest
from featpipe.testing import make_algonauts2023

MODEL = "--model python:tiny.py:build --trust --layers stem:mean"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("challenge")
    make_algonauts2023(
        folder / "alg", subject=[1, 2], n_train=20, n_test=4, test_responses=True, ceiling="percent"
    )
    return folder


@pytest.fixture
def extracted(featpipe_json, folder):
    """What extracting all subjects' images said; the second time there is nothing to do."""
    words = f"extract {MODEL} --images algonauts2023:{folder}/alg --subject all --cache {folder}/cache"
    return {split: featpipe_json(f"{words} --split {split}") for split in ("train", "test")}


@pytest.fixture
def request_all(extracted, folder):
    params = {"features__layers": ["stem"], "ridge__alpha": 10.0}
    recipe = load_recipe("baseline_ridge").with_params(params)
    return FitRequest(recipe, f"algonauts2023:{folder}/alg", f"{folder}/runs", f"{folder}/cache", cv=3)


def _fit(request, *, as_json=False):
    fit_every_subject(request, Means(), lambda path: None, as_json=as_json)


def test_what_two_subjects_saw_is_computed_once(extracted, folder, featpipe):
    first, second = extracted["train"]["subjects"].values()
    if first["computed"]:  # not extracted by an earlier test
        assert (first["computed"], second["computed"], second["reused"]) == (20, 18, 2)
    code, out, _ = featpipe(
        f"extract {MODEL} --images algonauts2023:{folder}/alg --subject all --cache {folder}/cache"
    )
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("subj")] == ["subj01:", "subj02:"]
    assert out.count("Nothing to do: all 20 stimuli are cached") == 2


def test_a_dry_run_tells_of_each_subject(featpipe_json, folder):
    words = (
        f"extract {MODEL} --images algonauts2023:{folder}/alg --subject all --cache {folder}/none --dry-run"
    )
    assert [plan["n_stimuli"] for plan in featpipe_json(words)["subjects"].values()] == [20, 20]


def test_joined_subjects_are_one_set_of_images(extracted, featpipe_json, folder):
    words = f"extract {MODEL} --images algonauts2023:{folder}/alg --subject 1,2 --cache {folder}/cache"
    done = featpipe_json(words)
    assert (done["n_stimuli"], done["computed"]) == (38, 0)  # all copied


def test_from_the_folder_to_the_submission(request_all, folder, featpipe, featpipe_json, capfd):
    _fit(request_all)
    out = capfd.readouterr().out
    assert "subj02" in out
    assert "overall" in out
    _fit(request_all)
    assert "subj01: kept\nsubj02: kept\n" in capfd.readouterr().out
    data = f"--data algonauts2023:{folder}/alg"
    words = f"submit {folder}/runs --challenge algonauts2023 {data} --out {folder}/s.zip"
    code, _, err = featpipe(words)
    assert code == 2
    assert "no run of subj03, subj04" in err
    assert not (folder / "s.zip").exists()
    assert featpipe_json(words + " --partial")["n_stimuli"] == {"subj01": 4, "subj02": 4}
    assert (
        featpipe(words.replace("algonauts2023:", "") + " --partial")[0] == 0
    )  # the folder alone says it too
    with zipfile.ZipFile(folder / "s.zip") as archive:
        assert len(archive.namelist()) == 4
    together = featpipe_json(f"score {folder}/runs/subj01 {folder}/runs/subj02 {data}")["algonauts2023"]
    for source in ("runs", "s.zip"):
        again = featpipe_json(f"score {folder}/{source} {data}")["algonauts2023"]
        assert again["score"] == pytest.approx(together["score"], rel=1e-4)
    code, out, _ = featpipe(f"score {folder}/runs {data}")
    assert code == 0
    assert f"Algonauts 2023 over 272 vertices: mean {together['score']:.2f} %" in out
    assert f"subj02 {together['subjects']['subj02']:.2f}" in out
    assert "score 100 for any r above 0" in out


def test_a_submission_names_a_run_of_one_region(request_all, folder, featpipe, capfd):
    _fit(replace(request_all, out=f"{folder}/v1", target="lh.V1v"), as_json=True)
    code, _, err = featpipe(
        f"submit {folder}/v1 --challenge algonauts2023 --data {folder}/alg --out {folder}/new.zip --partial"
    )
    assert code == 2
    assert "(lh.V1v) of subj01, which has 136 vertices" in err
    assert not (folder / "new.zip").exists()


def test_fit_goes_through_all_subjects_and_on_where_it_stopped(extracted, folder, featpipe, featpipe_json):
    words = (
        f"fit baseline_ridge --data algonauts2023:{folder}/alg --subject all --cache {folder}/cache --cv 3 "
        f"--set features__layers=stem --set ridge__alpha=10 --out {folder}/fitted --target lh.V1v"
    )
    summary = featpipe_json(words)
    assert list(summary["runs"]) == list(summary["scores"]["pearson_r"]["groups"]) == ["subj01", "subj02"]
    code, out, _ = featpipe(words)
    assert code == 0
    assert out.startswith("subj01: kept\nsubj02: kept\n")
    code, _, err = featpipe(words.replace("alpha=10", "alpha=11"))
    assert code == 2
    assert "subj01 holds a run that differs in parameters" in err
