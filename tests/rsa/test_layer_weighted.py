"""`LayerWeightedRSA`: a weighted mean of the RDMs of layers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.base import clone

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.rsa import RDMs, feature_rdms, rdm_rho
from featpipe.rsa.reweighted._layer_weighted import LayerWeightedRSA
from featpipe.rsa.reweighted._target import pair_targets
from featpipe.rsa.statistics._held import STATISTICS


@pytest.fixture(autouse=True)
def _nothing_held():
    STATISTICS.clear()
    yield
    STATISTICS.clear()


def blocks_of(n_stimuli, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.array([f"a/{k:02d}" for k in range(n_stimuli)])
    layers = [
        rng.standard_normal((n_stimuli, *shape)).astype(np.float32) for shape in [(4, 3, 3), (6, 2, 2), (5,)]
    ]
    return LayerBlocks(
        ids,
        names=["one", "two", "three"],
        shapes=[layer.shape[1:] for layer in layers],
        dims=[("channel", "height", "width")[: layer.ndim - 1] for layer in layers],
        digests=[f"{seed}{k}" for k in range(3)],
        read=lambda layer, asked: layers[layer][np.searchsorted(ids, asked)],
    )


def mixed(blocks, weights, noise=0.0, seed=0):
    upper = np.tensordot(weights, feature_rdms(blocks).upper(), 1)
    rng = np.random.default_rng(seed)
    bumps = noise * upper.std() * rng.standard_normal((3, len(upper)))
    return RDMs.from_upper(upper + bumps, blocks.ids, targets=["IT"] * 3)


def test_planted_layer_weights_are_recovered():
    blocks = blocks_of(25)
    model = LayerWeightedRSA(normalisation="zscore", alphas=1e-4).fit(blocks, mixed(blocks, [0.0, 1.0, 3.0]))
    np.testing.assert_allclose(model.coef_ / model.coef_[2], [0, 1 / 3, 1], atol=0.01)
    new = blocks_of(15, seed=3)
    assert rdm_rho(mixed(new, [0.0, 1.0, 3.0]), model.predict(new)).min() > 0.99


def test_weights_equal_nnls_of_standardised_layers():
    blocks = blocks_of(14)
    y = mixed(blocks, [1.0, -2.0, 1.0], noise=0.5)
    model = LayerWeightedRSA(normalisation="zscore", alphas=0.3, floor=0).fit(blocks, y)
    Z = feature_rdms(blocks).upper().T
    Z = Z - Z.mean(axis=0)
    deviation = Z.std(axis=0)
    target = np.append(pair_targets(y, {"IT": 1.0}, "zscore"), np.zeros(3))
    weights, _ = nnls(np.vstack([Z / deviation / np.sqrt(3), np.sqrt(0.3) * np.eye(3)]), target)
    np.testing.assert_allclose(model.coef_, weights / deviation / np.sqrt(3), rtol=1e-3, atol=1e-4)
    assert model.coef_[1] == 0


def test_a_negative_weight_needs_signed():
    blocks = blocks_of(20)
    y = mixed(blocks, [1.0, -2.0, 1.0])
    assert LayerWeightedRSA(repeats=1).fit(blocks, y).coef_.min() == 0
    signed = clone(LayerWeightedRSA(signed=True, repeats=1)).fit(blocks, y)
    assert signed.coef_[1] < 0
    assert signed.feature_names_ == ["one", "two", "three"]


def test_noise_predicts_nothing():
    blocks, new = blocks_of(30), blocks_of(30, seed=8)
    noise = np.random.default_rng(0).standard_normal((2, 435))
    model = LayerWeightedRSA(repeats=1).fit(blocks, RDMs.from_upper(noise[:1], blocks.ids))
    assert abs(rdm_rho(RDMs.from_upper(noise[1:], new.ids), model.predict(new))[0]) < 0.15


def test_parameters_are_those_of_the_baseline():
    assert set(LayerWeightedRSA().get_params()) == {
        "signed",
        "form",
        "layers",
        "normalisation",
        "alphas",
        "cv",
        "repeats",
        "train_on",
        "select_on",
        "floor",
        "random_state",
    }
    with pytest.raises(RequestError, match="form is 'cosine'"):
        LayerWeightedRSA(form="cosine").fit(blocks_of(5), mixed(blocks_of(5), [1, 1, 1]))
