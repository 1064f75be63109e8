"""`FeatureRDM` predicts the RDM of fixed features, learns nothing, and is at home in scikit-learn."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.rsa._distances import rdm
from featpipe.rsa._feature_rdm import FeatureRDM
from featpipe.rsa._rdms import RDMs

IDS = np.array([f"92/{row:02d}" for row in range(12)] + [f"118/{row:02d}" for row in range(8)])


class Rows:
    """Reads layers that are in memory; a class, so that blocks can be pickled."""

    def __init__(self, layers):
        self.layers = layers

    def __call__(self, layer, ids):
        return self.layers[layer][[IDS.tolist().index(i) for i in ids]]


@pytest.fixture
def layers(rng):
    return [rng.standard_normal((20, width)).astype(np.float32) for width in (30, 200)]


@pytest.fixture
def blocks(layers):
    return LayerBlocks(
        IDS,
        names=["conv1", "fc"],
        shapes=[(30,), (200,)],
        dims=[("channel",)] * 2,
        digests=["1", "2"],
        read=Rows(layers),
    )


def _rho(estimator, X, y):
    found = estimator.predict(X).upper()[0]
    measured = y.upper()[0]
    known = ~np.isnan(measured)
    return np.corrcoef(found[known], measured[known])[0, 1]


def test_concatenated_layers_are_the_baseline_of_the_challenge(blocks, layers):
    found = FeatureRDM().fit(blocks).predict(blocks)
    assert (found.n_rdms, found.ids.tolist()) == (1, IDS.tolist())
    np.testing.assert_allclose(found.values[0], 1 - np.corrcoef(np.hstack(layers)), atol=1e-6)


def test_a_matrix_is_one_layer(layers):
    found = FeatureRDM("euclidean").fit(layers[0]).predict(layers[0])
    assert found == rdm(layers[0], "euclidean")


@pytest.mark.parametrize("layers_wanted", ["fc", ["fc"], ["f*"]])
def test_layers_are_chosen_by_label(blocks, layers, layers_wanted):
    found = FeatureRDM(layers=layers_wanted).fit(blocks)
    assert found.layers_ == ("fc",)
    np.testing.assert_allclose(found.predict(blocks).values, rdm(layers[1]).values, atol=1e-6)


def test_mean_weighs_layers_alike_whatever_their_scale(blocks, layers):
    found = FeatureRDM("sqeuclidean", combine="mean").fit(blocks).predict(blocks)
    layers[1] *= 50
    scaled = FeatureRDM("sqeuclidean", combine="mean").fit(blocks).predict(blocks)
    np.testing.assert_allclose(scaled.values, found.values, atol=1e-5)
    for _, part in found.split_sets():
        assert part.upper().mean() == pytest.approx(0, abs=1e-6)
    within = [rdm(layer[:12], "sqeuclidean").zscore().upper()[0] for layer in layers]
    np.testing.assert_allclose(found[:12].upper()[0], np.mean(within, axis=0), atol=1e-5)
    assert not np.isnan(found.upper()).any()  # pairs across sets as well


def test_nothing_is_learned(blocks, rng):
    one = FeatureRDM().fit(blocks[:5], None)
    other = FeatureRDM().fit(blocks[8:], RDMs(np.zeros((2, 12, 12)), IDS[8:]))
    assert one.predict(blocks) == other.predict(blocks)
    assert one.training_ids_.shape == (0,)


def test_it_clones_and_pickles(blocks):
    fitted = FeatureRDM("cosine", layers=["fc"]).fit(blocks)
    assert clone(fitted).get_params() == fitted.get_params()
    assert pickle.loads(pickle.dumps(fitted)).predict(blocks) == fitted.predict(blocks)
    assert FeatureRDM("cosine").__sklearn_tags__().target_tags.required is False
    with pytest.raises(NotFittedError, match="not fitted"):
        FeatureRDM().predict(blocks)


def test_a_search_finds_the_layer_and_metric_that_made_the_rdm(blocks):
    y = FeatureRDM("sqeuclidean", layers="fc").fit(blocks).predict(blocks)
    pipeline = make_pipeline(FunctionTransformer(), FeatureRDM())
    grid = {"featurerdm__metric": ["cosine", "sqeuclidean"], "featurerdm__layers": [None, "conv1", "fc"]}
    cv = KFold(3, shuffle=True, random_state=0)
    search = GridSearchCV(pipeline, grid, scoring=_rho, cv=cv, error_score="raise").fit(blocks, y)
    assert search.best_params_ == {"featurerdm__metric": "sqeuclidean", "featurerdm__layers": "fc"}
    assert search.best_score_ == pytest.approx(1)


def test_a_stimulus_with_equal_features_is_unrelated_to_all(blocks, layers):
    for layer in layers:
        layer[3] = 1
    with pytest.warns(UserWarning, match="1 of 20 stimuli have equal features"):
        found = FeatureRDM().fit(blocks).predict(blocks)
    np.testing.assert_array_equal(np.delete(found.values[0, 3], 3), 1)
    assert not np.isnan(found.values).any()


def test_a_stimulus_drawn_twice_has_no_distance_to_itself(blocks):
    found = FeatureRDM().fit(blocks).predict(blocks[[0, 1, 0, 5]])
    assert np.isnan(found.values[0, 0, 2])
    assert np.isnan(found.upper()).sum() == 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"metric": "mahalanobis"}, "metric is 'mahalanobis'.*correlation, cosine"),
        ({"metric": "manhattan"}, "metric is 'manhattan'"),
        ({"combine": "sum"}, "combine is 'sum'"),
        ({"layers": ["conv9"]}, "no layer 'conv9' here, only conv1, fc"),
    ],
)
def test_bad_parameters_are_named(blocks, arguments, match):
    with pytest.raises(RequestError, match=match):
        FeatureRDM(**arguments).fit(blocks)


def test_bad_input_is_named(blocks, layers):
    with pytest.raises(RequestError, match="X is a matrix"):
        FeatureRDM(layers="fc").fit(layers[0])
    with pytest.raises(RequestError, match="LayerBlocks or"):
        FeatureRDM().fit(layers[0][0])
    fitted = FeatureRDM().fit(layers[0])
    with pytest.raises(RequestError, match=r"X has 200 features, but .*30 features of a matrix"):
        fitted.predict(layers[1])
    with pytest.raises(RequestError, match="no pairs among 1 stimuli"):
        fitted.predict(layers[0][:1])
