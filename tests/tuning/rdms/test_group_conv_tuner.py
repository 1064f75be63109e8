"""The head is trained alone, then with the network; what is learned holds for stimuli that were not seen."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone

from featpipe.datasets import load_dataset
from featpipe.errors import RequestError
from featpipe.models import load
from featpipe.rsa import RDMs, interval_of_rho, rdm_rho
from featpipe.stimuli import StimulusSet
from featpipe.tuning._tuned import network_request
from featpipe.tuning.rdms._group_conv_tuner import PairError, SiameseGroupConvTuner
from featpipe.tuning.rdms._interleaved import InterleavedHead

HEAD = {"channels": 8, "groups": 4}


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def many_stimuli(tmp_path_factory):
    """100 images of two sets, smooth noise."""
    folder, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(1)
    for number in range(100):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        path = folder / ("a" if number < 50 else "b") / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        coarse.resize((48, 40), Image.Resampling.BICUBIC).save(path)
    return StimulusSet.from_source(folder)


@pytest.fixture
def tuner(tiny_backbone, many_stimuli):
    def make(**given):
        training = {"learning_rate": 0.01, "max_epochs": 4, "frozen_epochs": 2, "batch_size": 16}
        fixed = {"trust": True, "device": "cpu", "stimuli": many_stimuli, "sampling": "stimuli"}
        fixed |= {"model": tiny_backbone, "layer": "head.0"}
        return SiameseGroupConvTuner(**HEAD | fixed | training | given)

    return make


@pytest.fixture
def ids(many_stimuli):
    return np.array(many_stimuli.ids)


def _planted(tuner, ids):
    """Dissimilarities of a hidden head over a network whose weights were moved a little."""
    body = tuner._body(_backbone(tuner), ids, ["head.0"])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in body.network.parameters():
            p += 0.3 * p.std() * torch.randn(p.shape, generator=generator)
        maps = body(torch.arange(len(ids)))[0]
        hidden = InterleavedHead(body.shapes[0], **HEAD, generator=generator)
        values = hidden.all_pairs(maps / maps.std()).double().numpy()
    noise = np.random.default_rng(0).standard_normal((3, *values.shape)) * values.std() * 0.3
    return RDMs(5 + values + noise + noise.transpose(0, 2, 1), ids)


def _backbone(tuner):
    return load(network_request(tuner))


def _noise(ids, n=3):
    values = np.random.default_rng(3).random((n, len(ids), len(ids)))
    return RDMs(values + values.transpose(0, 2, 1), ids)


def _seen_and_new(ids):
    new = np.arange(len(ids)) % 4 == 0
    return np.flatnonzero(~new), np.flatnonzero(new)


def test_a_planted_change_is_learned_for_new_stimuli(tuner, ids):
    y = _planted(tuner(), ids)
    seen, new = _seen_and_new(ids)
    trained = tuner(max_epochs=40, frozen_epochs=20, validation_fraction=0.2).fit(ids[seen], y[seen])
    untuned = tuner(max_epochs=0).fit(ids[seen], y[seen])
    correlation = RDMs(1 - np.corrcoef(untuned.transform(ids[new])), ids[new])
    before = max(untuned.score(ids[new], y[new]), rdm_rho(y[new], correlation).mean())
    assert trained.score(ids[new], y[new]) > before + 0.2
    assert trained.best_epoch_ > 0


def test_noise_is_not(tuner, ids):
    y = _noise(ids)
    seen, new = _seen_and_new(ids)
    trained = tuner(max_epochs=10, frozen_epochs=5).fit(ids[seen], y[seen])
    _, low, high = interval_of_rho(y[new], trained.predict(ids[new]), stimuli=True)[0]
    assert low < 0 < high


@pytest.mark.parametrize("sampling", ["pairs", "stimuli"])
def test_the_network_stays_until_the_head_has_been_trained(tuner, ids, sampling):
    weights, heads = [], []

    def note(epoch):
        weights.append(epoch.module.body.network.head[0].weight.detach().clone())
        heads.append(epoch.module.head.linear.weight.detach().clone())

    tuner(callback=note, sampling=sampling, patience=None).fit(ids[:40], _noise(ids)[:40])
    assert [torch.equal(weights[0], now) for now in weights] == [True, True, True, False, False]
    assert [torch.equal(heads[0], now) for now in heads] == [True, False, False, False, False]


def test_the_network_learns_at_its_share_of_the_rate(tuner, ids):
    rates = []
    fitted = tuner(callback=lambda epoch: rates.append([g["lr"] for g in epoch.optimiser.param_groups]))
    fitted.set_params(body_rate=0.02).fit(ids[:40], _noise(ids)[:40])
    np.testing.assert_allclose(rates[-1], [0.01, 0.0002])


def test_the_rate_is_tested_on_the_head_alone(tuner, ids):
    y = _planted(tuner(), ids)
    fitted = tuner(learning_rate="auto", body_rate=0.1, max_epochs=3).fit(ids, y)
    other = tuner(learning_rate="auto", body_rate=0.9, max_epochs=3).fit(ids, y)
    assert fitted.learning_rate_ == other.learning_rate_
    np.testing.assert_array_equal(fitted.range_test_["loss"], other.range_test_["loss"])
    assert fitted.history_["learning_rate"][1] == pytest.approx(fitted.learning_rate_)


def test_while_it_is_frozen_the_network_sees_each_image_once(tuner, ids, monkeypatch):
    seen = []
    fitted = tuner(max_epochs=2, sampling="pairs", batch_size=30)
    y = _noise(ids)[:40]
    body = fitted._body(_backbone(fitted), ids[:40], ["head.0"])
    plan = fitted._plan(body, ids[:40], y, np.arange(40), None)
    body.requires_grad_(False)
    forward = body.forward
    monkeypatch.setattr(body, "forward", lambda rows, *g: seen.extend(rows.tolist()) or forward(rows, *g))
    for batch in (batch for epoch in (1, 2) for batch in plan.batches(epoch)):
        plan.objective(batch, torch.Generator())
    assert sorted(seen) == list(range(40))
    maps = plan.module.maps(torch.arange(5), None)
    body.network.head[0].weight.requires_grad_(True)
    with torch.no_grad():
        body.network.head[0].weight += 1
    assert not torch.allclose(plan.module.maps(torch.arange(5), None), maps)  # what was kept is not used


def test_predictions_are_in_the_units_of_the_measured(tuner, ids):
    y = _noise(ids)[:40]
    other = RDMs(10 * y.values + 3, y.ids)
    found, scaled = (tuner().fit(ids[:40], measured).predict(ids[30:50]) for measured in (y, other))
    np.testing.assert_allclose(scaled.upper(), 10 * found.upper() + 3, rtol=1e-3)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_pair_is_predicted_alike_wherever_it_stands(tuner, ids, symmetric):
    fitted = tuner(symmetric=symmetric, max_epochs=2).fit(ids[:40], _noise(ids)[:40])
    order = np.random.default_rng(0).permutation(20)
    found, moved = fitted.predict(ids[30:50]), fitted.predict(ids[30:50][order])
    np.testing.assert_allclose(moved.values, found[order].values, atol=1e-5)


def test_the_scale_of_maps_is_that_of_training_images(tuner, ids):
    y = _noise(ids)[:40]
    fitted = tuner().fit(ids[:40], y)
    rows = np.setdiff1d(fitted.training_ids_, fitted.validation_ids_)
    came = tuner(max_epochs=0).fit(ids[:40], y).transform(rows)
    assert float(fitted.head_["head.scale"]) == pytest.approx(float(np.sqrt((came**2).mean())), rel=1e-4)


def test_the_error_is_the_mean_over_measured_pairs_written_out(tuner, ids):
    y = _noise(ids)[:20]
    targets = np.random.default_rng(0).random((20, 20))
    targets += targets.T
    targets[3, 5] = targets[5, 3] = np.nan
    fitted = tuner()
    module = fitted._plan(
        fitted._body(_backbone(fitted), y.ids, ["head.0"]), y.ids, y, np.arange(20), None
    ).module
    total, count = PairError(module, targets)(torch.tensor([[3, 5], [2, 9], [9, 4]]), None)
    maps = module.body(torch.arange(20))[0]
    predicted = [float(module.head(maps[[i]], maps[[j]]).detach()) for i, j in ((2, 9), (9, 4))]
    expected = sum((p - targets[i, j]) ** 2 for p, (i, j) in zip(predicted, ((2, 9), (9, 4)), strict=True))
    assert float(count) == 2
    assert float(total.detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("after", [1, 3])  # in either phase
def test_a_killed_training_goes_on_to_the_same_weights(tuner, ids, tmp_path, after):
    y = _noise(ids)[:40]
    whole = tuner(patience=None).fit(ids[:40], y)

    def kill(epoch):
        if epoch.number == after:
            raise Killed

    with pytest.raises(Killed):
        tuner(patience=None, checkpoints=tmp_path, callback=kill).fit(ids[:40], y)
    numbers = []
    resumed = tuner(patience=None, checkpoints=tmp_path, callback=lambda epoch: numbers.append(epoch.number))
    resumed.fit(ids[:40], y)
    assert numbers == list(range(after, 5))
    np.testing.assert_array_equal(resumed.predict(ids).values, whole.predict(ids).values)
    np.testing.assert_array_equal(resumed.history_["train_loss"], whole.history_["train_loss"])


def test_without_epochs_features_are_those_of_the_network_as_it_came(tuner, ids):
    fitted = tuner(max_epochs=0).fit(ids[:40], _noise(ids)[:40])
    body = fitted._body(_backbone(fitted), ids[:5], ["head.0"])
    with torch.no_grad():
        np.testing.assert_array_equal(fitted.transform(ids[:5]), body(torch.arange(5))[0].flatten(1).numpy())


def test_a_copy_predicts_the_same(tuner, ids):
    y = _noise(ids)[:40]
    fitted = tuner().fit(ids[:40], y)
    again = clone(fitted).fit(ids[:40], y)
    for copy in (pickle.loads(pickle.dumps(fitted)), again):
        np.testing.assert_array_equal(copy.predict(ids).values, fitted.predict(ids).values)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer": "head.0:mean"}, r"rows of shape \(16,\), and a group convolution needs maps"),
        ({"groups": 3}, "groups=3 does not divide both the 16 channels.*Groups that do: 1, 2, 4, 8"),
        ({"sampling": "triplets"}, "sampling must be one of 'pairs', 'stimuli', got 'triplets'"),
        ({"frozen_epochs": -1}, "frozen_epochs must be an int >= 0, got -1"),
        ({"body_rate": 0}, "body_rate must be a number > 0"),
        ({"train_on": "IT"}, "no target 'IT'"),
    ],
)
def test_refuses_what_cannot_be(tuner, ids, given, message):
    with pytest.raises(RequestError, match=message):
        tuner(**given).fit(ids[:40], _noise(ids)[:40])


def test_layers_for_others_need_no_head(tuner, ids):
    y = _noise(ids)[:40]
    fitted = tuner(max_epochs=1, transform_layers=["stem:mean"]).fit(y.ids, y)
    assert fitted.transform(ids[:2]).shape == (2, 8)
    assert fitted.predict(ids[:2]) == fitted.set_params(transform_layers=None).predict(ids[:2])


@pytest.mark.data
def test_on_real_dissimilarities_the_head_learns_and_predicts_in_their_units(real_data):
    data = load_dataset(f"algonauts2019:{real_data / 'algonauts2019'}")
    rows = np.flatnonzero(data.rdms.sets == "92")[::2]
    y = data.rdms.select(targets=["EVC"])[rows]
    fitted = SiameseGroupConvTuner(
        "torchvision:squeezenet1_1",
        "features.12",
        weights=str(real_data / "weights" / "squeezenet1_1_features.safetensors"),
        stimuli=data.stimuli,
        sampling="stimuli",
        learning_rate=1e-3,
        max_epochs=12,
        frozen_epochs=12,
        device="cpu",
    ).fit(y.ids, y)
    losses = fitted.history_["train_loss"]
    assert np.nanmin(losses) < 0.5 * losses[1]
    found, measured = fitted.predict(y.ids).upper()[0], y.mean().upper()[0]
    assert abs(np.median(found) - np.median(measured)) < np.ptp(measured)
