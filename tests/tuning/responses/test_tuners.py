"""Both tuners to responses: what they win, what they must not, and their manners."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from featpipe import LayerScaler, PerROI, RidgeEncoder
from featpipe.errors import RequestError
from featpipe.metrics import pearson_r
from featpipe.tuning.responses import ContrastiveTuner, ResponseTuner

TRAIN, TEST = slice(None, 375), slice(375, None)
TUNERS = {
    "contrastive": (ContrastiveTuner, {"batch_size": 64, "learning_rate": 5e-3, "head_learning_rate": 1e-3}),
    "regression": (ResponseTuner, {"batch_size": 50, "learning_rate": 5e-3}),
}
both = pytest.mark.parametrize("kind", TUNERS)


def tuner_of(kind, world, **params):
    Tuner, own = TUNERS[kind]
    return Tuner(**world.network, **{"max_epochs": 3, "device": "cpu", **own, **params})


def encoding(tuner):
    return Pipeline([("tuner", tuner), ("scale", LayerScaler()), ("ridge", RidgeEncoder())])


def held_out_r(tuner, world, y):
    """Fit tuner and ridge on the training stimuli: the mean r of the others, and the inner score."""
    model = encoding(tuner).fit(world.ids[TRAIN], y[TRAIN])
    r = pearson_r(y[TEST], model.predict(world.ids[TEST]))
    return float(r.mean()), float(model["ridge"].best_score_.mean())


@pytest.mark.parametrize(("kind", "own"), [("contrastive", {"shared_size": 24}), ("regression", {})])
def test_wins_where_a_changed_network_made_the_responses(small_world, kind, own):
    """With little noise every target says something of its own, and the shared space may have all of them."""
    y = small_world.y
    untuned, _ = held_out_r(tuner_of(kind, small_world, max_epochs=0, **own), small_world, y)
    tuned, _ = held_out_r(tuner_of(kind, small_world, max_epochs=15, cross_fit=2, **own), small_world, y)
    assert tuned > untuned + 0.1


@both
def test_finds_nothing_in_noise(small_world, kind):
    """r of 24 noisy targets and 125 stimuli has a standard error of .02; the inner R² must not promise any."""
    tuner = tuner_of(kind, small_world, max_epochs=5, cross_fit=2, validation_fraction=0)
    outer, inner = held_out_r(tuner, small_world, small_world.noise)
    assert abs(outer) < 0.06
    assert inner < 0.02


@both
def test_a_seed_gives_the_same_bits_and_another_one_others(small_world, kind):
    first, again, other = (
        tuner_of(kind, small_world, seed=seed).fit(small_world.ids[TRAIN], small_world.y[TRAIN])
        for seed in (0, 0, 1)
    )
    assert first.best_epoch_ > 0
    assert first.weights_digest_ == again.weights_digest_ != other.weights_digest_
    for name, values in first.head_.items():
        np.testing.assert_array_equal(values, again.head_[name])


@both
def test_pickled_and_cloned(small_world, kind):
    tuner = tuner_of(kind, small_world, max_epochs=1).fit(small_world.ids[TRAIN], small_world.y[TRAIN])
    ids = small_world.ids[TEST]
    again = pickle.loads(pickle.dumps(tuner))
    np.testing.assert_array_equal(again.transform(ids), tuner.transform(ids))
    assert not hasattr(clone(tuner), "tuned_")
    assert clone(tuner).get_params()["batch_size"] == TUNERS[kind][1]["batch_size"]


@both
def test_units_and_offsets_of_responses_do_not_matter(small_world, kind):
    ids, y = small_world.ids[TRAIN], small_world.y[TRAIN].astype(np.float64)
    plain = tuner_of(kind, small_world, max_epochs=1).fit(ids, y).transform(ids[:5])
    other = tuner_of(kind, small_world, max_epochs=1).fit(ids, 1024 * y).transform(ids[:5])
    np.testing.assert_allclose(other, plain, rtol=1e-3, atol=1e-5)


@both
def test_stimuli_without_responses_are_as_if_absent(small_world, kind):
    """Their images are seen by nothing: with other responses elsewhere the same weights come out."""
    ids, y = small_world.ids[TRAIN], small_world.y[TRAIN].copy()
    y[::7] = np.nan
    tuner = tuner_of(kind, small_world, max_epochs=2, validation_fraction=0)
    with_gaps = clone(tuner).fit(ids, y)
    there = ~np.isnan(y[:, 0])
    without = clone(tuner).fit(ids[there], y[there])
    np.testing.assert_allclose(
        with_gaps.history_["train_loss"][1], without.history_["train_loss"][1], rtol=0.1
    )
    assert np.isfinite(with_gaps.transform(ids[:3])).all()


@both
def test_some_missing_responses_are_left_out(small_world, kind):
    y = small_world.y.copy()
    y[np.random.default_rng(1).random(y.shape) < 0.1] = np.nan
    tuner = tuner_of(kind, small_world).fit(small_world.ids[TRAIN], y[TRAIN])
    assert tuner.history_["validation_loss"][-1] < tuner.history_["validation_loss"][0]


@both
def test_held_out_stimuli_change_nothing_but_the_epoch(small_world, kind):
    """Weights after one epoch do not know the responses that choose the epoch."""
    ids, y = small_world.ids[TRAIN], small_world.y[TRAIN].copy()
    tuner = tuner_of(kind, small_world, max_epochs=1, min_epochs=1)
    first = clone(tuner).fit(ids, y)
    y[np.isin(ids, first.validation_ids_)] += np.float32(5)
    again = clone(tuner).fit(ids, y)
    assert first.best_epoch_ == again.best_epoch_ == 1
    assert first.weights_digest_ == again.weights_digest_


@both
def test_one_target_may_be_a_vector(small_world, kind):
    ids, y = small_world.ids[TRAIN], small_world.y[TRAIN, 0]
    first = tuner_of(kind, small_world, max_epochs=1).fit(ids, y)
    again = tuner_of(kind, small_world, max_epochs=1).fit(ids, y[:, None])
    assert first.weights_digest_ == again.weights_digest_


@both
def test_a_network_per_region(small_world, kind):
    """Each region has a tuner of its own, which sees no other region."""
    rois = {"first": np.arange(10), "rest": np.arange(10, 24)}
    tuner = tuner_of(kind, small_world, max_epochs=1, cross_fit=2)
    ids, y = small_world.ids[:150], small_world.y[:150]
    model = PerROI(encoding(tuner), rois).fit(ids, y)
    alone = encoding(clone(tuner)).fit(ids, y[:, :10])
    np.testing.assert_allclose(
        model.predict(small_world.ids[TEST])[:, :10], alone.predict(small_world.ids[TEST]), rtol=1e-5
    )


@both
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stop_by": "luck"}, "stop_by must be one of 'ridge', 'loss', got 'luck'"),
        ({"start": "ones"}, "start must be one of 'ridge'"),
        ({"head_learning_rate": 0}, "head_learning_rate must be a number > 0"),
        ({"validation_fraction": 0.001}, "two are the least. Raise validation_fraction"),
        ({"micro_batch": 0}, "micro_batch must be"),
    ],
)
def test_wrong_parameters(small_world, kind, change, message):
    with pytest.raises(RequestError, match=message):
        tuner_of(kind, small_world, **change).fit(small_world.ids[:40], small_world.y[:40])


@both
def test_wrong_responses(small_world, kind):
    ids, y = small_world.ids[:40], small_world.y[:40].copy()
    tuner = tuner_of(kind, small_world)
    with pytest.raises(RequestError, match=r"here \(40, n_targets\); got ndarray of shape \(39, 24\)"):
        tuner.fit(ids, y[1:])
    with pytest.raises(RequestError, match="finite, or NaN where missing; got infinity"):
        tuner.fit(ids, np.where(y > y.mean(), np.inf, y))
    y[:, 3] = np.nan
    with pytest.raises(RequestError, match="Target 3 has no response among the 36 stimuli that are fitted"):
        tuner.fit(ids, y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0}, "temperature must be a number > 0"),
        ({"shared_size": 25}, "shared_size=25 .* for 24 targets"),
        ({"batch_size": 1}, r"needs 2 stimuli in each batch: batch_size is 1 .* Set batch_size >= 3"),
    ],
)
def test_wrong_parameters_of_contrast(small_world, change, message):
    with pytest.raises(RequestError, match=message):
        tuner_of("contrastive", small_world, **change).fit(small_world.ids[:40], small_world.y[:40])


def test_a_search_over_the_tuner_itself_needs_no_scorer(small_world):
    ids, y = small_world.ids[:60], small_world.y[:60]
    tuner = tuner_of("regression", small_world, max_epochs=1)
    search = GridSearchCV(tuner, {"learning_rate": [1e-4, 1e-2]}, cv=2, error_score="raise").fit(ids, y)
    test = small_world.ids[TEST], small_world.y[TEST]
    assert search.score(*test) == pytest.approx(r2_score(test[1], search.predict(test[0])))


@both
def test_too_few_stimuli_for_a_ridge_to_begin_with(small_world, kind):
    ids, y = small_world.ids, small_world.y
    tuner = tuner_of(kind, small_world, max_epochs=1, validation_fraction=0)
    assert clone(tuner).fit(ids[:4], y[:4]).n_epochs_ == 1
    with pytest.raises(RequestError, match=r"of which there are 3; at least 4 .* set another start"):
        tuner.fit(ids[:3], y[:3])
