"""Estimators know the layers that they were fitted to, as blocks or side by side in a matrix."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone

from featpipe import BandedRidge, BestLayer, LayerBlocks, LinearHead, PerROI, RidgeEncoder, StackedLayers
from featpipe.errors import RequestError

RIDGE = RidgeEncoder(cv="gcv")
OF_LAYERS = [BandedRidge(cv=3), StackedLayers(RIDGE, cv=3), BestLayer(RIDGE, cv=3)]
OF_A_MATRIX = [RIDGE, PerROI(RIDGE, {"one": [0, 1]}), LinearHead(max_epochs=2, device="cpu")]


def blocks_of(**layers):
    values = list(layers.values())
    ids = np.array([f"s{row:02d}" for row in range(len(values[0]))])
    return LayerBlocks(
        ids,
        names=list(layers),
        shapes=[layer.shape[1:] for layer in values],
        dims=[("channel",)] * len(values),
        digests=list(layers),
        read=lambda layer, wanted: values[layer][np.searchsorted(ids, wanted)],
    )


@pytest.fixture
def data(rng):
    layers = {"one": rng.standard_normal((60, 6)), "two": rng.standard_normal((60, 6))}
    return {name: values.astype(np.float32) for name, values in layers.items()}, rng.standard_normal((60, 4))


@pytest.mark.parametrize("estimator", OF_LAYERS + OF_A_MATRIX, ids=lambda one: type(one).__name__)
def test_layers_in_another_order_are_refused(data, estimator):
    layers, Y = data
    fitted = clone(estimator).fit(blocks_of(**layers), Y)
    with pytest.raises(RequestError, match="was fitted to"):
        fitted.predict(blocks_of(two=layers["two"], one=layers["one"]))


@pytest.mark.parametrize("estimator", OF_LAYERS + OF_A_MATRIX, ids=lambda one: type(one).__name__)
def test_a_matrix_of_the_fitted_layers_is_predicted_from_alike(data, estimator):
    blocks = blocks_of(**data[0])
    fitted = clone(estimator).fit(blocks, data[1])
    np.testing.assert_allclose(fitted.predict(blocks.to_matrix()), fitted.predict(blocks), atol=1e-6)
    with pytest.raises(ValueError, match="expecting 12 features"):
        fitted.predict(blocks.to_matrix()[:, :6])


@pytest.mark.parametrize("estimator", OF_A_MATRIX, ids=lambda one: type(one).__name__)
def test_what_was_fitted_to_a_matrix_has_no_layers_to_compare(data, estimator):
    blocks = blocks_of(**data[0])
    fitted = clone(estimator).fit(blocks, data[1]).fit(blocks.to_matrix(), data[1])
    expected = fitted.predict(blocks.to_matrix())
    np.testing.assert_allclose(fitted.predict(blocks), expected, atol=1e-6)
