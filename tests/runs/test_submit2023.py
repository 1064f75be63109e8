"""All subjects of the 2023 challenge: fitted one by one, scored together, handed in as one file."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featpipe.datasets import load_dataset, load_stimuli
from featpipe.errors import DatasetError, RecipeError, RequestError, WorkError
from featpipe.metrics import pearson_r
from featpipe.runs import (
    RunFolder,
    fit,
    fit_subjects,
    predict,
    score,
    subjects_summary,
    submit_algonauts2023,
)
from featpipe.runs._submit2023 import check_submission, read_submission
from featpipe.testing import VERTICES, make_algonauts2023

EIGHT = [f"subj{number:02d}" for number in range(1, 9)]
TWO = EIGHT[:2]


@pytest.fixture(scope="module")
def data(tmp_path_factory, extract_more):
    """A challenge of eight subjects with the organisers' test responses, all features cached."""
    folder = tmp_path_factory.mktemp("alg")
    make_algonauts2023(
        folder, subject=range(1, 9), n_train=20, n_test=5, test_responses=True, ceiling="fraction"
    )
    for subject, split in (("all", "train"), ("all", "test"), ("1,2", "train"), ("1,2", "test")):
        extract_more(f"algonauts2023:{folder}", "--subject", subject, "--split", split)
    return f"algonauts2023:{folder}"


@pytest.fixture(scope="module")
def ask(make_request, data):
    """Return a function that asks for a fit on the challenge."""
    return lambda out, **given: make_request(data, out, cv=3, params={"ridge__alpha": 10.0}, **given)


@pytest.fixture(scope="module")
def runs(ask, tmp_path_factory):
    """A folder with one run a subject. Tests leave it as it is."""
    out = tmp_path_factory.mktemp("runs") / "all"
    fit_subjects(ask(out))
    return out


@pytest.fixture(scope="module")
def joint(ask, tmp_path_factory):
    """One run of two subjects."""
    return fit(ask(tmp_path_factory.mktemp("joint") / "run", subject="1,2"))


def _paths(runs, names):
    return [str(runs / name) for name in names]


def test_each_subject_has_the_run_that_it_would_have_alone(runs, ask, tmp_path):
    alone = fit(ask(tmp_path / "run", subject="3"))
    assert sorted(path.name for path in runs.iterdir()) == [*EIGHT, "subjects.json"]
    assert RunFolder(runs / "subj03").read_json("summary.json") == alone.read_json("summary.json")


def test_responses_of_one_subject_are_not_scored_on_another(runs, data):
    run = str(runs / "subj01")
    assert score(run, data, subject="1") == score(run, data)
    with pytest.raises(RequestError, match=r"responses of subj01, .* compare with those of subj02"):
        score(run, data, subject="2")


def test_the_summary_is_over_all_targets(runs):
    summary = RunFolder(runs).read_json("subjects.json")
    table = summary["scores"]["pearson_r"]
    each = [RunFolder(runs / name).read_json("summary.json") for name in EIGHT]
    assert list(table["groups"].values()) == [one["scores"]["pearson_r"]["overall"] for one in each]
    np.testing.assert_allclose(table["overall"], np.mean(list(table["groups"].values())), rtol=1e-9)
    assert (summary["n_targets"], summary["n_subjects"]) == (8 * 136, 8)


def test_shares_of_the_ceiling_are_ratios_of_means(runs):
    summary = RunFolder(runs).read_json("subjects.json")
    r, ceiling = summary["scores"]["pearson_r"]["overall"], summary["noise_ceiling_r"]["overall"]
    assert summary["noise_normalized_r"]["overall"] == pytest.approx(r / ceiling)
    assert summary["noise_normalized_r"]["groups"].keys() == set(EIGHT)


def test_a_subject_with_more_targets_weighs_more():
    one, two = (
        {"scores": {"r2": {"overall": value}}, "n_targets": n, "n_stimuli": 9, "n_folds": 3}
        for value, n in ((0.1, 300), (0.5, 100))
    )
    summary = subjects_summary({"a": one, "b": two})
    assert summary["scores"]["r2"] == {"overall": pytest.approx(0.2), "groups": {"a": 0.1, "b": 0.5}}


def test_finished_runs_are_kept_and_others_made(runs, ask, tmp_path):
    out = Path(shutil.copytree(runs, tmp_path / "runs"))
    shutil.rmtree(out / "subj04")
    (out / "subj06" / "summary.json").unlink()  # as after a kill
    before = {name: (out / name / "run.json").read_text() for name in EIGHT if name != "subj04"}
    seen = []
    fit_subjects(ask(out), after=lambda name, run, kept: seen.append((name, kept)))
    assert seen == [(name, name not in ("subj04", "subj06")) for name in EIGHT]
    changed = {name for name in before if (out / name / "run.json").read_text() != before[name]}
    assert changed == {"subj06"}
    for name in ("subj04", "subj06"):
        assert (out / name / "summary.json").read_text() == (runs / name / "summary.json").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "lh.V1v"}, "subj01 holds a run that differs in target"),
        ({"cv": 4}, "differs in folds"),
        ({"given": {"set": {"ridge__alpha": 1}}}, "differs in parameters"),
    ],
)
def test_runs_of_another_request_are_not_kept(runs, ask, change, message):
    with pytest.raises(RecipeError, match=f"{message}.*--overwrite"):
        fit_subjects(replace(ask(runs), **change))


def test_a_run_is_no_folder_of_runs(runs, ask):
    with pytest.raises(RecipeError, match="is the run of one subject"):
        fit_subjects(ask(runs / "subj01"))


def test_data_without_subjects_have_none_to_go_through(make_request, root, tmp_path):
    with pytest.raises(DatasetError, match=r"holds no several subjects.*leave --subject all out"):
        fit_subjects(make_request(root / "plain", tmp_path / "runs"))


def test_the_submission_is_what_the_runs_predict(runs, data, tmp_path):
    out = tmp_path / "submission.zip"
    assert submit_algonauts2023([str(runs)], data, str(out)) == dict.fromkeys(EIGHT, 5)
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == [f"{s}/{h}_pred_test.npy" for s in EIGHT for h in ("lh", "rh")]
        found = {name: np.load(archive.open(name)) for name in archive.namelist()}
    for name in EIGHT:
        folder = Path(data.partition(":")[2]) / name / "test_split" / "test_images"
        files = sorted(path.stem for path in folder.iterdir())  # test-0001_… ascending
        ids = [stem.partition("_")[2] for stem in files]
        pipeline = RunFolder.open(runs / name).load_pipeline().set_params(features__stimuli=None)
        expected = pipeline.predict(np.array(ids))
        left, right = found[f"{name}/lh_pred_test.npy"], found[f"{name}/rh_pred_test.npy"]
        assert left.dtype == right.dtype == np.float32
        assert (left.shape, right.shape) == ((5, 64), (5, 72))
        np.testing.assert_allclose(np.hstack([left, right]), expected, rtol=1e-5, atol=1e-6)


def test_equal_predictions_give_equal_bytes(runs, data, tmp_path):
    paths = [tmp_path / "one.zip", tmp_path / "two.zip"]
    for path, order in zip(paths, (TWO, TWO[::-1]), strict=True):
        submit_algonauts2023(_paths(runs, order), data, str(path), partial=True)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_run_of_several_subjects_is_handed_in_as_such(joint, data, tmp_path):
    submit_algonauts2023([str(joint.path)], data, str(tmp_path / "joint.zip"), partial=True)
    found = read_submission(str(tmp_path / "joint.zip"))
    whole = predict(joint, load_stimuli(data, subject=2, split="test"))
    np.testing.assert_allclose(found["subj02"], whole[:, 136:], rtol=1e-5, atol=1e-6)
    assert list(found) == TWO


@pytest.mark.parametrize(
    ("names", "partial", "message"),
    [
        (EIGHT[:6], False, "no run of subj07, subj08. The challenge takes all eight.*--partial"),
        (["subj01", "subj01"], True, "are both of subj01"),
    ],
)
def test_subjects_that_are_missing_or_there_twice(runs, data, tmp_path, names, partial, message):
    with pytest.raises(RecipeError, match=message):
        submit_algonauts2023(_paths(runs, names), data, str(tmp_path / "new.zip"), partial=partial)
    assert list(tmp_path.iterdir()) == []


def test_data_that_lack_subjects_are_named_too(runs, data, tmp_path):
    (tmp_path / "alg").mkdir()
    for name in TWO:
        (tmp_path / "alg" / name).symlink_to(Path(data.partition(":")[2]) / name)
    with pytest.raises(RecipeError, match=r"no run of subj03, .*does not hold subj03, subj04"):
        submit_algonauts2023(
            _paths(runs, TWO), f"algonauts2023:{tmp_path / 'alg'}", str(tmp_path / "new.zip")
        )
    with pytest.raises(RecipeError, match=r"subj03 is of subj03; .* has responses of subj01, subj02"):
        submit_algonauts2023(
            _paths(runs, EIGHT[:3]), f"algonauts2023:{tmp_path / 'alg'}", str(tmp_path / "new.zip")
        )


def test_a_run_of_one_region_says_so(ask, data, tmp_path):
    run = fit(ask(tmp_path / "run", subject="1", target="lh.V1v"))
    with pytest.raises(
        RecipeError, match=r"predicts 4 targets \(lh.V1v\) of subj01, which has 136 vertices.*--target"
    ):
        submit_algonauts2023([str(run.path)], data, str(tmp_path / "new.zip"), partial=True)


def test_a_run_of_something_else_is_no_subject(plain, data, tmp_path):
    with pytest.raises(RecipeError, match=r"is of no subject; .* has responses of subj01"):
        submit_algonauts2023([str(plain.path)], data, str(tmp_path / "new.zip"), partial=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_predictions_that_are_not_finite_are_not_handed_in(runs, data, tmp_path, monkeypatch, value):
    made = lambda run, stimuli, **_: np.full((len(stimuli), 136), value)  # noqa: E731
    monkeypatch.setattr("featpipe.runs._submit2023.predict", made)
    with pytest.raises(
        WorkError, match=r"680 predictions of .*subj01 for subj01 are not finite; nothing was"
    ):
        submit_algonauts2023(_paths(runs, ["subj01"]), data, str(tmp_path / "new.zip"), partial=True)
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_when_the_work_fails(runs, data, tmp_path, monkeypatch):
    out = tmp_path / "submission.zip"
    out.write_bytes(b"of yesterday")
    monkeypatch.setattr("featpipe.runs._submit2023.predict", lambda run, stimuli, **_: np.full((4, 136), 1.0))
    with pytest.raises(
        WorkError, match=r"subj01/lh_pred_test.npy holds float32 of shape \(4, 64\).*\(5, 64\)"
    ):
        submit_algonauts2023(_paths(runs, ["subj01"]), data, str(out), partial=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"of yesterday"]


def test_the_file_is_checked_against_what_is_wanted(tmp_path):
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w") as archive, archive.open("subj01/lh_pred_test.npy", "w") as member:
        np.lib.format.write_array(member, np.zeros((2, 3)))
    with pytest.raises(WorkError, match=r"holds subj01/lh_pred_test.npy, not subj02/lh_pred_test.npy"):
        check_submission(str(path), {"subj02/lh_pred_test.npy": (2, 3)})
    with pytest.raises(WorkError, match=r"holds float64 of shape \(2, 3\); finite float32 of shape \(2, 3\)"):
        check_submission(str(path), {"subj01/lh_pred_test.npy": (2, 3)})


def test_training_images_among_the_test_images_are_pointed_out(runs, data, tmp_path):
    shutil.copytree(runs / "subj01", tmp_path / "run")
    stimuli = load_stimuli(data, subject=1, split="test")
    with (tmp_path / "run" / "training.csv").open("a") as file:
        file.write(f"again,{stimuli.sha256[2]}\n")
    with pytest.warns(UserWarning, match=f"1 of 5 test images of subj01 .*first '{stimuli.ids[2]}'"):
        submit_algonauts2023([str(tmp_path / "run")], data, str(tmp_path / "s.zip"), partial=True)


def _naive_percent(data, predictions):
    """Score vertex by vertex as the challenge does."""
    percent = {}
    for name, predicted in predictions.items():
        dataset = load_dataset(data, subject=name, split="test")
        r = np.nan_to_num(
            [np.corrcoef(a, b)[0, 1] for a, b in zip(dataset.responses.T, predicted.T, strict=True)]
        )
        ceiling = np.where(dataset.noise_ceiling == 0, 1e-14, dataset.noise_ceiling)
        percent[name] = np.minimum(100 * np.maximum(r, 0) ** 2 / ceiling, 100)
    return percent


def test_the_leaderboard_is_the_mean_over_all_vertices(runs, data):
    summary = score([str(runs)], data)
    predictions = {
        name: predict(RunFolder.open(runs / name), load_stimuli(data, subject=name, split="test"))
        for name in EIGHT
    }
    percent = _naive_percent(data, predictions)
    official = summary["algonauts2023"]
    everywhere = np.concatenate(list(percent.values()))
    assert official["score"] == pytest.approx(everywhere.mean(), rel=1e-4)
    assert official["median"] == pytest.approx(np.median(everywhere), rel=1e-4)
    assert official["subjects"] == pytest.approx(
        {name: values.mean() for name, values in percent.items()}, rel=1e-4
    )
    assert official["n_vertices"] == 8 * 136
    masks = {name: load_dataset(data, subject=name).masks for name in EIGHT}
    region = np.concatenate([percent[name][masks[name]["rh.FFA-1"]] for name in EIGHT])
    assert official["rois"]["rh.FFA-1"] == pytest.approx(region.mean(), rel=1e-4)
    assert summary["n_stimuli"] == 40
    assert list(summary["subjects"]) == EIGHT


def test_a_submission_scores_as_its_runs(runs, data, tmp_path):
    out = str(tmp_path / "s.zip")
    submit_algonauts2023(_paths(runs, TWO), data, out, partial=True)
    by_runs, by_file = score(_paths(runs, TWO), data), score(out, data)
    assert by_file["algonauts2023"]["score"] == pytest.approx(by_runs["algonauts2023"]["score"], rel=1e-4)
    one = score(out, data, subject="2", target="rh.V1v")
    expected = score(out, data, subject="2")["subjects"]["subj02"]["scores"]["pearson_r"]["groups"]["rh.V1v"]
    assert one["scores"]["pearson_r"]["overall"] == pytest.approx(expected)


def test_one_run_has_the_official_score_beside_its_own(runs, data):
    alone, among = score(str(runs / "subj02"), data), score(_paths(runs, TWO), data)
    assert alone == among["subjects"]["subj02"]
    assert alone["algonauts2023"]["subjects"] == {"subj02": alone["algonauts2023"]["score"]}


def test_a_run_of_several_subjects_is_scored_on_each_subjects_own_images(joint, data):
    summary = score(str(joint.path), data)
    predicted = predict(joint, load_stimuli(data, subject=2, split="test"))[:, 136:]
    r = pearson_r(load_dataset(data, subject=2, split="test").responses, predicted)
    assert list(summary["algonauts2023"]["subjects"]) == TWO
    percent = _naive_percent(data, {"subj02": predicted})["subj02"]
    assert summary["algonauts2023"]["subjects"]["subj02"] == pytest.approx(percent.mean(), rel=1e-4)
    mask = load_dataset(data, subject=2).masks["lh.V1v"]
    assert summary["scores"]["pearson_r"]["groups"]["subj02.lh.V1v"] == pytest.approx(
        r[mask].mean(), rel=1e-4
    )


def test_without_ceilings_there_is_no_official_score(runs, data, tmp_path):
    home = Path(shutil.copytree(Path(data.partition(":")[2]) / "subj01", tmp_path / "subj01"))
    shutil.rmtree(home / "test_split" / "noise_ceiling")
    assert "algonauts2023" not in score(str(runs / "subj01"), f"algonauts2023:{tmp_path}")


def test_without_the_organisers_responses_nothing_is_scored(runs, data, tmp_path):
    home = Path(shutil.copytree(Path(data.partition(":")[2]) / "subj01", tmp_path / "subj01"))
    shutil.rmtree(home / "test_split" / "test_fmri")
    with pytest.raises(DatasetError, match="Only the organisers' release has responses"):
        score(str(runs / "subj01"), f"algonauts2023:{tmp_path}")


def test_two_runs_of_one_subject_are_not_averaged(runs, data):
    with pytest.raises(RequestError, match="are both of subject subj01"):
        score(_paths(runs, ["subj01", "subj01"]), data)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (None, "cannot be read as a submission"),
        ({}, "has no folder subj01 to subj08 inside"),
        ({"subj01/lh_pred_test.npy": (5, 64)}, "cannot be read as a submission .*rh_pred_test"),
        ({"subj01/lh_pred_test.npy": (5, 64), "subj01/rh_pred_test.npy": (4, 72)}, "cannot be read as a submission"),
        ({"subj01/lh_pred_test.npy": (5, 64), "subj01/rh_pred_test.npy": (5, 71)}, r"shape \(5, 135\).*\(5, 136\)"),
        ({"subj01/lh_pred_test.npy": (4, 64), "subj01/rh_pred_test.npy": (4, 72)}, r"shape \(4, 136\).*\(5, 136\)"),
    ],
)  # fmt: skip
def test_files_that_are_no_submission(data, tmp_path, members, message):
    path = tmp_path / "s.zip"
    if members is None:
        path.write_bytes(b"no zip")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, shape in members.items():
                with archive.open(name, "w") as member:
                    np.lib.format.write_array(member, np.zeros(shape, np.float32))
    with pytest.raises(RequestError, match=message):
        score(str(path), data)


def test_summaries_are_json(runs):
    text = (runs / "subjects.json").read_text()
    assert json.loads(text)["scores"]["r2"]["groups"].keys() == set(EIGHT)


@pytest.mark.data
def test_noise_scores_as_expected_under_real_ceilings(tmp_path, real_data):
    make_algonauts2023(
        tmp_path, subject=[6, 8], n_train=1, n_test=60, vertices="real", test_responses=True, image_size=8
    )
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for name in ("subj06", "subj08"):
            (tmp_path / name / "test_split" / "noise_ceiling").mkdir()
            for side in ("lh", "rh"):
                ceiling = np.load(real_data / "nsd_noise_ceiling" / name / f"{side}.npy")  # percent
                np.save(
                    tmp_path / name / "test_split" / "noise_ceiling" / f"{side}_noise_ceiling.npy", ceiling
                )
                with archive.open(f"{name}/{side}_pred_test.npy", "w") as member:
                    np.lib.format.write_array(
                        member, rng.standard_normal((60, len(ceiling)), dtype=np.float32)
                    )
    official = score(str(tmp_path / "s.zip"), f"algonauts2023:{tmp_path}")["algonauts2023"]
    assert official["n_vertices"] == sum(map(sum, (VERTICES[6], VERTICES[8])))
    assert official["n_zero_ceiling"] > 900  # 2.3 % of subject 8 alone
    assert official["score"] == pytest.approx(official["noise_score"], rel=0.03)
    assert official["without_zero_ceiling"] < official["score"]
