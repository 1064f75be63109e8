"""What every tuner does: weights held or referred to, killed and gone on, cross-fitted, searched, saved, extracted."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from featpipe import CachedFeatures, SiameseTuner
from featpipe.errors import LayerNotFound, ModelError, RequestError, WeightsUnavailable
from featpipe.extraction import Order, extract
from featpipe.models import ModelRequest
from featpipe.rsa import RDMs
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache
from featpipe.testing import make_images
from featpipe.tuning import ResponseTuner
from featpipe.tuning._folds import dealt_out


@pytest.fixture
def stimuli(tiny_stimuli):
    return StimulusSet.from_source(tiny_stimuli)


@pytest.fixture
def rdms(stimuli):
    upper = np.triu(np.random.default_rng(0).uniform(0.2, 1, (3, 20, 20)), 1)
    return RDMs(upper + upper.swapaxes(1, 2), stimuli.ids)


@pytest.fixture
def tuner(stimuli):
    return SiameseTuner(
        "timm:test_resnet",
        "layer2:mean",
        weights="random:0",
        image_size=32,
        loss="correlation",
        sampling="stimuli",
        optimiser="adam",
        learning_rate=1e-3,
        max_epochs=3,
        patience=None,
        validation_fraction=0.2,
        stimuli=stimuli,
        device="cpu",
    )


def trained(tuner, rdms):
    """Fit, and keep the last epoch whatever held-out stimuli say, so that something has changed."""
    return clone(tuner).set_params(validation_fraction=0).fit(rdms.ids, rdms)


def test_two_fits_are_equal_bit_for_bit(tuner, rdms):
    first, second = (trained(tuner, rdms) for _ in range(2))
    assert first.weights_digest_ == second.weights_digest_
    assert np.array_equal(first.transform(rdms.ids), second.transform(rdms.ids))


def test_no_epochs_leave_the_network_as_it_came(tuner, rdms):
    untuned = clone(tuner).set_params(max_epochs=0).fit(rdms.ids, rdms)
    assert untuned.best_epoch_ == untuned.n_epochs_ == 0
    assert untuned.weights_digest_ != trained(tuner, rdms).weights_digest_


def test_a_pickle_holds_the_weights(tuner, rdms):
    fitted = trained(tuner, rdms)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.transform(rdms.ids), fitted.transform(rdms.ids))


def test_a_pickle_refers_to_the_checkpoint_where_there_is_one(tuner, rdms, tmp_path):
    held = trained(tuner, rdms)
    fitted = trained(tuner.set_params(checkpoints=tmp_path / "kept"), rdms)
    assert fitted.tuned_.arrays is None
    assert len(pickle.dumps(fitted.tuned_)) < 1000
    assert np.array_equal(fitted.transform(rdms.ids), held.transform(rdms.ids))
    (tmp_path / "kept").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match="set checkpoints= to the folder"):
        fitted.transform(rdms.ids)
    moved = fitted.set_params(checkpoints=str(tmp_path / "moved"))
    assert np.array_equal(moved.transform(rdms.ids), held.transform(rdms.ids))


def test_other_weights_under_the_same_name_are_refused(tuner, rdms):
    fitted = trained(tuner, rdms)
    with pytest.raises(ModelError, match=r"gives weights .* and this tuner's are"):
        fitted.set_params(weights="random:1").transform(rdms.ids)


def test_a_killed_fit_goes_on(tuner, rdms, tmp_path):
    whole = trained(tuner, rdms)

    def kill(epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    tuner.set_params(checkpoints=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trained(clone(tuner).set_params(callback=kill), rdms)
    seen = []
    rest = trained(tuner.set_params(callback=lambda epoch: seen.append(epoch.number)), rdms)
    assert seen == [2, 3]
    assert rest.weights_digest_ == whole.weights_digest_


def test_a_saved_network_is_extracted_like_any_other(tuner, rdms, tmp_path, stimuli):
    fitted = trained(tuner, rdms)
    fitted.save(tmp_path / "tuned.safetensors")
    model = f"local:{tmp_path / 'tuned.safetensors'}"
    cache = str(tmp_path / "cache")
    extract(Order(ModelRequest(model), (LayerRequest.parse("layer2:mean"),)), stimuli, FeatureCache(cache))
    features = CachedFeatures(cache, layers=["layer2"])
    assert np.allclose(features.fit_transform(rdms.ids), fitted.transform(rdms.ids), atol=1e-6)
    assert features.specs_[0].weights == fitted.weights_digest_


def test_features_for_what_is_chosen_behind_it_come_from_other_folds(tuner, rdms):
    """A row is what a tuner makes of it that never saw its stimulus."""
    tuner.set_params(cross_fit=4, validation_fraction=0)
    rows = clone(tuner).fit_transform(rdms.ids, rdms)
    for others, own in dealt_out(rdms.ids, 4, seed=0):
        part = clone(tuner).fit(rdms.ids[others], rdms[others])
        assert np.array_equal(rows[own], part.transform(rdms.ids[own]))


def test_groups_are_not_divided(tuner, rdms):
    groups = np.repeat(np.arange(10), 2)
    tuner.set_params(max_epochs=0, validation_fraction=0.3).fit(rdms.ids, rdms, groups=groups)
    held = np.isin(rdms.ids, tuner.validation_ids_)
    assert all(len(set(held[groups == group])) == 1 for group in range(10))
    assert held.sum() == 6


def test_a_search_over_rate_layer_and_frozen_range(tuner, rdms):
    grid = {
        "learning_rate": [1e-4, 1e-3],
        "layer": ["layer1:mean", "layer2:mean"],
        "frozen": [None, "..bn1"],
    }
    search = GridSearchCV(
        tuner.set_params(max_epochs=1, validation_fraction=0), grid, cv=2, error_score="raise"
    )
    search.fit(rdms.ids, rdms)
    assert len(search.cv_results_["params"]) == 8
    assert search.predict(rdms.ids[:4]).shape == (4,)


def test_what_is_frozen_stays(tuner, rdms):
    fitted = trained(tuner.set_params(frozen="..layer1"), rdms)
    assert all(name.startswith("layer2") for name in fitted.tuned_.arrays)
    assert fitted.n_trained_ == sum(array.size for array in fitted.tuned_.arrays.values())


def test_low_rank_changes_leave_a_plain_network(tuner, rdms, tmp_path):
    fitted = trained(tuner.set_params(lora_rank=2, learning_rate=1e-2), rdms)
    assert fitted.n_trained_ < sum(array.size for array in fitted.tuned_.arrays.values())
    fitted.save(tmp_path / "tuned.safetensors")
    assert np.isfinite(fitted.transform(rdms.ids)).all()


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"stimuli": None}, RequestError, "needs the images behind the ids"),
        ({"layer": "layer9"}, LayerNotFound, "No layer matches 'layer9'"),
        ({"frozen": "layer9.."}, LayerNotFound, "layer9"),
        ({"weights": "default", "model": "timm:resnet18"}, WeightsUnavailable, "weights"),
        ({"validation_folds": 1}, RequestError, "validation_folds is 1"),
        ({"learning_rate": -1}, RequestError, "learning_rate must be"),
    ],
)
def test_what_cannot_be_is_said(tuner, rdms, changed, error, match):
    with pytest.raises(error, match=match):
        tuner.set_params(**changed).fit(rdms.ids, rdms)


def test_an_id_without_image_is_named(tuner, rdms):
    names = ["nobody", *rdms.ids[1:]]
    with pytest.raises(RequestError, match=r"1 of 20 stimuli .*'nobody'"):
        tuner.fit(np.array(names), RDMs(rdms.values, names))


def test_a_range_test_gives_the_rate(tuner, rdms):
    fitted = tuner.set_params(learning_rate="auto").fit(rdms.ids, rdms)
    assert fitted.range_test_["learning_rate"].min() < fitted.learning_rate_ < 1
    assert fitted.range_test_["loss"].shape == fitted.range_test_["learning_rate"].shape


def test_fewer_epochs_than_planned_are_the_first_of_the_schedule(tuner, rdms):
    tuner.set_params(schedule="one-cycle", validation_folds=2, max_epochs=3).fit(rdms.ids, rdms)
    whole = clone(tuner).set_params(validation_folds=None, validation_fraction=0).fit(rdms.ids, rdms)
    n_epochs = 1 + tuner.n_epochs_
    assert (
        tuner.history_["learning_rate"][1:].tolist() == whole.history_["learning_rate"][1:n_epochs].tolist()
    )


def test_attributes_of_an_earlier_fit_are_gone(tuner, rdms):
    tuner.set_params(max_epochs=1, validation_folds=2, learning_rate="auto").fit(rdms.ids, rdms)
    assert tuner.fold_losses_.shape == (2, 2)
    tuner.set_params(validation_folds=None, learning_rate=1e-3).fit(rdms.ids, rdms)
    assert not {"fold_losses_", "range_test_"} & set(vars(tuner))


def test_a_fold_that_diverges_ends_the_curve_of_all(tuner, rdms, monkeypatch):
    """No epoch counts that a fold did not reach."""
    curves = iter([[0.3, 0.2, 0.1, 0.0], [0.3, 0.2, np.nan], [0.3, 0.4, 0.1, 0.0]])
    first = type(tuner)._note

    def note(self, history, plan):
        first(self, history, plan)
        self.history_["validation_loss"] = np.array(next(curves, [np.nan] * 4))

    monkeypatch.setattr(type(tuner), "_note", note)
    tuner.set_params(validation_folds=3).fit(rdms.ids, rdms)
    assert np.isnan(tuner.fold_losses_[1, 2:]).all()
    assert tuner.best_epoch_ == tuner.n_epochs_ == 1


@pytest.mark.parametrize("form", [np.asarray, pd.DataFrame, np.ndarray.tolist])
def test_responses_of_any_form_are_cross_fitted(stimuli, form):
    Y = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    how = {"weights": "random:0", "image_size": 32, "stimuli": stimuli, "device": "cpu"}
    tuner = ResponseTuner("timm:test_resnet", "layer2:mean", max_epochs=1, validation_fraction=0.2, **how)
    ids = np.array(stimuli.ids)
    expected = clone(tuner).fit_transform(ids, Y)
    assert np.array_equal(clone(tuner).fit_transform(ids, form(Y)), expected)


def state_of(tuner, rdms, folder):
    """Return the name that a training goes by."""
    clone(tuner).set_params(checkpoints=folder, max_epochs=1).fit(rdms.ids, rdms)
    (name,) = {file.name.split(".")[0] for file in folder.iterdir()}
    return name


@pytest.mark.parametrize(
    "changed",
    [
        {"weights": "random:1"},
        {"image_size": 40},
        {"preprocess": "model"},
        {"mean": (0.1, 0.2, 0.3)},
        {"layer": "layer1:mean"},
        {"learning_rate": 1e-4},
        {"seed": 1},
        {"validation_fraction": 0.4},
        {"frozen": "..layer1"},
    ],
)
def test_what_decides_the_result_begins_another_training(tuner, rdms, tmp_path, changed):
    before = state_of(tuner, rdms, tmp_path / "a")
    assert state_of(clone(tuner).set_params(**changed), rdms, tmp_path / "b") != before


def test_other_measurements_and_images_begin_another_training(tuner, rdms, tmp_path):
    before = state_of(tuner, rdms, tmp_path / "a")
    values = rdms.values.copy()
    values[0, 0, 1] = values[0, 1, 0] = 0.9
    assert state_of(tuner, RDMs(values, rdms.ids), tmp_path / "b") != before
    times = {"subjects": ["one"] * 3, "targets": ["MEG"] * 3}
    names = [
        state_of(tuner, RDMs(rdms.values, rdms.ids, times=order, **times), tmp_path / str(order[0]))
        for order in ([0, 1, 2], [2, 1, 0])
    ]
    assert len({before, *names}) == 3
    make_images(tmp_path / "other", [f"{name}.png" for name in rdms.ids[::-1]])
    other = StimulusSet.from_source(tmp_path / "other")
    assert state_of(clone(tuner).set_params(stimuli=other), rdms, tmp_path / "c") != before


def test_where_things_are_begins_no_other_training(tuner, rdms, tmp_path):
    before = state_of(tuner, rdms, tmp_path / "a")
    trained(tuner, rdms).save(tmp_path / "one.safetensors")
    moved = clone(tuner).set_params(stimuli=tuner.stimuli, callback=print, cross_fit=3, device="auto")
    if not torch.cuda.is_available():
        assert state_of(moved, rdms, tmp_path / "b") == before
    (tmp_path / "two.safetensors").write_bytes((tmp_path / "one.safetensors").read_bytes())
    files = [
        clone(tuner).set_params(model=f"local:{tmp_path / n}.safetensors", weights="default")
        for n in ("one", "two")
    ]
    assert len({state_of(each, rdms, tmp_path / f"of_{n}") for n, each in enumerate(files)}) == 1
