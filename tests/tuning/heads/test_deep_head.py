"""A stack of trunks is trained as each network would be by itself, layer for layer torch's own."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from featpipe.errors import RequestError
from featpipe.tuning import DEEP, DeepHead, Training

ROIS = {"lh.V1v": [0, 1, 2], "rh.OFA": np.array([2, 5]), "lh.PPA": [3]}  # ragged, overlapping; 4 in none
SMALL = {"batch_size": 16, "device": "cpu"}
EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": "a stimulus of weight 2 is in one batch, two copies in two",
    "check_regressor_multioutput": "predictions are float32, as the weights are; the check wants float64",
}


@parametrize_with_checks(
    [DeepHead(learning_rate=0.01, max_epochs=2, n_blocks=2, **SMALL)],
    expected_failed_checks=lambda _: EXPECTED,
)
def test_scikit_learn_is_at_home(estimator, check):
    check(estimator)


def _head(rois=ROIS, **given):
    return DeepHead(rois, **{"learning_rate": 0.01, "patience": 3, "max_epochs": 15, **SMALL, **given})


class _Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def _naive(n_targets, *, residual):
    """The report's network of torch's own layers, drawn in order from one generator."""
    widths = [5, 6, 6, 8, 8] if residual else [5, 6, 8, 10, 12]  # times 1.25, rounded
    blocks = []
    for number, (n_in, n_out) in enumerate(pairwise(widths)):
        block = nn.Sequential(nn.Linear(n_in, n_out, bias=False), nn.BatchNorm1d(n_out), nn.LeakyReLU())
        blocks.append(_Residual(block) if residual and number % 2 else block)
    net = nn.Sequential(*blocks, nn.Linear(widths[-1], n_targets))
    generator = torch.Generator().manual_seed(0)
    for layer in (part for part in net.modules() if isinstance(part, nn.Linear)):
        bound = layer.in_features**-0.5
        for values in (layer.weight, *([] if layer.bias is None else [layer.bias])):
            values.data.uniform_(-bound, bound, generator=generator)
    return net


@pytest.mark.parametrize("residual", [False, True])
def test_equals_one_naive_network_per_roi(problem, naive_training, residual):
    X, Y = problem
    Y = np.where(np.random.default_rng(1).random(Y.shape) < 0.2, np.nan, Y)
    head = _head(residual=residual, dropout=0.0, init="uniform").fit(X, Y)
    rows = np.setdiff1d(np.arange(len(X)), head.validation_rows_)
    scaled = (Y - head.response_mean_) / head.response_scale_
    training = Training(0.01, patience=3, max_epochs=15, **SMALL)
    for name, targets in ROIS.items():
        net = _naive(len(targets), residual=residual)
        losses, best = naive_training(net, X, scaled[:, targets], training, rows, head.validation_rows_)
        found = head.history_["validation_loss"][:, head.roi_names_.index(name)]
        np.testing.assert_allclose(found[np.isfinite(found)], losses, rtol=2e-3)
        assert head.best_epoch_[name] == best
        if name == "lh.PPA":
            expected = (
                net(torch.as_tensor(X)).detach().numpy() * head.response_scale_[3] + head.response_mean_[3]
            )
            np.testing.assert_allclose(head.predict(X)[:, [3]], expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_roi_does_not_depend_on_the_others(problem, dropout):
    X, Y = problem
    together = _head(dropout=dropout).fit(X, Y)
    alone = _head("all", dropout=dropout).fit(X, Y[:, [3]])
    place = together.roi_names_.index("lh.PPA")
    found = together.history_["validation_loss"][:, place]
    np.testing.assert_allclose(found[np.isfinite(found)], alone.history_["validation_loss"][:, 0], rtol=2e-3)
    assert together.best_epoch_["lh.PPA"] == alone.best_epoch_["all"]
    assert len(set(together.best_epoch_.values())) > 1


def test_dropout_acts_in_training_alone(problem):
    X, Y = problem
    fixed = {"max_epochs": 3, "patience": None}
    without, dropped = _head(dropout=0.0, **fixed).fit(X, Y), _head(dropout=0.5, **fixed).fit(X, Y)
    assert not np.allclose(without.history_["train_loss"], dropped.history_["train_loss"])
    np.testing.assert_array_equal(dropped.predict(X), dropped.predict(X))
    np.testing.assert_allclose(dropped.predict(X)[:9], dropped.predict(X[:9]), rtol=1e-4, atol=1e-5)


def test_an_untrained_network_predicts_the_mean(problem):
    X, Y = problem
    head = _head("all", learning_rate=1e-12, max_epochs=1).fit(X, Y)
    np.testing.assert_allclose(head.predict(X), np.broadcast_to(head.response_mean_, Y.shape), rtol=1e-5)
    assert head.history_["train_loss"][0, 0] == pytest.approx(1.0, rel=1e-3)


def test_a_shared_trunk_stops_once_and_learns_from_all(problem):
    X, Y = problem
    head = _head(share="all").fit(X, Y)
    assert head.weights_["blocks.0.weight"].shape == (1, 6, 5)
    assert len(set(head.best_epoch_.values())) == 1
    mean = head.history_["validation_loss"].mean(axis=1)
    assert head.best_epoch_["other"] == mean.argmin() + 1
    other = _head(share="all").fit(X, np.where(np.arange(6) == 3, Y[::-1], Y))
    assert not np.allclose(head.predict(X)[:, 0], other.predict(X)[:, 0])


def test_a_shared_trunk_helps_a_subject_with_few_stimuli(rng):
    """One hidden unit drives two subjects; the second saw a fifth of the images."""
    X = rng.standard_normal((400, 20)).astype(np.float32)
    hidden = np.abs(X @ rng.standard_normal((20, 2)))
    Y = hidden @ rng.standard_normal((2, 12)) + 0.3 * rng.standard_normal((400, 12))
    seen = Y[:300].copy()
    seen[60:, 6:] = np.nan
    rois = {"subj01.lh.V1v": np.arange(6), "subj02.lh.V1v": np.arange(6, 12)}
    given = {"max_epochs": 30, "patience": 15, "decay_every": 50}
    scores = {
        share: _head(rois, share=share, **given).fit(X[:300], seen).score(X[300:], Y[300:])
        for share in ("roi", "all")
    }
    assert scores["all"] > scores["roi"]


def test_learns_what_no_line_can(rng):
    X = rng.standard_normal((500, 4)).astype(np.float32)
    Y = np.abs(X[:, :2]) + 0.1 * rng.standard_normal((500, 2))
    head = _head("all", max_epochs=80, patience=20, decay_every=50, n_blocks=2, widening=8.0, residual=False)
    assert head.fit(X[:400], Y[:400]).score(X[400:], Y[400:]) > 0.7


def test_one_seed_one_result(problem):
    first, second, other = (_head(seed=seed).fit(*problem).predict(problem[0]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("share", ["roi", "all"])
def test_goes_through_pickle_and_skops(problem, share):
    from skops.io import dumps, get_untrusted_types, loads

    X, Y = problem
    single = share == "all"
    head = _head("all" if single else ROIS, share=share, max_epochs=2).fit(X, Y[:, 0] if single else Y)
    text = dumps(head)
    foreign = get_untrusted_types(data=text)
    assert foreign == ["featpipe.tuning.heads._deep_head.DeepHead"]
    for again in (pickle.loads(pickle.dumps(head)), loads(text, trusted=foreign)):
        np.testing.assert_array_equal(again.predict(X), head.predict(X))
    assert not any(torch.is_tensor(value) for value in vars(head).values())
    again.set_params(n_blocks=1)  # what was fitted does not follow parameters
    np.testing.assert_array_equal(again.predict(X), head.predict(X))


def test_a_search_over_rates(problem):
    search = GridSearchCV(_head("all", **{**DEEP, "max_epochs": 20}), {"learning_rate": [1e-7, 0.02]}, cv=3)
    assert search.fit(*problem).best_params_ == {"learning_rate": 0.02}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": "subject"}, "share must be one of 'roi', 'all', got 'subject'"),
        ({"init": "ones"}, "init must be one of 'zeros', 'uniform', got 'ones'"),
        ({"n_blocks": -1}, "n_blocks must be an int >= 0, got -1"),
        ({"widening": 0}, "widening must be a number > 0, got 0"),
        ({"dropout": 1.0}, "dropout must be a number >= 0 and < 1, got 1.0"),
        ({"batch_size": 2}, "batch_size is 2 and 63 stimuli are fitted. Set batch_size >= 3"),
    ],
)
def test_wrong_parameters_say_what_is_right(problem, given, message):
    with pytest.raises(RequestError, match=message):
        _head(**given).fit(*problem)
