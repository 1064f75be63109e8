"""Mask and network together: `ChannelMask`'s function of the mask, planted changes found, nothing found in noise."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.models import ModelRequest, load
from featpipe.rsa import ChannelMask, RDMs, interval_of_rho
from featpipe.rsa.mask._measured import measured_pairs
from featpipe.rsa.mask._objective import LOSSES, loss_of, objective, profile_lines
from featpipe.rsa.mask._terms import pair_terms
from featpipe.rsa.statistics._statistics import channel_statistics
from featpipe.tuning.rdms._channel_mask_tuner import ChannelMaskTuner
from featpipe.tuning.rdms._mask_module import PairLoss

STAGES = ["stem", "head.0", "head.2"]
TWO_SETS = ["a/"] * 24 + ["b/"] * 24


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pictures(tmp_path):
    """48 PNGs of smooth noise in the folders "a" and "b"."""
    rng = np.random.default_rng(2)
    for number, name in enumerate(TWO_SETS):
        (tmp_path / "pictures" / name).mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((36, 36), Image.Resampling.BICUBIC)
        picture.save(tmp_path / "pictures" / name / f"{number:02d}.png")
    return tmp_path / "pictures"


@pytest.fixture
def ids():
    return np.array([f"{name}{number:02d}" for number, name in enumerate(TWO_SETS)])


@pytest.fixture
def tuner(tiny_backbone, pictures):
    """A tuner of the tiny network, with anything changed."""

    def of(**params):
        usual = {"trust": True, "stimuli": str(pictures), "device": "cpu", "batch_size": 40, "max_epochs": 2}
        return ChannelMaskTuner(tiny_backbone, STAGES, **usual | params)

    return of


@pytest.fixture
def planted(tuner, tiny_backbone, ids):
    """RDMs of three subjects, made from a copy with other channel weights and slightly other convolutions."""
    rng = np.random.default_rng(3)
    hidden = tuner(max_epochs=0).fit(ids, noise(ids, 0))
    hidden.coef_ = hidden.head_["coef"] = rng.choice([0.1, 1.0, 4.0], len(hidden.coef_)).astype(np.float32)
    module = load(ModelRequest(tiny_backbone, trust=True, preprocess="whole")).module
    arrays = {}
    for name, value in module.state_dict().items():
        change = 0.5 * float(value.std()) * rng.standard_normal(tuple(value.shape))
        arrays[name] = (value.numpy() + (change if name.endswith("weight") else 0)).astype(np.float32)
    hidden.tuned_.arrays, hidden.tuned_._checked = arrays, lambda backbone, name: backbone
    return measured_by(hidden._dissimilarities(ids), ids, rng)


def measured_by(d, ids, rng, n_subjects=3, noise=0.01):
    error = noise * rng.standard_normal((n_subjects, *d.shape))
    return RDMs(d + (error + error.transpose(0, 2, 1)) / 2, ids, targets=["IT"] * n_subjects)


def noise(ids, seed, n_subjects=3):
    return measured_by(np.ones((len(ids),) * 2), ids, np.random.default_rng(seed), n_subjects, noise=0.3)


def blocks_of(fitted, ids):
    """The stages of a tuner's network as the mask of Gram statistics takes them."""
    layers = [rows for _, rows in fitted._read(ids, STAGES)]
    place = {name: row for row, name in enumerate(ids.tolist())}
    return LayerBlocks(
        ids,
        names=STAGES,
        shapes=[layer.shape[1:] for layer in layers],
        dims=[("channel", "height", "width")] * len(layers),
        digests=STAGES,
        read=lambda layer, asked: layers[layer][[place[name] for name in asked.tolist()]],
    )


def plan_of(tuner, ids, y, rows):
    backbone = load(ModelRequest(tuner.model, trust=True, preprocess="whole"))
    return tuner._plan(tuner._body(backbone, ids, STAGES), ids, y, rows, None)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("line", [False, True])
def test_is_the_same_function_of_the_mask_as_channel_mask(tuner, ids, rng, loss, line):
    y, rows = noise(ids, 1), np.arange(20)
    plan = plan_of(tuner(loss=loss, line=line), ids, y, rows)
    pairs = np.triu_indices(20, 1)
    blocks = blocks_of(tuner(max_epochs=0).fit(ids, y), ids)
    terms = pair_terms([channel_statistics(blocks, ids[rows])], [pairs])
    beta = rng.uniform(0.2, 2.0, terms.n_channels)
    plan.module.coef.data[:] = torch.as_tensor(beta)
    plan.objective.fit_lines()
    total, count = plan.objective(torch.as_tensor(np.stack(pairs, axis=1)), None)
    (total / count).sum().backward()

    batch = measured_pairs(y, *pairs, reliability=(0.25, 1.0)).all()
    least = plan.objective._least
    lines = (lambda d: profile_lines(d, batch, loss=loss, least=least)) if least is not None else None
    value, gradient = objective(beta, terms, batch, loss=loss, lines=lines)
    assert (least is None) == (not line or loss == "correlation")
    assert (total / count).item() == pytest.approx(value, abs=1e-5)
    np.testing.assert_allclose(plan.module.coef.grad.numpy(), gradient, rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_batches_are_those_of_channel_mask(rng, loss):
    """With unmeasured pairs, weights, two sets, and a set with fewer pairs than correlate."""
    y = noise(np.array([f"{name}/{n}" for name in "ab" for n in range(6)]), 4)
    values = y.values.copy()
    values[0, 0, 1:4] = values[0, 1:4, 0] = np.nan
    y = RDMs(values, y.ids, targets=["IT", "IT", "EVC"])
    first, second = np.array([0, 0, 0, 1, 1, 2, 6, 6]), np.array([1, 2, 3, 2, 4, 3, 7, 8])
    batch = measured_pairs(y, first, second, reliability=(0.25, 1.0)).all()
    d = torch.tensor(rng.uniform(0, 1, 8), requires_grad=True)
    found = PairLoss(loss)(d, batch)
    found.backward()
    value, slope = loss_of(d.detach().numpy(), batch, loss=loss)
    assert found.item() == pytest.approx(value, abs=1e-10)
    np.testing.assert_allclose(d.grad.numpy(), slope, rtol=0, atol=1e-10)


def test_a_batch_of_stimuli_is_all_its_measured_pairs(tuner, ids):
    y, rows = noise(ids, 1), np.array([3, 5, 8, 30, 40])
    plan = plan_of(tuner(), ids, y, np.arange(48))
    first, second = np.triu_indices(5, 1)
    use = y.sets[rows[first]] == y.sets[rows[second]]
    pairs = torch.as_tensor(np.stack([rows[first[use]], rows[second[use]]], axis=1))
    with torch.no_grad():
        of_stimuli, of_pairs = plan.objective(torch.as_tensor(rows), None), plan.objective(pairs, None)
    assert float(of_stimuli[1]) == 4
    torch.testing.assert_close(of_stimuli, of_pairs)


def test_with_the_network_frozen_it_is_the_mask_alone(tuner, ids, planted):
    fitted = tuner(frozen="**", validation_fraction=0, max_epochs=8, patience=None).fit(ids, planted)
    blocks = blocks_of(fitted, ids)
    mask = ChannelMask(epochs=8, random_state=0).fit(blocks, planted)
    assert np.corrcoef(fitted.coef_, mask.coef_)[0, 1] > 0.97
    assert np.corrcoef(fitted.predict(ids).upper()[0], mask.predict(blocks).upper()[0])[0, 1] > 0.99
    assert fitted.score(ids, planted) == pytest.approx(mask.score(blocks, planted), abs=0.01)
    assert fitted.n_trained_ == len(fitted.coef_) == len(fitted.coef_layer_)
    np.testing.assert_allclose(fitted.transform(ids)[:, :1], blocks.to_matrix()[:, :1] * fitted.coef_[0])


def test_planted_changes_of_mask_and_network_are_found_on_other_stimuli(tuner, ids, planted):
    train, test = np.arange(0, 48, 2), np.arange(1, 48, 2)
    params = {"learning_rate": 0.05, "body_learning_rate": 3e-3, "max_epochs": 30, "validation_fraction": 0}

    def score(**other):
        fitted = tuner(**params | other).fit(ids[train], planted[train])
        return fitted.score(ids[test], planted[test])

    untuned, mask, both = score(max_epochs=0), score(frozen="**"), score()
    assert mask > untuned + 0.05
    assert both > mask + 0.05


def test_nothing_is_found_in_noise(tuner, ids):
    train, test = np.arange(0, 48, 2), np.arange(1, 48, 2)
    y = noise(ids, 5)
    fitted = tuner(loss="correlation", max_epochs=5, validation_fraction=0.25).fit(ids[train], y[train])
    _, low, high = interval_of_rho(y[test], fitted.predict(ids[test]), stimuli=True)[0]
    assert low < 0 < high


def test_validation_may_be_of_pairs_as_in_the_report(tuner, ids, planted):
    fitted = tuner(validation="pairs").fit(ids, planted)
    assert np.isfinite(fitted.history_["validation_loss"]).all()
    assert len(fitted.validation_ids_) == 0
    plan = plan_of(tuner(validation="pairs"), ids, planted, np.arange(48))
    assert plan.objective.measured.n_pairs == 552 - 55
    assert (
        plan_of(tuner(validation="pairs", validation_fraction=0), ids, planted, np.arange(48)).held_out
        is None
    )


def test_held_out_stimuli_have_no_part_in_the_training(tuner, ids, planted):
    fitted = tuner().fit(ids, planted)
    out = np.isin(ids, fitted.validation_ids_)
    assert out.sum() == 6
    values = planted.values.copy()
    values[:, out], values[:, :, out] = 7, 7
    changed = RDMs(values, ids, subjects=planted.subjects, targets=planted.targets)
    again = tuner().fit(ids, changed)
    np.testing.assert_array_equal(fitted.history_["train_loss"], again.history_["train_loss"])


def test_times_are_drawn_and_targets_are_chosen(tuner, ids, planted):
    early = planted.values * np.linspace(0.5, 1.5, 3)[:, None, None]
    labels = {"subjects": ["s"] * 3, "targets": ["MEG"] * 3, "times": [0, 1, 2]}
    y = RDMs(early, ids, **labels)
    all_epochs = {"max_epochs": 1, "validation_fraction": 0}
    drawn = [tuner(time_sampling=how, **all_epochs).fit(ids, y).coef_ for how in ("gaussian", "mean")]
    assert not np.array_equal(*drawn)
    with pytest.raises(RequestError, match="time_sampling='gaussian' draws from the times"):
        tuner(time_sampling="gaussian").fit(ids, planted)
    both = RDMs(
        np.concatenate([planted.values, 2 - planted.values]),
        ids,
        subjects=[*"abcabc"],
        targets=["IT"] * 3 + ["EVC"] * 3,
    )
    one = tuner(train_on="IT", **all_epochs).fit(ids, both)
    alone = tuner(**all_epochs).fit(ids, both.select(targets="IT"))
    np.testing.assert_array_equal(one.coef_, alone.coef_)
    assert one.training_targets_ == ["IT"]
    assert one.training_sets_ == ["a", "b"]


def test_lines_are_those_of_each_set(tuner, ids, planted):
    scaled = planted.with_upper(0.3 + 5 * planted.upper())
    fitted = tuner(line=True, max_epochs=1).fit(ids, scaled)
    assert fitted.offset_.shape == fitted.scale_.shape == (1, 2)
    assert (fitted.scale_ > 1.5).all()
    plain = tuner(max_epochs=1).fit(ids, planted)
    np.testing.assert_array_equal([plain.offset_, plain.scale_], [[[0, 0]], [[1, 1]]])


def test_one_seed_gives_the_same_weights_and_a_copy_the_same_prediction(tuner, ids, planted):
    params = {"augmentation": "crop:0.875", "sampling": "stimuli", "batch_size": 8, "validation_fraction": 0}
    fitted = tuner(**params).fit(ids, planted)
    again = clone(fitted).fit(ids, planted)
    np.testing.assert_array_equal(fitted.coef_, again.coef_)
    assert fitted.weights_digest_ == again.weights_digest_
    assert fitted.weights_digest_ != tuner(**params, seed=1).fit(ids, planted).weights_digest_
    copy = pickle.loads(pickle.dumps(fitted))
    assert copy.predict(ids[::-1]) == fitted.predict(ids[::-1])
    np.testing.assert_allclose(
        1 - np.corrcoef(copy.transform(ids)), fitted.predict(ids).values[0], rtol=0, atol=1e-5
    )


def test_other_layers_come_without_a_mask_and_stages_have_a_mean(tuner, ids, planted):
    fitted = tuner(transform_layers=["stem:mean"]).fit(ids, planted)
    plain = fitted._read(ids, ["stem"])[0][1].mean((2, 3))
    np.testing.assert_allclose(fitted.transform(ids), plain, rtol=1e-5, atol=1e-6)
    table = fitted.stage_tuning_
    assert table["layer"].tolist() == fitted.layers_ == STAGES
    assert table["n"].tolist() == [8, 16, 4]
    assert table["mean"][0] == pytest.approx(fitted.coef_[:8].mean())


def test_the_network_has_a_rate_of_its_own(tuner, ids, planted):
    rates = set()
    seen = {"callback": lambda epoch: rates.add(tuple(g["lr"] for g in epoch.optimiser.param_groups))}
    tuner(**seen, max_epochs=1, body_learning_rate=0.002).fit(ids, planted)
    tuner(**seen, max_epochs=1, frozen="**").fit(ids, planted)
    assert rates == {(0.01, 0.002), (0.01,)}


WRONG = {
    "loss": ("l2", "loss must be one of 'l1', 'squared', 'correlation', got 'l2'"),
    "time_sampling": ("all", "time_sampling must be one of None, 'mean', 'gaussian', got 'all'"),
    "validation": ("subjects", "validation must be one of 'stimuli', 'pairs', got 'subjects'"),
    "sampling": ("sets", "sampling must be one of 'pairs', 'stimuli', got 'sets'"),
    "alpha": (-1, "alpha must be a number >= 0, got -1"),
    "beta": ("one", "beta must be a number >= 0, got 'one'"),
    "body_learning_rate": (0, "body_learning_rate must be a number > 0, got 0"),
    "line": ("yes", "line must be one of True, False, got 'yes'"),
    "train_on": ("V1", "There is no target 'V1' among these RDMs, only IT"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_say_what_is_right(tuner, ids, name):
    value, message = WRONG[name]
    with pytest.raises(RequestError, match=message):
        tuner(**{name: value}).fit(ids, noise(ids, 0))


class Killed(Exception):
    pass


def test_a_killed_training_goes_on_to_the_same_weights_and_lines(tuner, ids, planted, tmp_path):
    params = {"line": True, "max_epochs": 3, "validation_fraction": 0, "sampling": "stimuli", "batch_size": 8}
    whole = tuner(**params).fit(ids, planted)

    def kill(epoch):
        if epoch.number == 1:
            raise Killed

    with pytest.raises(Killed):
        tuner(**params, checkpoints=tmp_path, callback=kill).fit(ids, planted)
    resumed = tuner(**params, checkpoints=tmp_path).fit(ids, planted)
    np.testing.assert_array_equal(resumed.coef_, whole.coef_)
    np.testing.assert_array_equal(resumed.scale_, whole.scale_)
    assert resumed.weights_digest_ == whole.weights_digest_
