"""Runs whose recipe begins with a tuner: each fold changes the network; the run keeps it, and a cache takes it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import Pipeline

from featpipe import LayerScaler, RidgeEncoder
from featpipe.cli import main
from featpipe.datasets import load_stimuli
from featpipe.errors import ModelError, RecipeError, RequestError
from featpipe.extraction import Order, extract
from featpipe.features import CachedFeatures
from featpipe.models import ModelRequest, resolve
from featpipe.recipes import Recipe, load_recipe
from featpipe.runs import FitRequest, RunFolder, fit, predict
from featpipe.spec import LayerRequest
from featpipe.store import FeatureCache
from featpipe.testing import make_algonauts2019, make_images, make_table_dataset
from featpipe.tuning.rdms._siamese_tuner import SiameseTuner
from featpipe.tuning.responses._contrastive_tuner import ContrastiveTuner
from featpipe.tuning.responses._response_tuner import ResponseTuner

pytestmark = pytest.mark.filterwarnings("ignore:With .* folds one stimulus set has only")

NETWORK = {"weights": "random:0", "image_size": 32, "learning_rate": 1e-2, "device": "cpu"}
NETWORK |= {"max_epochs": 3, "patience": None, "validation_fraction": 0}
SIAMESE = SiameseTuner("timm:test_resnet", "layer2:mean", **NETWORK)
RDM_SCORES = ("rdm_rho", "rdm_r2", "rdm_percent")


def rdm_recipe(**params):
    data, scores = ("algonauts2019", "table"), {"scoring": RDM_SCORES, "search_scoring": "rdm_rho"}
    recipe = Recipe("s", "c", Pipeline([("tuner", SIAMESE)]), data, cv="set", name="siamese", **scores)
    return recipe.with_params(params)


def response_recipe(tuner, **params):
    steps = [("tuner", tuner), ("scale", LayerScaler()), ("ridge", RidgeEncoder(alphas=[10.0, 1e4], cv=3))]
    params = {"tuner__cross_fit": 2, **params}
    return Recipe("s", "c", Pipeline(steps), cv=2, name="tuned").with_params(params)


def request(recipe, data, out, **given):
    return FitRequest(recipe, data, str(out), "nowhere", threads=1, **given)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Challenge data, a table of responses, a run of each kind."""
    root = tmp_path_factory.mktemp("tuners")
    make_algonauts2019(root / "rdm", sets={"92": 12, "118": 13}, n_test=5, n_subjects=3, test_targets=True)
    make_table_dataset(root / "table", n=24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("tuners-cache")))
        fit(request(rdm_recipe(), f"algonauts2019:{root / 'rdm'}", root / "evc", target="EVC"))
        tuner = ResponseTuner("timm:test_resnet", "layer2:mean", **NETWORK, batch_size=8)
        fit(request(response_recipe(tuner), f"table:{root / 'table'}", root / "tuned"))
    return root


@pytest.fixture
def moved(place, tmp_path):
    """The run of RDMs in another folder, without the one that it was made in."""
    return RunFolder.open(shutil.copytree(place / "evc", tmp_path / "elsewhere"))


def test_the_run_keeps_the_tuned_network_once_and_says_what_became_of_it(place):
    names = {path.name for path in (place / "evc").iterdir()}
    assert {"tuned.safetensors", "training_history.csv", "pipeline.skops"} <= names
    assert "checkpoints" not in names
    assert (place / "evc" / "pipeline.skops").stat().st_size < 200_000  # a reference, no weights
    about = json.loads((place / "evc" / "run.json").read_text())
    tuner = about["tuner"]
    assert about["features"] == []
    assert about["cache"] is None
    assert (tuner["class"], tuner["model"], tuner["layers"]) == (
        "SiameseTuner",
        "timm:test_resnet",
        ["layer2:mean"],
    )
    assert (tuner["best_epoch"], tuner["n_epochs"], tuner["n_fitted"], tuner["n_validation"]) == (3, 3, 25, 0)
    assert tuner["weights_before"] == resolve(ModelRequest("timm:test_resnet", "random:0")).weights
    assert (
        tuner["weights_after"]
        == resolve(ModelRequest(f"local:{place / 'evc' / 'tuned.safetensors'}")).weights
    )
    assert tuner["weights_before"] != tuner["weights_after"]
    history = pd.read_csv(place / "evc" / "training_history.csv")
    assert list(history["epoch"]) == [0, 1, 2, 3]


def test_a_run_predicts_wherever_it_lies(place, moved):
    stimuli = load_stimuli(f"algonauts2019:{place / 'rdm'}", split="test")
    first = predict(RunFolder(place / "evc"), stimuli)
    np.testing.assert_array_equal(predict(moved, stimuli).values, first.values)
    (moved.path / "tuned.safetensors").unlink()
    with pytest.raises(ModelError, match=r"tuned.safetensors are not there"):
        predict(moved, stimuli)


def test_other_weights_than_those_that_were_tuned_are_refused(place):
    stimuli = load_stimuli(f"algonauts2019:{place / 'rdm'}", split="test")
    with pytest.raises(RecipeError, match=r"has the weights .* was tuned from .*--weights FILE"):
        predict(RunFolder(place / "evc"), stimuli, weights="random:1")


def test_no_cache_is_read(place):
    stimuli = load_stimuli(f"algonauts2019:{place / 'rdm'}", split="test")
    with pytest.raises(RecipeError, match="reads the images themselves and no cache"):
        predict(RunFolder(place / "evc"), stimuli, cache="cache")
    with pytest.raises(RecipeError, match="nothing has to be extracted"):
        fit(
            request(rdm_recipe(), f"algonauts2019:{place / 'rdm'}", place / "new", target="EVC", extract=True)
        )


def command(place, words):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        with pytest.raises(SystemExit) as end:
            main(words.split())
    return end.value.code


def test_a_run_is_scored_submitted_and_reported(place, capsys):
    fit(request(rdm_recipe(), f"algonauts2019:{place / 'rdm'}", place / "it", target="IT"))
    assert command(place, "score evc --data algonauts2019:rdm --json") == 0
    assert json.loads(capsys.readouterr().out)["n_stimuli"] == 5
    out = "submit evc it --challenge algonauts2019 --images algonauts2019:rdm --split test --out s.zip --json"
    assert command(place, out) == 0
    assert command(place, "report evc") == 0
    page = (place / "evc" / "report.html").read_text()
    for shown in ("Tuned network", "timm:test_resnet", "Loss by epoch", "layer2:mean"):
        assert shown in page
    assert "--cache" not in page


def test_responses_go_through_tuner_scaler_and_ridge(place):
    run = RunFolder.open(place / "tuned")
    stimuli = load_stimuli(f"table:{place / 'table'}")
    assert predict(run, stimuli).shape == (24, 8)
    assert run.read_json("summary.json")["n_scored"] == 24


def test_what_a_network_was_tuned_on_is_not_scored_with_its_features(place, tmp_path):
    """The checkpoint knows its images, wherever they are and under whatever ids."""
    model = f"local:{place / 'tuned' / 'tuned.safetensors'}"
    cache = str(tmp_path / "cache")
    stimuli = load_stimuli(f"table:{place / 'table'}")
    extract(Order(ModelRequest(model), (LayerRequest.parse("layer2:mean"),)), stimuli, FeatureCache(cache))
    features = CachedFeatures(
        cache, model="timm:test_resnet", layers=["layer2"]
    )  # not by the checkpoint's name
    recipe = Recipe(
        "s", "c", Pipeline([("features", features), ("ridge", RidgeEncoder(10.0))]), cv=2, name="again"
    )
    with pytest.raises(RecipeError, match="tuned on 24 of the 24 images that would be scored"):
        fit(FitRequest(recipe, f"table:{place / 'table'}", str(tmp_path / "run"), cache, threads=1))


def test_a_checkpoint_that_is_gone_is_said(place, tmp_path):
    shutil.copytree(place / "tuned", tmp_path / "gone")
    cache = str(tmp_path / "cache")
    model = f"local:{tmp_path / 'gone' / 'tuned.safetensors'}"
    stimuli = load_stimuli(f"table:{place / 'table'}")
    extract(Order(ModelRequest(model), (LayerRequest.parse("layer2:mean"),)), stimuli, FeatureCache(cache))
    shutil.rmtree(tmp_path / "gone")
    features = CachedFeatures(cache, layers=["layer2"])
    recipe = Recipe(
        "s", "c", Pipeline([("features", features), ("ridge", RidgeEncoder(10.0))]), cv=2, name="again"
    )
    with pytest.warns(UserWarning, match="nobody can tell whether it was tuned"):
        fit(FitRequest(recipe, f"table:{place / 'table'}", str(tmp_path / "run"), cache, threads=1))


def test_tuned_features_are_cached_like_any_other_and_found_by_their_weights(place, tmp_path, capsys):
    """From the command line: extract from the run's checkpoint, then fit a ridge on its layer."""
    shutil.copytree(place / "evc", tmp_path / "gone")
    extract = f"extract --layers layer2:mean --images table:table --cache {tmp_path / 'cache'} --json --model"
    assert command(place, f"{extract} local:{tmp_path / 'gone' / 'tuned.safetensors'}") == 0
    shutil.rmtree(tmp_path / "gone")  # the same weights are elsewhere now
    features = "--set features__model=local:evc/tuned.safetensors --set features__layers=layer2"
    ridge = f"fit baseline_ridge --data table:table --cache {tmp_path / 'cache'} {features} --cv 2"
    assert command(place, f"{ridge} --out {tmp_path / 'ridge'} --json") == 0
    [feature] = json.loads((tmp_path / "ridge" / "run.json").read_text())["features"]
    assert feature["spec"]["model"] == "timm:test_resnet"
    assert (
        feature["spec"]["weights"]
        == json.loads((place / "evc" / "run.json").read_text())["tuner"]["weights_after"]
    )
    make_images(tmp_path / "new", ["a.png", "b.png", "c.png"])
    capsys.readouterr()
    again = f"predict {tmp_path / 'ridge'} --images {tmp_path / 'new'} --out {tmp_path / 'p.npz'} --json"
    assert command(place, f"{again} --weights evc/tuned.safetensors") == 0


def test_a_killed_fit_goes_on_from_the_states_of_its_trainings(place, tmp_path):
    """Killed in the last epoch of the second fold: that fold's last epoch and the final training remain."""

    class Killed(BaseException):
        pass

    epochs = []

    def kill(epoch):
        epochs.append(epoch.number)
        if len(epochs) == 6:
            raise Killed

    data = f"algonauts2019:{place / 'rdm'}"
    with pytest.raises(Killed):
        fit(request(rdm_recipe(tuner__callback=kill), data, tmp_path / "run", target="EVC"))
    assert any((tmp_path / "run" / "checkpoints").iterdir())
    epochs.clear()
    fit(
        request(
            rdm_recipe(tuner__callback=lambda e: epochs.append(e.number)),
            data,
            tmp_path / "run",
            target="EVC",
        )
    )
    assert epochs[0] == 3  # the first fold was done
    assert len(epochs) <= 8  # of the 12 of an undisturbed fit, the network as it came included
    assert not (tmp_path / "run" / "checkpoints").exists()
    for name in ("summary.json", "scores.csv", "training_history.csv", "tuned.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (place / "evc" / name).read_bytes()


@pytest.mark.parametrize("kind", [ResponseTuner, ContrastiveTuner])
def test_every_tuner_of_responses_is_saved_without_code(place, tmp_path, kind):
    tuner = kind("timm:test_resnet", "layer2:mean", **NETWORK, batch_size=8)
    data = f"table:{place / 'table'}"
    run = fit(request(response_recipe(tuner, tuner__max_epochs=1), data, tmp_path / "run"))
    assert predict(run, load_stimuli(data)).shape == (24, 8)


def test_a_network_of_ones_own_is_tuned_and_kept_by_the_run(place, tmp_path, tiny_backbone):
    params = {"tuner__model": tiny_backbone, "tuner__weights": "default", "tuner__layer": "head"}
    asked = request(
        rdm_recipe(**params), f"algonauts2019:{place / 'rdm'}", tmp_path / "run", target="EVC", trust=True
    )
    run = fit(asked)
    assert not (tmp_path / "run" / "tuned.safetensors").exists()
    assert run.read_json("run.json")["tuner"]["checkpoint"] is None
    stimuli = load_stimuli(f"algonauts2019:{place / 'rdm'}", split="test")
    with pytest.raises(
        RequestError, match="would execute"
    ):  # leave to execute code is not saved with the run
        predict(run, stimuli)
    assert len(predict(run, stimuli, trust=True)) == 5


def test_a_search_over_a_tuner_s_parameters_is_nested(place, tmp_path):
    recipe = rdm_recipe(tuner__max_epochs=1).with_search({"tuner__layer": ["layer1:mean"]})
    data = f"algonauts2019:{place / 'rdm'}"
    chosen = fit(request(recipe, data, tmp_path / "run", target="EVC")).read_json("summary.json")["chosen"]
    assert len(chosen["folds"]) == 2
    assert chosen["saved"] == {"tuner__layer": "layer1:mean"}


def test_local_models_are_named_by_their_weights_for_each_part_of_joined_features(place):
    from featpipe.features import JoinedFeatures
    from featpipe.runs._predict import named_as_cached

    model = f"local:{place / 'evc' / 'tuned.safetensors'}"
    joined = JoinedFeatures([("a", CachedFeatures(model=model)), ("b", CachedFeatures(model="timm:x"))])
    named = named_as_cached(Pipeline([("features", joined)]))
    assert named == {
        "features__a__model": "timm:test_resnet",
        "features__a__weights": RunFolder(place / "evc").read_json("run.json")["tuner"]["weights_after"],
    }
    assert named_as_cached(load_recipe("baseline_ridge").pipeline) == {}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # distributed's own
@pytest.mark.parametrize("where", [{}, {"n_jobs": 2}, {"dask": "2"}], ids=["here", "processes", "dask"])
def test_scores_and_threads_are_the_same_wherever_folds_are_tuned(place, tmp_path, where):
    if "dask" in where:
        pytest.importorskip("distributed")
    seen = tmp_path / "threads"

    def note(epoch):
        import torch

        with seen.open("a") as file:
            file.write(f"{torch.get_num_threads()}\n")

    asked = request(
        rdm_recipe(tuner__callback=note),
        f"algonauts2019:{place / 'rdm'}",
        tmp_path / "run",
        target="EVC",
        **where,
    )
    fit(asked)
    assert set(seen.read_text().split()) == {"1"}
    for name in ("summary.json", "tuned.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (place / "evc" / name).read_bytes()
