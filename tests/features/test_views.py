"""Augmented views stand beside the images, and never in their place."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import skops.io
from sklearn.base import clone

from featpipe import CachedFeatures
from featpipe.errors import AmbiguousFeatures, FeaturesNotCached, RequestError, SpecError, StimulusNotCached
from featpipe.testing import check_ids_estimator

CROP = "crop:0.875:1"
LAYERS = {"layer1": (3, 2, 2), "layer2": (5,)}


@pytest.fixture
def add_views(tmp_path, add_features, make_rows):
    """Return a function that caches views, and gives their rows by (view, layer)."""

    def add(views, *, layers=LAYERS, manifest=None, augmentation=CROP, view_seed=0):
        rows = {}
        for view in views:
            made = {"augmentation": augmentation, "view_seed": view_seed} if view else {}
            for number, layer in enumerate(layers):
                n_stimuli = 24 if manifest is None else len(manifest)
                values = make_rows(n_stimuli, LAYERS[layer], seed=100 * view_seed + 10 * view + number)
                add_features(tmp_path, values, layer=layer, view=view, manifest=manifest, **made)
                rows[view, layer] = values
        return rows

    return add


@pytest.fixture
def features(tmp_path):
    return CachedFeatures(tmp_path, layers=["layer1", "layer2"], output="blocks", views=2)


def test_views_have_the_ids_and_layers_of_the_images(features, add_views, ids):
    rows = add_views(range(4))
    blocks = features.fit(ids).transform(ids[[5, 2, 5]])
    assert len(blocks.views) == 2
    for number, view in enumerate(blocks.views, 1):
        assert (view.names, view.ids.tolist()) == (blocks.names, blocks.ids.tolist())
        for layer in LAYERS:
            np.testing.assert_array_equal(view.block(layer), rows[number, layer][[5, 2, 5]])
            np.testing.assert_array_equal(view.stream(layer, [1]), rows[number, layer][[2]])
    np.testing.assert_array_equal(blocks.block("layer1"), rows[0, "layer1"][[5, 2, 5]])
    digests = [digest for part in (blocks, *blocks.views) for digest in part.digests]
    assert len(set(digests)) == 6


def test_who_does_not_ask_for_views_never_meets_them(features, add_views, ids):
    rows = add_views(range(3))
    features.set_params(views=0, output="matrix")
    plain = np.hstack([rows[0, layer].reshape(24, -1) for layer in LAYERS])
    np.testing.assert_array_equal(features.fit_transform(ids), plain)
    assert features.set_params(output="blocks").fit_transform(ids).views == ()
    assert features.view_specs_ == []


def test_views_alone_are_no_features(features, add_views, ids):
    add_views([1, 2])
    with pytest.raises(FeaturesNotCached, match=r"any features in the cache .* It holds: nothing"):
        features.fit(ids)


def test_missing_views_name_the_command(features, add_views, ids):
    add_views([0, 1])
    with pytest.raises(
        FeaturesNotCached,
        match=r"2 of 4 augmented views .* view 2 of layer 'layer1' of timm:tiny \(crop:0.875:1, seed 0\).*"
        r"featpipe extract … --layers 'layer1:mean' --layers 'layer2:mean' --views 2`",
    ):
        features.fit(ids)
    with pytest.raises(
        FeaturesNotCached, match=r"4 of 4 .* --views 2 --augmentation crop:0.5:1 --view-seed 9`"
    ):
        features.set_params(augmentation="crop:0.5", view_seed=9).fit(ids)


def test_views_made_in_two_ways_must_be_chosen(features, add_views, ids):
    rows = {seed: add_views([0, 1, 2], view_seed=seed) for seed in (0, 1)}
    with pytest.raises(
        AmbiguousFeatures, match=r"crop:0.875:1 with seed 0, .* seed 1. .*features__view_seed"
    ):
        features.fit(ids)
    for seed in (0, 1):
        blocks = features.set_params(view_seed=seed).fit_transform(ids)
        np.testing.assert_array_equal(blocks.views[1].block("layer2"), rows[seed][2, "layer2"])
    assert features.set_params(view_seed=1, augmentation="crop:0.875").fit(ids).view_seed_ == 1


def test_the_only_whole_set_of_views_is_meant(features, add_views, ids):
    add_views([0, 1, 2])
    add_views([1], view_seed=1)
    assert features.fit(ids).view_seed_ == 0


def test_new_images_need_no_views_until_they_are_read(features, add_views, make_manifest, ids):
    add_views(range(3))
    new = make_manifest(["a", "b"], name="new")
    add_views([0], manifest=new)
    blocks = features.fit(ids).transform(["a", "b"])
    assert blocks.block("layer1").shape == (2, 3, 2, 2)
    with pytest.raises(
        StimulusNotCached, match=r"2 of 2 stimuli .* 'layer1' of timm:tiny in view 1, first 'a'"
    ):
        blocks.views[0].block("layer1")


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"output": "matrix"}, RequestError, r"no place for 2 views .*features__output='blocks'"),
        ({"views": -1}, RequestError, "views must be a number from 0, got -1"),
        ({"views": 1.5}, RequestError, r"views must be a number from 0, got 1\.5"),
        ({"view_seed": "x"}, RequestError, "view_seed must be a number from 0, got 'x'"),
        ({"augmentation": "zoom"}, SpecError, "'zoom' is not known"),
        ({"augmentation": 3}, RequestError, "augmentation must be a text, got 3"),
    ],
)
def test_requests_that_mean_nothing(features, add_views, ids, changes, error, said):
    add_views(range(3))
    with pytest.raises(error, match=said):
        features.set_params(**changes).fit(ids)


def test_digest_tells_views_apart(features, add_views, ids):
    add_views(range(4))
    digests = [clone(features).set_params(views=n).fit(ids).digest for n in (0, 1, 3)]
    assert len(set(digests)) == 3
    assert digests[0] == CachedFeatures(features.cache, layers=["layer1", "layer2"]).fit(ids).digest


def test_keeps_the_contract_of_ids_and_travels(features, add_views, ids):
    add_views(range(3))
    check_ids_estimator(features, ids, np.zeros((24, 2)))
    again = pickle.loads(pickle.dumps(features.fit(ids)))
    np.testing.assert_array_equal(
        again.transform(ids[:3]).views[1].block("layer1"),
        features.transform(ids[:3]).views[1].block("layer1"),
    )


def test_what_is_fitted_is_plain_enough_for_a_run_folder(features, add_views, ids):
    """Its file is loaded without executing code, so every class in it has to be known to be safe."""
    add_views(range(3))
    ours = {"featpipe.features._cached.CachedFeatures"}
    ours |= {f"featpipe.spec.{name}" for name in ("FeatureSpec", "Preprocessing", "Reduction")}
    features.set_params(cache=str(features.cache))
    found = skops.io.get_untrusted_types(data=skops.io.dumps(features.fit(ids)))
    assert set(found) <= ours
