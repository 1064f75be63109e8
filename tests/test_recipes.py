"""Recipes: what a file declares, and what can be set and searched."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from featpipe import CachedFeatures
from featpipe.errors import RecipeError, RequestError
from featpipe.recipes import Recipe, find_recipe, load_recipe, parse_assignment, recipe_files
from featpipe.spec import Reduction

RECIPES = [path.stem for path in recipe_files()]


@pytest.fixture
def recipe():
    return load_recipe("baseline_ridge")


def test_recipes_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [path.stem for path in recipe_files()] == RECIPES
    assert {"baseline_ridge", "chimisso2023_clip_linear"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_what_it_does_and_whom_it_follows(name):
    recipe = load_recipe(name)
    assert recipe.summary
    assert "\n" not in recipe.summary
    assert any(character.isdigit() for character in recipe.citation)
    assert recipe.name == name
    assert len(recipe.sha256) == 64


def test_a_recipe_by_name_path_or_path_in_pipelines(tmp_path, monkeypatch, recipe):
    path = find_recipe("baseline_ridge").resolve()
    for text in ("baseline_ridge.py", "pipelines/baseline_ridge.py", str(path)):
        assert load_recipe(text).sha256 == recipe.sha256
    monkeypatch.chdir(tmp_path)
    assert load_recipe("pipelines/baseline_ridge.py").sha256 == recipe.sha256
    own = tmp_path / "pipelines" / "baseline_ridge.py"
    own.parent.mkdir()
    own.write_text(path.read_text() + "# mine\n")
    assert load_recipe("baseline_ridge").sha256 != recipe.sha256  # one's own folder comes first


def test_a_recipe_loads_without_torch():
    code = "import sys; from featpipe.recipes import load_recipe\n"
    code += "load_recipe('baseline_ridge')\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_setting_a_parameter_leaves_the_recipe_alone(recipe):
    changed = recipe.with_params({"ridge__alphas": [1.0], "features__layers": ["a"]})
    assert changed.pipeline.get_params()["ridge__alphas"] == [1.0]
    assert recipe.pipeline.get_params()["features__layers"] is None


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"features__layer": "x"}, r"no parameter 'features__layer'; there are features__layers"),
        ({"alphas": [1]}, r"no parameter 'alphas'; there are"),
        ({"ridge": 3}, r"'ridge' is a step"),
        ({"steps": []}, r"'steps' is a step"),
    ],
)
def test_unknown_parameters_are_named_beside_known_ones(recipe, params, message):
    with pytest.raises(RecipeError, match=message):
        recipe.with_params(params)


@pytest.mark.parametrize("values", [3, "abc", [], {}])
def test_a_search_needs_a_list(recipe, values):
    with pytest.raises(RecipeError, match="needs a list of values"):
        recipe.with_search({"ridge__cv": values})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("k=1", 1),
        ("k=1e3", 1000.0),
        ("k=true", True),
        ("k=null", None),
        ("k=None", None),
        ('k=["a", "b"]', ["a", "b"]),
        ("k=['a']", ["a"]),
        ("k=layer3", "layer3"),
        ("k=timm:resnet50", "timm:resnet50"),
        ("k=a=b", "a=b"),
        ("k=", ""),
        ("k='3'", "3"),
    ],
)
def test_values_are_json_python_or_text(text, value):
    assert parse_assignment(text) == ("k", value)
    assert type(parse_assignment(text)[1]) is type(value)


@pytest.mark.parametrize("text", ["k", "=3", "", "k=[layer3]", "k={a", "k=(1,"])
def test_what_cannot_be_read_is_said(text):
    with pytest.raises(RecipeError, match=r"KEY=VALUE|cannot be read"):
        parse_assignment(text)


def test_order_covers_the_layers_of_the_search(recipe):
    params = {
        "features__model": "timm:resnet18.a1_in1k",
        "features__layers": ["layer1"],
        "features__reduce": "grid:4",
    }
    search = {"features__layers": [["layer2"], ["layer1", "layer3"]]}
    order = recipe.with_params(params).with_search(search).orders()[0]
    assert [layer.pattern for layer in order.layers] == ["layer1", "layer2", "layer3"]
    assert {layer.reduction for layer in order.layers} == {Reduction("grid", 4)}
    assert (order.model.model, order.model.weights) == ("timm:resnet18.a1_in1k", "default")


def test_order_needs_model_and_layers(recipe):
    with pytest.raises(RecipeError, match=r"leaves model or layers .*features__model="):
        recipe.orders()[0]
    with pytest.raises(RecipeError, match="must be 'model' or 'whole'"):
        recipe.with_params(
            {"features__model": "timm:x", "features__layers": "a", "features__preprocess": {"resize": 3}}
        ).orders()[0]
    with pytest.raises(RequestError, match="list of names"):
        recipe.with_params({"features__model": "timm:x", "features__layers": 3}).orders()[0]


def test_the_clip_recipe_asks_for_the_embedding():
    order = load_recipe("chimisso2023_clip_linear").orders()[0]
    assert order.model.model == "open_clip:ViT-B-32/openai"
    assert [str(layer) for layer in order.layers] == ["output:none"]


def test_the_deep_recipe_has_the_report_s_first_and_last_form():
    recipe = load_recipe("chimisso2023_deep")
    plain, own = (recipe.with_variant(variant).pipeline[-1] for variant in ("plain", None))
    assert (plain.n_blocks, plain.residual, plain.widening, plain.dropout) == (4, False, 1.0, 0.0)
    assert (own.n_blocks, own.residual, own.widening, own.dropout) == (4, True, 1.25, 0.05)
    assert plain.learning_rate == own.learning_rate == 5e-6


@pytest.mark.parametrize("steps", [[("scale", StandardScaler())], [("features", StandardScaler())]])
def test_a_pipeline_begins_with_features(steps):
    with pytest.raises(RecipeError, match="begin with a step 'features'"):
        Recipe("s", "c", Pipeline(steps))
    assert Recipe("s", "c", Pipeline([("features", CachedFeatures())])).cv == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "must define RECIPE"),
        ("RECIPE = 3\n", "it defines 3"),
        ("RECIPE = (\n", r"cannot|can be run \(SyntaxError"),
        ("import nothing_of_that_name\n", "ModuleNotFoundError"),
    ],
)
def test_files_that_are_no_recipes(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path))


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(
        RecipeError,
        match=r"no recipe 'nothing'. There are .*baseline_algonauts2019, baseline_algonauts2023, ",
    ):
        load_recipe("nothing")


def test_a_variant_is_another_pipeline_of_the_same_report():
    own, other = (Pipeline([("features", CachedFeatures(model=model))]) for model in ("a", "b"))
    recipe = Recipe("s", "c", own, variants={"other": other}, name="r")
    assert recipe.with_variant(None) is recipe
    assert recipe.with_variant("other").pipeline[0].model == "b"
    assert recipe.pipeline[0].model == "a"
    with pytest.raises(RecipeError, match=r"no variant 'third'. There are other; leave it out"):
        recipe.with_variant("third")
    with pytest.raises(RecipeError, match="begin with a step 'features'"):
        Recipe("s", "c", own, variants={"bad": Pipeline([("scale", StandardScaler())])})


class TakesImages(BaseEstimator):
    """What a recipe knows of a tuner."""

    takes_images = True


def test_a_pipeline_may_begin_with_a_tuner_and_then_nothing_is_extracted():
    tuner = TakesImages()
    recipe = Recipe("s", "c", Pipeline([("tuner", tuner), ("scale", StandardScaler())]))
    assert recipe.tuner is tuner
    assert recipe.orders() == []
    assert Recipe("s", "c", Pipeline([("features", CachedFeatures())])).tuner is None


@pytest.mark.parametrize("step", [("tuner", StandardScaler()), ("features", TakesImages())])
def test_what_a_pipeline_begins_with_goes_by_its_name(step):
    with pytest.raises(RecipeError, match="or with a step 'tuner' that takes images"):
        Recipe("s", "c", Pipeline([step]))
