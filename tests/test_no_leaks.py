"""Responses and RDMs that are nothing but noise: no recipe predicts them, whatever it chooses and stops by.

A choice that looked at a stimulus which is later scored would show as a positive score here. Features outnumber
stimuli, and every head trains until it fits its training set. Targets are many, because the smallest leak that there
could be, two layers or a few penalties compared by the scores that are reported, gains hardly more than .03.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from featpipe import CachedFeatures, LayerScaler, LinearHead, RidgeEncoder, evaluate
from featpipe.extraction import Order, extract
from featpipe.metrics import pearson_r
from featpipe.models import ModelRequest
from featpipe.recipes import load_recipe, recipe_files
from featpipe.runs import FitRequest, fit
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache
from featpipe.testing import make_images

N_STIMULI, N_TARGETS = 80, 960
LAYERS = ("layer1", "layer2")


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A table of noise in two regions, an RDM dataset of noise, and a cache with features of their images."""
    folder = tmp_path_factory.mktemp("noise")
    names = [f"image_{number:03d}" for number in range(N_STIMULI)]
    rng = np.random.default_rng(7)  # not the seed of the images, whose colours would be the noise
    for kind in ("responses", "rdms"):
        make_images(folder / kind / "stimuli", [f"{name}.png" for name in names])
    np.save(
        folder / "responses" / "responses.npy", rng.standard_normal((N_STIMULI, N_TARGETS)).astype(np.float32)
    )
    places = rng.standard_normal((N_TARGETS, 3))
    table = pd.DataFrame(places, columns=["x", "y", "z"])
    table.insert(0, "roi", ["V1v"] * 400 + ["hV4"] * 560)
    table.insert(0, "hemisphere", ["lh", "rh"] * (N_TARGETS // 2))
    table.to_csv(folder / "responses" / "targets.csv", index=False)
    upper = np.triu(rng.uniform(0.2, 1, (12, N_STIMULI, N_STIMULI)), 1)
    np.savez(folder / "rdms" / "rdms.npz", rdms=upper + upper.swapaxes(1, 2))
    order = Order(
        ModelRequest("timm:test_resnet", "random:0", preprocess="whole"),
        tuple(LayerRequest.parse(f"{layer}:grid:2") for layer in LAYERS),
    )
    stimuli = StimulusSet.from_source(folder / "responses" / "stimuli")
    extract(order, stimuli, FeatureCache(str(folder / "cache")))
    return folder


def from_cache(recipe, variant):
    """Return a recipe's variant that takes what is cached, and trains until it could have learned by heart."""
    recipe = recipe.with_variant(variant)
    known = recipe.pipeline.get_params()
    if recipe.tuner is not None:
        return recipe.with_params({k: v for k, v in small_tuner(recipe.tuner).items() if k in known})
    free = {"model": None, "weights": None, "model_args": None, "reduce": None, "preprocess": None}
    wanted = {name: value for key, value in free.items() for name in known if name.endswith(f"__{key}")}
    layers = list(LAYERS)[: 1 if variant == "sam" else None]  # a map, not several
    wanted |= {name: layers for name in known if name.startswith("features__") and name.endswith("__layers")}
    wanted |= {name: None for name in known if name.endswith(("rsa__layers", "metric_layers"))}
    wanted |= {name: 1e-2 for name in known if name.endswith("head__learning_rate")}
    wanted |= {name: 5 for name in known if name.endswith("head__max_epochs")}
    wanted |= {name: 20 for name in known if name.endswith("__n_components")}
    return recipe.with_params(wanted)


def small_tuner(tuner):
    """Return parameters of a tuner of a tiny network, few images large, that changes it a lot in few steps."""
    several = not isinstance(tuner.layer, str)  # a mask reads stages
    small = {
        **{"model": "timm:test_resnet", "weights": "random:0", "model_args": None, "image_size": 48},
        **{"layer": list(LAYERS) if several else LAYERS[-1], "transform_layers": None, "read_layers": None},
        **{"frozen": None, "lora_rank": None, "predict_size": None, "fully_convolutional": False},
        **{"augmentation": None, "views": 0, "frozen_epochs": 1, "validation_folds": None},
        "cross_fit": tuner.cross_fit and 2,  # None: what follows chooses on what the tuner held out
        **{"learning_rate": 1e-2, "body_rate": 1.0, "batch_size": 256, "patience": None},
        "max_epochs": min(tuner.max_epochs, 3),  # 0 leaves it untuned
    }
    return {f"tuner__{name}": value for name, value in small.items()}


def every_variant():
    for path in recipe_files():
        recipe = load_recipe(str(path))
        for variant in (None, *recipe.variants):
            yield pytest.param(path.stem, variant, id=f"{path.stem}-{variant or 'own'}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), list(every_variant()))
def test_noise_is_not_predicted(noise, tmp_path, name, variant):
    recipe = from_cache(load_recipe(name), variant)
    kind = recipe.predicts
    request = FitRequest(
        recipe, f"table:{noise / kind}", str(tmp_path / "run"), cache=str(noise / "cache"), cv=4
    )
    scores = pd.read_csv(fit(request).path / "scores.csv")
    metric = "pearson_r" if kind == "responses" else "rdm_rho"
    r = scores[scores.metric == metric].groupby("target").value.mean()
    assert abs(r.mean()) < margin(r)


def margin(r):
    """Four standard errors over targets; and r about the mean of a fold is slightly negative."""
    return 4 * np.std(r, ddof=1) / np.sqrt(len(r)) + 0.5 / N_STIMULI


@pytest.fixture(scope="module")
def layers(noise):
    """Each layer's features of all stimuli, scaled."""
    ids = np.array([f"image_{number:03d}" for number in range(N_STIMULI)])
    parts = (CachedFeatures(str(noise / "cache"), layers=[layer]).fit(ids) for layer in LAYERS)
    return [LayerScaler().fit_transform(part.transform(ids)) for part in parts]


@pytest.fixture(scope="module")
def responses(noise):
    return np.load(noise / "responses" / "responses.npy")


def fold_mean(encoder, X, Y):
    return evaluate(encoder, X, Y, cv=4).fold_scores("pearson_r").mean(axis=0)


def test_a_choice_outside_the_folds_would_show(layers, responses):
    """Features chosen by their correlation with all responses, before the folds: the test above sees it."""
    X, Y = np.concatenate(layers, axis=1), responses
    correlation = np.nan_to_num(X.T @ (Y - Y.mean(axis=0)))
    best = np.argsort(-abs(correlation), axis=0)[:10]  # (10, n_targets)
    r = [evaluate(RidgeEncoder(), X[:, best[:, t]], Y[:, [t]], cv=4).overall("pearson_r") for t in range(12)]
    assert np.mean(r) > margin(r)


def test_the_better_of_two_layers_by_the_reported_score_would_show(layers, responses):
    r = np.maximum(*(fold_mean(RidgeEncoder(scoring="pearson_r"), X, responses) for X in layers))
    assert r.mean() > margin(r)


def test_a_penalty_chosen_by_the_reported_score_would_show(layers, responses):
    r = np.max([fold_mean(RidgeEncoder(alpha), layers[0], responses) for alpha in (1e1, 1e3, 1e5)], axis=0)
    assert r.mean() > margin(r)


def test_stopping_by_the_scored_stimuli_would_show(layers, responses):
    train, test = np.arange(20, N_STIMULI), np.arange(20)
    r = []
    for n_epochs in range(1, 6):
        head = LinearHead(max_epochs=n_epochs, validation_fraction=0, learning_rate=1e-2, device="cpu")
        head.fit(layers[0][train], responses[train])
        r.append(pearson_r(responses[test], head.predict(layers[0][test])))
    assert np.max(r, axis=0).mean() > margin(np.max(r, axis=0))
