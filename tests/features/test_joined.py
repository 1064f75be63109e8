"""Several networks side by side are the concatenation of each, and an ordinary transformer of ids."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import skops.io
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline

from featpipe import CachedFeatures, LayerScaler, RidgeEncoder
from featpipe.errors import AmbiguousFeatures, FeaturesNotCached, RequestError
from featpipe.features import JoinedFeatures, parts_of
from featpipe.testing import check_ids_estimator


@pytest.fixture
def nets(tmp_path, add_features, make_rows):
    """A cache of two networks with two layers each; the same names in both."""
    rows = {}
    for number, model in enumerate(("timm:one", "timm:two")):
        for order, layer in enumerate(("layer1", "layer2")):
            values = make_rows(24, (3, 2, 2) if order == 0 else (5,), seed=10 * number + order)
            add_features(
                tmp_path / "nets", values, model=model, layer=layer, provenance={"layer_order": order}
            )
            rows[model, layer] = values
    return tmp_path / "nets", rows


@pytest.fixture
def joined(nets):
    parts = [
        ("one", CachedFeatures(model="timm:one", layers=["layer2"])),
        ("two", CachedFeatures(model="timm:two", layers="layer*")),
    ]
    return JoinedFeatures(parts, cache=nets[0])


def test_a_join_is_the_concatenation_of_its_parts(joined, nets, ids):
    root, _ = nets
    blocks = joined.fit_transform(ids[[7, 3, 7]])
    assert blocks.names == ("one:layer2", "two:layer1", "two:layer2")
    parts = [clone(part).set_params(cache=root).fit_transform(ids[[7, 3, 7]]) for _, part in joined.parts]
    np.testing.assert_array_equal(blocks.to_matrix(), np.hstack(parts))
    assert blocks.shapes == tuple(joined.row_shapes_) == ((5,), (3, 2, 2), (5,))
    assert blocks.dims == tuple(joined.dims_)
    assert list(blocks.digests) == [spec.digest() for spec in joined.specs_]
    matrix = joined.set_params(output="matrix").fit_transform(ids[[7, 3, 7]])
    np.testing.assert_array_equal(matrix, blocks.to_matrix())
    names = joined.get_feature_names_out()
    assert (len(names), names[0], names[5]) == (22, "one:layer2_0", "two:layer1_0_0_0")


@pytest.mark.parametrize("output", ["blocks", "matrix"])
def test_keeps_the_contract_of_ids(joined, ids, output):
    check_ids_estimator(joined.set_params(output=output), ids, np.zeros((24, 2)))


def test_parameters_of_parts_go_by_their_names(joined):
    assert joined.get_params()["two__layers"] == "layer*"
    again = clone(joined).set_params(two__layers=["layer1"], cache="elsewhere", one__views=1)
    assert again.parts[1][1].layers == ["layer1"]
    assert (again.cache, again.parts[0][1].views) == ("elsewhere", 1)
    assert joined.parts[1][1].layers == "layer*"
    other = CachedFeatures(model="timm:other")
    assert clone(joined).set_params(two=other).parts[1] == ("two", other)
    with pytest.raises(ValueError, match="Invalid parameter 'three'"):
        joined.set_params(three__layers="x")


def test_fitting_leaves_the_parts_as_they_were(joined, ids):
    before = {name: value for name, value in joined.get_params().items() if "__" in name}
    joined.fit(ids)
    assert {name: value for name, value in joined.get_params().items() if "__" in name} == before
    assert not hasattr(joined.parts[0][1], "specs_")


def test_cache_and_stimuli_reach_all_parts_also_of_a_fitted_join(joined, nets, tmp_path, ids):
    root, rows = nets
    joined.fit(ids)
    root.rename(tmp_path / "moved")
    joined.set_params(cache=tmp_path / "moved", stimuli="tiny")
    np.testing.assert_array_equal(joined.transform(ids).block("two:layer1"), rows["timm:two", "layer1"])
    assert {(part.cache, part.stimuli) for _, part in parts_of(joined)} == {(tmp_path / "moved", "tiny")}
    with pytest.raises(FeaturesNotCached, match=r"Part 'one': .*stimulus set nowhere"):
        joined.set_params(stimuli="nowhere").fit(ids)


def test_parts_may_have_caches_of_their_own(joined, nets, tmp_path, add_features, make_rows, ids):
    rows = make_rows(24, (4,), seed=77)
    add_features(tmp_path / "other", rows, model="imported:mine", preprocessing=None)
    joined.set_params(cache=None, one__cache=nets[0], two=CachedFeatures(tmp_path / "other"))
    blocks = joined.fit_transform(ids)
    np.testing.assert_array_equal(blocks.block("two:layer1"), rows)
    assert blocks.names == ("one:layer2", "two:layer1")


def test_a_search_over_the_layers_of_one_part(joined, nets, ids):
    responses = nets[1]["timm:one", "layer1"].reshape(24, -1) @ np.random.default_rng(0).standard_normal(
        (12, 3)
    )
    pipeline = Pipeline(
        [("features", joined), ("scale", LayerScaler()), ("ridge", RidgeEncoder(alphas=[0.01, 1.0], cv=3))]
    )
    grid = {"features__one__layers": [["layer1"], ["layer2"]], "features__two__layers": [["layer2"]]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(ids, responses)
    assert search.best_params_["features__one__layers"] == ["layer1"]
    alone = cross_val_score(pipeline, ids, responses, cv=3)
    np.testing.assert_allclose(cross_val_score(pipeline, ids, responses, cv=3, n_jobs=2), alone, rtol=1e-6)


def test_travels_by_pickle_and_skops(joined, ids):
    expected = joined.fit(ids).transform(ids[:3]).to_matrix()
    for again in (
        pickle.loads(pickle.dumps(joined)),
        skops.io.loads(text := skops.io.dumps(joined), trusted=skops.io.get_untrusted_types(data=text)),
    ):
        np.testing.assert_array_equal(again.transform(ids[:3]).to_matrix(), expected)
        assert again.digest == joined.digest


def test_views_are_joined_too(nets, add_features, make_rows, joined, ids):
    root, _ = nets
    for number, (model, layer, shape) in enumerate(
        [("timm:one", "layer2", (5,)), ("timm:two", "layer1", (3, 2, 2)), ("timm:two", "layer2", (5,))]
    ):
        add_features(
            root, make_rows(24, shape, seed=50 + number), model=model, layer=layer, view=1,
            augmentation="crop:0.875:1",
        )  # fmt: skip
    blocks = joined.set_params(one__views=1, two__views=1).fit_transform(ids)[[2, 1]]
    assert [view.names for view in blocks.views] == [blocks.names]
    np.testing.assert_array_equal(blocks.views[0].block("two:layer2"), make_rows(24, (5,), seed=52)[[2, 1]])
    with pytest.raises(
        RequestError, match="as many views each, got features__one__views=0, features__two__views=1"
    ):
        joined.set_params(one__views=0).fit(ids)
    with pytest.raises(RequestError, match=r"no place for .* views .*features__output='blocks'"):
        joined.set_params(one__views=1, output="matrix").fit(ids)


def test_errors_say_which_part_and_what_to_set(joined, ids):
    with pytest.raises(FeaturesNotCached, match="Part 'two': No cached layer matches 'layer3'"):
        joined.set_params(two__layers=["layer3"]).fit(ids)
    with pytest.raises(AmbiguousFeatures, match=r"Part 'two': 2 layers are cached.*features__two__layers='"):
        joined.set_params(two__layers=None).fit(ids)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "parts must be a list of"),
        ([CachedFeatures()], "parts must be a list of"),
        ([("one", LayerScaler())], "parts must be a list of"),
        ([("one", CachedFeatures()), ("one", CachedFeatures())], "must differ, .* got .*'one', 'one'"),
        ([("a__b", CachedFeatures())], "neither '__' nor ':'"),
        ([("cache", CachedFeatures())], "be none of cache, mirror"),
    ],
)
def test_parts_that_mean_nothing(ids, parts, said):
    with pytest.raises(RequestError, match=said):
        JoinedFeatures(parts).fit(ids)


def test_parts_of_plain_features_are_themselves():
    plain = CachedFeatures()
    assert parts_of(plain) == [("", plain)]
