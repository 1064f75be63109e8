"""`SiameseTuner`: its loss written out, a hidden network that it finds, noise that it does not, and what it chooses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone

from featpipe import SiameseTuner
from featpipe.errors import ModelError, RequestError
from featpipe.models import ModelRequest, load
from featpipe.rsa import RDMs, rdm_rho
from featpipe.stimuli import StimulusSet
from featpipe.tuning.images import Images
from featpipe.tuning.network import Body, taps_of
from featpipe.tuning.rdms._rdm_tuner import correlation_distances
from featpipe.tuning.rdms._siamese_tuner import PairLoss

N = 60


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """60 images of smooth noise in two stimulus sets."""
    folder = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(3)
    for number in range(N):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"i{number:02d}.png")
    return StimulusSet.from_source(folder).rename(lambda name: f"{'ab'[int(name[1:]) % 2]}/{name}")


@pytest.fixture
def tuner(tiny_backbone, scenes):
    return SiameseTuner(
        tiny_backbone,
        "head",
        loss="correlation",
        sampling="stimuli",
        stimuli=scenes,
        trust=True,
        optimiser="adam",
        learning_rate=3e-3,
        max_epochs=30,
        validation_fraction=0.2,
        device="cpu",
    )


@pytest.fixture
def hidden(tuner, tmp_path):
    """RDMs of three subjects by a copy of the network with another second convolution, and little noise."""
    other = clone(tuner).set_params(max_epochs=0).fit(tuner.stimuli.ids, noise_rdms(tuner.stimuli.ids, 0))
    rng = np.random.default_rng(5)
    weights = other.tuned_.arrays["head.0.weight"]
    other.tuned_.arrays["head.0.weight"] = weights + 0.15 * rng.standard_normal(weights.shape).astype("f4")
    other.tuned_._checked = lambda backbone, name: backbone
    values = other.predict(tuner.stimuli.ids).values[0]
    return RDMs(
        [np.abs(values + 0.02 * symmetric(rng)) for _ in range(3)],
        tuner.stimuli.ids,
        subjects=["1", "2", "3"],
    )


def symmetric(rng):
    upper = np.triu(rng.standard_normal((N, N)), 1)
    return upper + upper.T


def noise_rdms(ids, seed):
    rng = np.random.default_rng(seed)
    return RDMs([1 + 0.2 * symmetric(rng) for _ in range(3)], ids)


def halves(ids):
    rows = np.arange(len(ids))
    return rows[rows % 4 < 2], rows[rows % 4 >= 2]


@pytest.mark.parametrize("loss", ["squared", "correlation"])
def test_loss_of_pairs_is_that_of_a_loop(tuner, hidden, loss):
    backbone = load(ModelRequest(tuner.model, trust=True))
    ids = np.asarray(tuner.stimuli.ids)
    images = Images(tuner.stimuli, ids, backbone.card.preprocessing, device=torch.device("cpu"))
    body = Body(backbone, taps_of(["head"], backbone), images)
    targets = hidden.values[0].copy()
    module = torch.nn.Module()
    module.body = body
    pairs = torch.tensor([[0, 2], [2, 4], [4, 0], [1, 3], [3, 5], [1, 5], [7, 9]])
    total, weight = PairLoss(module, targets, hidden.sets, loss)(pairs, None)
    features = body(torch.arange(10))[0].flatten(1).detach().double().numpy()
    predicted = np.array([1 - np.corrcoef(features[i], features[j])[0, 1] for i, j in pairs.tolist()])
    measured = np.array([targets[i, j] for i, j in pairs.tolist()])
    if loss == "squared":
        expected = np.mean((predicted - measured) ** 2)
    else:  # sets a: 3 pairs, b: 4
        expected = 1 - np.mean(
            [np.corrcoef(predicted[s], measured[s])[0, 1] for s in (slice(0, 3), slice(3, 7))]
        )
    assert (total / weight).item() == pytest.approx(expected, abs=1e-5)


def test_a_hidden_network_is_found(tuner, hidden):
    ids = np.asarray(hidden.ids)
    train, test = halves(ids)
    untuned = clone(tuner).set_params(max_epochs=0).fit(ids[train], hidden[train])
    tuned = clone(tuner).fit(ids[train], hidden[train])
    assert tuned.score(ids[test], hidden[test]) > untuned.score(ids[test], hidden[test]) + 0.05
    assert tuned.best_epoch_ > 0
    assert untuned.weights_digest_ != tuned.weights_digest_


def test_noise_is_not_predicted(tuner):
    scores = []
    for seed in range(4):
        noise = noise_rdms(tuner.stimuli.ids, seed)
        ids = noise.ids
        train, test = halves(ids)
        scores.append(
            clone(tuner).set_params(max_epochs=8).fit(ids[train], noise[train]).score(ids[test], noise[test])
        )
    n_pairs = 4 * 2 * 105 * 3  # seeds, sets, pairs of 15 stimuli, subjects
    assert abs(np.mean(scores)) < 4 / np.sqrt(n_pairs)


def test_no_held_out_dissimilarity_changes_the_weights(tuner, hidden):
    """The epochs done are fixed here; held-out stimuli say only which of them is kept."""
    tuner.set_params(max_epochs=2, patience=None)
    first = clone(tuner).fit(hidden.ids, hidden)
    held = np.isin(hidden.ids, first.validation_ids_)
    values = hidden.values.copy()
    values[:, held[:, None] | held] += 0.3 * np.abs(symmetric(np.random.default_rng(1)))[held[:, None] | held]
    second = clone(tuner).fit(hidden.ids, RDMs(values, hidden.ids))
    assert first.history_["train_loss"][1:].tolist() == second.history_["train_loss"][1:].tolist()
    assert first.history_["validation_loss"].tolist() != second.history_["validation_loss"].tolist()


def test_the_layer_that_is_best_for_held_out_stimuli_predicts(tuner, hidden):
    tuner.set_params(read_layers=["stem", "head"], max_epochs=3).fit(hidden.ids, hidden)
    assert tuner.layer_ == "head"
    assert tuner.transform(hidden.ids[:3]).shape == (3, 4 * 7 * 7)


def test_epochs_may_be_those_that_are_best_on_average_over_folds(tuner, hidden):
    tuner.set_params(validation_folds=3, max_epochs=4).fit(hidden.ids, hidden)
    assert tuner.fold_losses_.shape == (3, 5)
    assert tuner.n_epochs_ == tuner.best_epoch_ == int(np.argmin(tuner.fold_losses_.mean(axis=0)))
    assert set(tuner.validation_ids_) == set(hidden.ids)


def test_one_target_may_choose_the_epoch_of_several(tuner, hidden):
    """The training sees both targets either way; what is watched is the score of the one."""
    other = noise_rdms(hidden.ids, 3)
    values = np.concatenate([hidden.values, other.values])
    both = RDMs(values, hidden.ids, subjects=[*"123123"], targets=["EVC"] * 3 + ["IT"] * 3)
    tuner.set_params(max_epochs=2, patience=None, normalise=None)
    for targets in (["EVC"], ["IT"], None):
        fitted = clone(tuner).set_params(validate_on=targets).fit(both.ids, both)
        held = np.isin(both.ids, fitted.validation_ids_)
        watched = both[held] if targets is None else both[held].select(targets=targets)
        scores = fitted.history_["validation_loss"]
        last = -np.nanmean(rdm_rho(watched, fitted.predict(both.ids[held])))
        assert scores[fitted.best_epoch_] == pytest.approx(last, abs=1e-6)


def test_squared_loss_on_pairs_learns_too(tuner, hidden):
    tuner.set_params(loss="squared", sampling="pairs", normalise=None, max_epochs=3, batch_size=40)
    tuner.fit(hidden.ids, hidden)
    assert tuner.history_["train_loss"][3] < tuner.history_["train_loss"][1]


def test_images_may_be_larger_when_it_predicts(tuner, hidden):
    tuner.set_params(max_epochs=0).fit(hidden.ids, hidden)
    assert tuner.transform(hidden.ids[:2]).shape[1] == 4 * 7 * 7
    assert tuner.set_params(predict_size=48).transform(hidden.ids[:2]).shape[1] == 4 * 11 * 11


def test_fc6_slides_over_a_larger_map(scenes):
    at = {"weights": "random:0", "stimuli": scenes, "max_epochs": 0, "device": "cpu", "image_size": 64}
    ids = np.asarray(scenes.ids[:12])
    larger = {"predict_size": 260, "fully_convolutional": True, "validation_fraction": 0}
    tuner = SiameseTuner("torchvision:alexnet", "classifier.1", **at, **larger)
    tuner.fit(ids, noise_rdms(scenes.ids, 0).take(ids))
    assert tuner.transform(ids[:2]).shape[1] == 4 * 4096  # a map of 7×7 has 2×2 windows of 6×6


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"loss": "l3"}, RequestError, "loss must be one of 'squared', 'correlation', got 'l3'"),
        ({"sampling": "images"}, RequestError, "sampling must be one of"),
        ({"train_on": "V9"}, RequestError, "no target 'V9'"),
        ({"validation_fraction": 0.05}, RequestError, "Raise validation_fraction"),
        ({"fully_convolutional": True}, ModelError, "no fully connected layers"),
    ],
)
def test_what_cannot_be_is_said(tuner, hidden, changed, error, match):
    with pytest.raises(error, match=match):
        tuner.set_params(max_epochs=0, **changed).fit(hidden.ids, hidden).predict(hidden.ids)


def test_responses_are_no_rdms(tuner):
    with pytest.raises(RequestError, match="is fitted to RDMs, and y is a ndarray"):
        tuner.fit(tuner.stimuli.ids, np.ones((N, 3)))


def test_rdms_of_other_ids_are_refused(tuner, hidden):
    with pytest.raises(RequestError, match=r"y\.take\(ids\)"):
        tuner.fit(hidden.ids[::-1], hidden)


def test_layers_for_others_do_not_change_the_prediction(tuner, hidden):
    fitted = tuner.set_params(max_epochs=1).fit(hidden.ids, hidden)
    predicted = fitted.predict(hidden.ids)
    assert fitted.set_params(transform_layers=["stem:mean"]).predict(hidden.ids) == predicted
    assert fitted.transform(hidden.ids[:2]).shape == (2, 8)


def test_constant_features_correlate_with_nothing(rng):
    features = rng.standard_normal((5, 7)).astype(np.float32)
    features[2] = 1.5
    distances, others = correlation_distances(features), [0, 1, 3, 4]
    assert distances[2, others].tolist() == [1.0] * 4
    assert np.allclose(distances[np.ix_(others, others)], 1 - np.corrcoef(features[others]), atol=1e-6)
