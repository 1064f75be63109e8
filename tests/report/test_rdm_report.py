"""The report of a run on RDMs shows every score beside its chance level, and loads nothing."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import rankdata

from featpipe.errors import RecipeError
from featpipe.report import write_report
from featpipe.rsa import RDM_METRICS, RDMs, measured_labels, permutation_null, rdm_nulls_summary

IDS = np.array([f"92/image_{k:02d}" for k in range(8)] + [f"118/image_{k:02d}" for k in range(10)])
FIVE_EACH = [np.r_[0:4, 8:13], np.r_[4:8, 13:18]]  # half of either set
WHOLE_SETS = [np.arange(8), np.arange(8, 18)]


def make_rdms(rng, target="EVC", n_subjects=4):
    shared = rng.random((1, 18 * 17 // 2))
    rdms = RDMs.from_upper(
        shared + rng.random((n_subjects, shared.size)),
        IDS,
        subjects=[f"{k + 1:02d}" for k in range(n_subjects)],
        targets=[target] * n_subjects,
    )
    return rdms.with_upper(rdms.upper() * same_set()), RDMs.from_upper(shared * same_set(), IDS)


def same_set():
    first, second = np.triu_indices(len(IDS), 1)
    sets = np.array([name.partition("/")[0] for name in IDS])
    return np.where(sets[first] == sets[second], 1.0, np.nan)


def make_run(folder, *, target="EVC", folds=FIVE_EACH, stages=True, seed=0):
    """Write a run folder as `featpipe fit` leaves it, with scores of made-up RDMs."""
    y, model = make_rdms(np.random.default_rng(seed), target)
    labels = measured_labels(y)
    predicted, fold_of = np.full((len(IDS), len(IDS)), np.nan), np.full(len(IDS), -1)
    for number, rows in enumerate(folds):
        predicted[np.ix_(rows, rows)] = model.values[0][np.ix_(rows, rows)]
        fold_of[rows] = number
    scores = {
        name: np.array([metric(y[rows], model[rows]) for rows in folds])
        for name, metric in RDM_METRICS.items()
    }
    means = {
        name: {"overall": float(values.mean()), "groups": {target: float(values.mean())}}
        for name, values in scores.items()
    }
    nulls = rdm_nulls_summary(y, RDMs(predicted, IDS), n=50, blocks=fold_of)
    chance = permutation_null(y, RDMs(predicted, IDS), n=50, blocks=fold_of)
    nulls["targets"][target]["permutation"] |= {
        "rho_mean": float(chance.rho_mean[0]),
        "rho_interval": chance.rho_interval[0].tolist(),
    }
    summary = {
        "scores": {name: value for name, value in means.items() if "ceiling" not in name},
        "noise_ceiling": means["rdm_ceiling"],
        "noise_ceiling_lower": means["rdm_ceiling_lower"],
        "subjects_above_zero": {target: int((scores["rdm_rho"].mean(axis=0) > 0).sum())},
        **{"n_subjects": 4, "n_targets": 4, "n_stimuli": 18, "n_scored": 18, "n_folds": len(folds)},
        "nulls": nulls,
    }
    record = {
        "kind": "rdms",
        "recipe": {"name": "channel_mask", "path": "pipelines/channel_mask.py"},
        "data": {"given": "algonauts2019:data", "name": "algonauts2019", "target": target},
        "targets": [" ".join(label) for label in labels],
        "folds": [IDS[rows].tolist() for rows in folds],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "summary.json").write_text(json.dumps(summary))
    tidy(scores, labels).to_csv(folder / "scores.csv", index=False)
    np.savez(folder / "rdms.npz", ids=IDS, predicted=predicted, measured=y.mean().values[0])
    if stages:
        table = {"stage": ["stem", "layer1"], "mean": [1.2, 0.9], "low": [1.1, 0.8], "high": [1.3, 1.0]}
        pd.DataFrame(table | {"n": [8, 16]}).to_csv(folder / "stage_tuning.csv", index=False)
    return folder


def tidy(scores, labels):
    rows = [
        (" ".join(label), label[0], fold, metric, value)
        for metric, values in scores.items()
        for fold, of_fold in enumerate(values)
        for label, value in zip(labels, of_fold, strict=True)
    ]
    return pd.DataFrame(rows, columns=["target", "group", "fold", "metric", "value"])


def edit(run, name, change):
    value = json.loads((run / name).read_text())
    change(value)
    (run / name).write_text(json.dumps(value))


def target_of(summary):
    return summary["nulls"]["targets"]["EVC"]


def report(run):
    return write_report(run).read_text()


def text_of(page):
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split()).partition("Provenance")[0]


def plots(page):
    codes = re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", page)
    return [base64.b64decode(code).decode() for code in codes]


def pictures(page):
    codes = re.findall(r"data:image/png;base64,([\w+/=]+)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for code in codes]


def shown(value, digits=3):
    return f"{value:.{digits}f}".replace("-", "−")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def test_one_file_that_loads_nothing(run):
    page = report(run)
    assert "<script" not in page
    assert not re.search(r"""(src|srcset|href)=["'](?!data:)""", page)
    assert "http" not in page.replace("http-equiv", "")
    assert len(plots(page)) == 6  # subjects, chance and stages, for a wide and a narrow page
    assert len(pictures(page)) == 4  # measured and predicted, in two sets


def test_every_number_stands_in_the_text(run):
    summary = json.loads((run / "summary.json").read_text())
    found, page = target_of(summary), text_of(report(run))
    rho = found["rho"]
    low, high = rho["interval"]
    assert f"[{shown(low)}, {shown(high)}]" in page
    assert f"{rho['n_above_zero']} of {rho['n_subjects']} subjects above zero" in page
    values = [rho["mean"], rho["p"], found["r2"], found["ceiling"], found["ceiling_lower"]]
    for null in (found["permutation"], found["main_effects"]):
        values += [null["mean"], null["p95"], null["p"]]
        assert all(f"{shown(null[name], 1)} %" in page for name in ("percent_mean", "percent_p95"))
    values += [summary["scores"][f"rdm_{name}_centred"]["groups"]["EVC"] for name in ("rho", "r2")]
    assert [value for value in values if shown(value) not in page] == []
    assert f"{shown(found['percent'], 1)} %" in page


def test_the_official_test_never_stands_alone(run):
    edit(run, "summary.json", lambda s: target_of(s).update(t_test_p=1.4e-7))
    edit(run, "summary.json", lambda s: target_of(s)["permutation"].update(p=0.421))
    page = text_of(report(run))
    assert page.count("1.4 × 10⁻⁷") == 1
    assert re.search(r"gives p = 1.4 × 10⁻⁷\..{0,90}the permutation p of R² is 0.421", page)


def test_a_wrong_sign_is_said(run):
    assert "sign is wrong" not in text_of(report(run))
    edit(run, "summary.json", lambda s: target_of(s)["rho"].update(mean=-0.11, n_above_zero=0))
    assert "sign is wrong" in text_of(report(run))


def test_folds_name_their_sets(run):
    scores = pd.read_csv(run / "scores.csv").query("fold == 1").groupby("metric")["value"].mean()
    names = ("rdm_ceiling", "rdm_ceiling_lower", "rdm_rho_centred", "rdm_r2_centred")
    row = " ".join(shown(scores[name]) for name in names)
    first = f"{shown(scores['rdm_rho'])} {shown(scores['rdm_r2'])} {shown(scores['rdm_percent'], 1)}"
    assert f"2 9 92: 4, 118: 5 {first} {row}" in text_of(report(run))


def test_a_fold_without_score_keeps_its_row(run):
    scores = pd.read_csv(run / "scores.csv")
    scores.loc[scores["fold"] == 0, "value"] = np.nan
    scores.to_csv(run / "scores.csv", index=False)
    page = text_of(report(run))
    assert "1 9 92: 4, 118: 5 – – – – – – –" in page
    assert "2 9 92: 4, 118: 5 0" in page


def test_each_subject_is_a_dot(run):
    dots = plots(report(run))[2]  # wide; the first is chance beside ceilings
    names = re.findall(r">([\w]+)</text>", dots)
    assert [name for name in names if name in {"01", "02", "03", "04", "mean"}] == [
        "01",
        "02",
        "03",
        "04",
        "mean",
    ]


def test_predictions_are_ranked_in_their_fold(run):
    """What is scored together is ranked together; across folds nothing is predicted, the measured RDM is pale."""
    measured, predicted = (sample(picture, 8) for picture in pictures(report(run))[:2])
    opaque = predicted[..., 3] == 255
    within = np.kron(np.eye(2), np.ones((4, 4))).astype(bool) & ~np.eye(8, dtype=bool)
    np.testing.assert_array_equal(opaque, within)
    assert (measured[..., 3][~within & ~np.eye(8, dtype=bool)] < 128).all()
    with np.load(run / "rdms.npz") as file:
        block = file["predicted"][:4, :4]
    pairs = np.triu_indices(4, 1)
    assert yellow_order(predicted[:4, :4][pairs]) == rankdata(block[pairs]).tolist()


def test_whole_sets_keep_the_order_of_the_data(tmp_path):
    page = report(make_run(tmp_path / "run", folds=WHOLE_SETS))
    measured, predicted = (sample(picture, 10) for picture in pictures(page)[2:])
    for picture in (measured, predicted):
        np.testing.assert_array_equal(picture[..., 3] == 255, ~np.eye(10, dtype=bool))
    assert "Images are in the order of the data." in text_of(page)
    with np.load(tmp_path / "run" / "rdms.npz") as file:
        truth = file["measured"][8:, 8:]
    pairs = np.triu_indices(10, 1)
    assert yellow_order(measured[pairs]) == rankdata(truth[pairs]).tolist()


def sample(picture, n):
    step = len(picture) // n
    return picture[step // 2 :: step, step // 2 :: step]


def yellow_order(colours):
    """Ranks of colours along the map, whose green grows throughout."""
    return rankdata(colours[:, 1]).tolist()


def test_large_rdms_are_averaged(run):
    n = 900
    ids = np.array([f"image_{k}" for k in range(n)])
    values = np.random.default_rng(0).random((n, n))
    values = values + values.T
    np.savez(run / "rdms.npz", ids=ids, predicted=values, measured=values)
    edit(run, "run.json", lambda r: r.update(folds=[ids.tolist()]))
    assert [len(picture) for picture in pictures(report(run))] == [
        900,
        900,
    ]  # 300 bins of three, drawn thrice


def test_stages_are_plotted_with_their_names(run):
    stages = plots(report(run))[4]
    assert ">stem<" in stages
    assert ">layer1<" in stages


@pytest.mark.parametrize(
    ("name", "heading"),
    [("rdms.npz", "Measured and predicted RDMs"), ("stage_tuning.csv", "Tuning to the stages")],
)
def test_files_that_may_be_absent(run, name, heading):
    assert heading in text_of(report(run))
    (run / name).unlink()
    assert heading not in text_of(report(run))


def test_unknown_numbers_are_dashes(run):
    def blank(value):
        if isinstance(value, dict):
            return {key: blank(entry) for key, entry in value.items()}
        return [math.nan] * len(value) if isinstance(value, list) else None

    edit(run, "summary.json", lambda s: s["nulls"]["targets"].update(EVC=blank(target_of(s))))
    edit(run, "summary.json", lambda s: s["scores"].update(blank(s["scores"])))
    edit(
        run,
        "summary.json",
        lambda s: s.update(noise_ceiling=blank(s["noise_ceiling"]), subjects_above_zero={}),
    )
    page = text_of(report(run))
    assert "– mean ρ" in page
    assert "– subjects above zero" in page
    assert not re.search(r"\b(nan|None)\b", page)


def test_without_chance_levels_the_scores_remain(run):
    edit(run, "summary.json", lambda s: s.pop("nulls"))
    summary, page = json.loads((run / "summary.json").read_text()), text_of(report(run))
    assert f"{shown(summary['scores']['rdm_rho']['groups']['EVC'])} mean ρ" in page
    assert f"{summary['subjects_above_zero']['EVC']} of 4 subjects above zero" in page
    assert shown(summary["noise_ceiling_lower"]["groups"]["EVC"]) in page
    assert "t-test" not in page


def test_targets_each_have_their_part(tmp_path):
    run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other", target="IT", seed=1)
    parts = [pd.read_csv(folder / "scores.csv") for folder in (run, other)]
    pd.concat(parts).to_csv(run / "scores.csv", index=False)
    more = json.loads((other / "summary.json").read_text())

    def join(summary):
        summary["nulls"]["targets"] |= more["nulls"]["targets"]
        for name, score in summary["scores"].items():
            score["groups"] |= more["scores"][name]["groups"]

    edit(run, "summary.json", join)
    page = text_of(report(run))
    assert page.index("EVC: scores beside chance") < page.index("IT: scores beside chance")
    assert shown(more["nulls"]["targets"]["IT"]["rho"]["mean"]) in page
    assert page.count("92: 4, 118: 5") == 4  # two folds, a row per target


def test_what_a_search_chose(run):
    chosen = {
        "folds": [{"mask__beta": 1}, {"mask__beta": [2]}, {"mask__beta": 1}],
        "saved": {"mask__beta": 1},
    }
    edit(run, "summary.json", lambda s: s.update(chosen=chosen))
    assert "mask__beta 1 (2 of 3), [2] (1 of 3) 1" in text_of(report(run))


def test_nothing_that_data_say_becomes_markup(tmp_path):
    attack = "<script>alert(1)</script>&\"'$\\frac{"
    run = make_run(tmp_path / "run", target=attack)
    stages = pd.read_csv(run / "stage_tuning.csv").assign(stage=attack)
    stages.to_csv(run / "stage_tuning.csv", index=False)
    with np.load(run / "rdms.npz") as file:
        arrays = dict(file)
    arrays["ids"] = np.array([f"{attack.replace('/', '')}/{k}" for k in range(len(IDS))])
    np.savez(run / "rdms.npz", **arrays)
    edit(
        run,
        "summary.json",
        lambda s: s.update(chosen={"folds": [{attack: attack}], "saved": {attack: attack}}),
    )
    page = report(run)
    assert "<script" not in page
    assert html.unescape(page).count(attack) >= 4
    assert all("<script" not in plot for plot in plots(page))


def test_equal_runs_give_equal_pages(run):
    assert report(run) == report(run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rdms.npz", b"no archive", r"rdms.npz' cannot be read"),
        ("rdms.npz", {"ids": IDS}, r"rdms.npz' cannot be read .*predicted"),
        (
            "rdms.npz",
            {"ids": IDS[:3], "predicted": np.eye(4), "measured": np.eye(4)},
            r"\(3,\) ids for RDMs of shape \(4, 4\)",
        ),
        ("rdms.npz", {"ids": np.array([{}])}, "cannot be read .*pickle"),
        ("stage_tuning.csv", b"", "cannot be read as a table"),
        ("stage_tuning.csv", b"stage,mean\na,1\n", "must have the columns stage, mean, low, high, n"),
        ("stage_tuning.csv", b"stage,mean,low,high,n\na,x,1,2,3\n", "numbers in all but the first"),
    ],
)
def test_damaged_files_are_named(run, name, content, message):
    if isinstance(content, bytes):
        (run / name).write_bytes(content)
    else:
        np.savez(run / name, **content)
    with pytest.raises(RecipeError, match=message):
        write_report(run)
