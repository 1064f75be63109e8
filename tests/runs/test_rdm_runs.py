"""Runs that predict RDMs, from the command line: fit, predict, score, submit."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pandas as pd
import pytest
import scipy.io
from scipy.stats import spearmanr
from sklearn.base import BaseEstimator

from featpipe.cli import main
from featpipe.datasets import load_dataset
from featpipe.rsa import RDMs, rdm_rho, read_challenge_rdms
from featpipe.runs import RunFolder
from featpipe.runs._tasks import RDMTask
from featpipe.testing import make_algonauts2019

pytestmark = [
    pytest.mark.filterwarnings("ignore:With .* folds one stimulus set has only"),
    pytest.mark.filterwarnings("always:.* holds no ids"),  # the command line prints it
]

NET = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(inplace=True)))
    net.add_module("head", nn.Sequential(nn.Conv2d(8, 6, 3, stride=2), nn.ReLU(inplace=True)))
    size = {"resize": [24, 24], "crop": None, "interpolation": "bilinear"}
    return net, {**size, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
"""
LAYERS = '--set features__layers=["stem","head"] --set features__model='


class Fixed(BaseEstimator):
    """Predict the same, whatever it was fitted to."""

    def __init__(self, rdm=None):
        self.rdm = rdm

    def predict(self, X):
        return self.rdm.take(X)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with challenge data (24 + 26 training images, 9 test images with targets) and cached features."""
    root = tmp_path_factory.mktemp("rdms")
    make_algonauts2019(root / "data", sets={"92": 24, "118": 26}, n_test=9, n_subjects=3, test_targets=True)
    (root / "tiny.py").write_text(NET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("rdms-cache")))
        patch.chdir(root)
        call = ["--trust", "--layers", "stem", "--layers", "head", "--cache", "cache", "--json"]
        assert run(f"extract --model python:tiny.py:build --images algonauts2019:data {' '.join(call)}") == 0
        assert run(f"{fit('baseline_algonauts2019', 'EVC')} --out evc --json") == 0
        assert run(f"{fit('baseline_algonauts2019', 'IT')} --out it --json") == 0
        yield root


def run(words: str) -> int:
    try:
        main(words.split())
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def fit(recipe: str, target: str, data: str = "data") -> str:
    return (
        f"fit {recipe} --data algonauts2019:{data} --target {target} --cache cache "
        '--set features__model=python:tiny.py:build --set features__layers=["stem","head"]'
    )


def test_scores_are_those_of_an_explicit_loop_over_sets(place):
    folder, data = RunFolder.open(place / "evc"), load_dataset(f"algonauts2019:{place / 'data'}")
    found = folder.read_json("summary.json")
    saved = np.load(folder.path / "rdms.npz")
    rho = []
    for name, measured in data.rdms.select(targets=["EVC"]).split_sets():
        rows = np.flatnonzero(np.char.startswith(saved["ids"], f"{name}/"))
        predicted = RDMs(saved["predicted"][np.ix_(rows, rows)]).upper()[0]
        rho.append([spearmanr(subject, predicted)[0] for subject in measured.upper()])
    scores = found["scores"]
    assert scores["rdm_rho"]["groups"]["EVC"] == pytest.approx(np.mean(rho))
    assert scores["rdm_r2"]["overall"] == pytest.approx(np.mean(np.square(rho)))
    assert found["n_folds"] == 2
    assert found["subjects_above_zero"] == {"EVC": int((np.mean(rho, axis=0) > 0).sum())}
    assert found["nulls"]["targets"]["EVC"]["r2"] == pytest.approx(scores["rdm_r2"]["overall"])


def test_percent_is_the_mean_over_sets_of_a_ratio_of_means(place):
    table = pd.read_csv(place / "evc" / "scores.csv")
    by_fold = table.pivot_table(index="fold", columns="metric", values="value")
    percent = (100 * by_fold["rdm_r2"] / by_fold["rdm_ceiling"]).mean()
    summary = RunFolder.open(place / "evc").read_json("summary.json")
    assert summary["scores"]["rdm_percent"]["overall"] == pytest.approx(percent, rel=1e-5)
    assert set(table["group"]) == {"EVC"}
    assert set(table["target"]) == {"EVC 01", "EVC 02", "EVC 03"}


def test_predictions_have_the_challenges_names_and_ids(place):
    images = place / "data" / "Test_Data" / "78_Image_Set" / "78images"
    for name in ("new.npz", "new.mat"):
        assert run(f"predict evc --images {images} --out {name} --trust") == 0
    found = [read_challenge_rdms(place / name) for name in ("new.npz", "new.mat")]
    assert scipy.io.loadmat(place / "new.mat")["EVC_RDMs"].shape == (9, 9)
    assert np.allclose(found[0].rdms["EVC"], found[1].rdms["EVC"])
    assert found[0].ids.tolist() == found[1].ids.tolist() == [f"image_0{n}" for n in range(1, 10)]
    assert not found[0].in_training.any()


@pytest.mark.parametrize("source", ["evc", "test.npz", "official.mat"])
def test_a_run_and_its_predictions_score_alike_on_a_test_set(place, source, capsys):
    data = load_dataset("algonauts2019:data", split="test")
    assert run("predict evc --images algonauts2019:data --split test --out test.npz --trust") == 0
    rdm = np.load("test.npz")["EVC_RDMs"]
    scipy.io.savemat("official.mat", {"EVC_RDMs": rdm, "IT_RDMs": rdm})
    capsys.readouterr()
    assert run(f"score {source} --data algonauts2019:data --target EVC --trust --json") == 0
    summary = json.loads(capsys.readouterr().out)
    measured = data.rdms.select(targets=["EVC"])
    assert summary["scores"]["rdm_rho"]["overall"] == pytest.approx(
        rdm_rho(measured, RDMs(rdm, data.ids)).mean()
    )


def test_training_images_are_not_scored(place, capsys):
    assert run("score evc --data algonauts2019:data/Training_Data --trust") == 2
    assert "50 of 50 images were in the training set of evc" in capsys.readouterr().err
    assert run("predict evc --images algonauts2019:data --split train --out seen.npz") == 0
    assert run("score seen.npz --data algonauts2019:data/Training_Data") == 2
    assert "were in the training set" in capsys.readouterr().err


def test_training_images_predicted_from_their_folder_are_not_scored(place, capsys):
    """Their ids then lack the name of the set, which the data put before them."""
    home = "data/Training_Data/92_Image_Set"
    assert run(f"predict evc --images {home}/92images --out folder.npz --trust") == 0
    assert run(f"score folder.npz --data algonauts2019:{home} --target EVC") == 2
    assert "24 of 24 images were in the training set" in capsys.readouterr().err


def test_a_submission_holds_both_regions_of_the_track(place, capsys):
    words = "--challenge algonauts2019 --images algonauts2019:data --split test --out submit_fmri.zip --trust"
    assert run(f"submit it evc {words}") == 0
    with zipfile.ZipFile("submit_fmri.zip") as archive:
        assert archive.namelist() == ["submit_fmri.mat"]
        archive.extractall("handed-in")
    found = scipy.io.loadmat("handed-in/submit_fmri.mat")
    assert found["EVC_RDMs"].shape == found["IT_RDMs"].shape == (9, 9)
    assert run("score submit_fmri.zip --data algonauts2019:data --json") == 0
    assert "holds no ids: its rows were taken in the natural order" in capsys.readouterr().err


@pytest.mark.filterwarnings("always:.* images were in the training set")
def test_training_images_in_a_submission_are_pointed_out(place, capsys):
    words = "--challenge algonauts2019 --images algonauts2019:data --out seen.zip --trust"
    assert run(f"submit it evc {words}") == 0
    assert "50 of 50 images were in the training set of evc, first '92/image_01'" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["gaziv2019_channel_mask", "feature_reweighted_rsa"])
def test_fitted_recipes_predict_what_their_pipeline_predicts(place, recipe, tmp_path):
    more = "--set mask__epochs=1" if recipe.startswith("gaziv") else ""
    assert run(f"{fit(recipe, 'IT')} {more} --out {tmp_path / 'run'} --json") == 0
    folder = RunFolder.open(tmp_path / "run")
    data = load_dataset("algonauts2019:data", split="test")
    assert run(f"predict {folder.path} --images algonauts2019:data --split test --out one.npz --trust") == 0
    expected = folder.load_pipeline().set_params(features__cache="cache").predict(data.ids)
    assert np.allclose(np.load("one.npz")["IT_RDMs"], expected.values[0], atol=1e-6)
    assert (folder.path / "stage_tuning.csv").exists() == recipe.startswith("gaziv")


def test_a_search_looks_at_the_target_alone(place):
    """MEG may help to fit a mask for EVC, and must not choose its parameters."""
    data = load_dataset("algonauts2019:data")
    task = RDMTask(data, "EVC", {"mask__train_on": "MEG-early"})
    assert set(task.y.target_names) == {"EVC", "MEG-early"}
    guess = RDMs(np.roll(data.rdms.values, 1, axis=(1, 2)), data.ids).mean()
    expected = rdm_rho(data.rdms.select(targets=["EVC"]), guess).mean()
    assert task.scorer("rdm_rho")(Fixed(guess), data.ids, task.y) == pytest.approx(expected)
    more = "--search mask__shrinkage=[0.0,1e9] --set mask__epochs=1 --out searched --json"
    assert run(f"{fit('gaziv2019_channel_mask', 'EVC')} {more}") == 0


def test_same_request_same_bytes(place, tmp_path):
    words = f"{fit('gaziv2019_channel_mask', 'IT')} --set mask__epochs=1"
    for name in ("one", "two"):
        assert run(f"{words} --out {tmp_path / name} --json") == 0
    first, second = ((tmp_path / name / "summary.json").read_bytes() for name in ("one", "two"))
    assert first == second


BAD = {
    "no target": (
        "fit baseline_algonauts2019 --data algonauts2019:data --cache cache --out x",
        "--target: EVC, IT",
    ),
    "unknown target": (f"{fit('baseline_algonauts2019', 'V1')} --out x", "no target 'V1'"),
    "RDMs for a recipe of responses": (
        "fit baseline_ridge --data algonauts2019:data --cache cache --out x",
        "takes table, algonauts2023, synthetic data",
    ),
    "fitted to what is not there": (
        f'{fit("gaziv2019_channel_mask", "IT")} --set mask__train_on=["IT","V4"] --out x',
        "has no V4, only EVC, IT, MEG-early, MEG-late. Name what there is, such as --set mask__train_on=",
    ),
    "a matrix instead of blocks": (
        f"{fit('baseline_algonauts2019', 'IT')} --set features__output=matrix --out x",
        "features__output is 'matrix'; set it to 'blocks'",
    ),
    "a table of RDM predictions": (
        "predict evc --images data --out x.csv",
        "Predicted RDMs are written as .npz, .mat",
    ),
    "half a track": (
        "submit evc --challenge algonauts2019 --images algonauts2019:data --split test --out x.zip",
        "one run per target of a track, EVC and IT or MEG-early and MEG-late; given are runs of EVC",
    ),
    "twice the same region": (
        "submit evc evc --challenge algonauts2019 --images algonauts2019:data --split test --out x.zip",
        "given are runs of EVC, EVC",
    ),
    "another challenge": (
        "submit evc it --challenge algonauts2021 --images algonauts2019:data --split test --out x.zip",
        "no challenge 'algonauts2021'",
    ),
    "no zip": (
        "submit evc it --challenge algonauts2019 --images algonauts2019:data --split test --out x.mat",
        "must be a .zip file",
    ),
    "a search for squares": (
        f'{fit("baseline_algonauts2019", "EVC")} --search rdm__metric=["correlation","cosine"] --cv 1 --out x',
        "1 folds cannot be made",
    ),
}


@pytest.mark.parametrize(("words", "says"), BAD.values(), ids=BAD)
def test_wrong_requests_say_what_would_be_right(place, words, says, capsys):
    assert run(words) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (place / "x").exists()


def test_ones_own_rdms_in_a_table(place, tmp_path, capsys):
    """A folder with rdms.npz goes through the same recipe."""
    home = place / "data" / "Training_Data" / "92_Image_Set"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "stimuli").symlink_to(home / "92images")
    measured = load_dataset(f"algonauts2019:{home}").rdms.select(targets=["IT"])
    np.savez(tmp_path / "own" / "rdms.npz", IT=measured.values)
    call = (
        f"--model python:tiny.py:build --trust --layers stem --images table:{tmp_path / 'own'} --cache cache"
    )
    assert run(f"extract {call} --json") == 0
    words = f"fit baseline_algonauts2019 --data table:{tmp_path / 'own'} --cache cache --set features__layers=stem"
    capsys.readouterr()
    assert (
        run(f"{words} --set features__model=python:tiny.py:build --cv 2 --out {tmp_path / 'run'} --json") == 0
    )
    assert json.loads(capsys.readouterr().out)["nulls"]["targets"].keys() == {"IT"}
