"""All ROIs in one matrix are each trained as if alone; what is held out is held out."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from featpipe import LayerBlocks
from featpipe.errors import RequestError
from featpipe.tuning import LINEAR_ALL_ROIS, LinearHead, Training
from featpipe.tuning.heads._columns import columns_of

ROIS = {"lh.V1v": [0, 1, 2], "rh.OFA": np.array([2, 5]), "lh.PPA": [3]}  # ragged, overlapping; 4 in none
SMALL = {"batch_size": 16, "device": "cpu"}
EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": "a stimulus of weight 2 is in one batch, two copies in two",
    "check_regressor_multioutput": "predictions are float32, as the weights are; the check wants float64",
}


@parametrize_with_checks(
    [LinearHead(learning_rate=0.05, max_epochs=3, **SMALL)], expected_failed_checks=lambda _: EXPECTED
)
def test_scikit_learn_is_at_home(estimator, check):
    check(estimator)


def _head(rois=ROIS, **given):
    return LinearHead(rois, **{"learning_rate": 0.02, "patience": 3, "max_epochs": 40, **SMALL, **given})


def _scaled(Y, head):
    return (Y - head.response_mean_) / head.response_scale_


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_one_naive_loop_per_roi(problem, naive_training, missing, weighted):
    X, Y = problem
    rng = np.random.default_rng(1)
    Y = np.where(rng.random(Y.shape) < 0.3 * missing, np.nan, Y)
    weight = rng.integers(1, 4, len(X)).astype(float) if weighted else None
    head = _head(init="uniform").fit(X, Y, sample_weight=weight)
    rows = np.setdiff1d(np.arange(len(X)), head.validation_rows_)
    training = Training(0.02, patience=3, max_epochs=40, **SMALL)
    total, times = np.zeros((6, len(X))), np.zeros(6)
    for name, targets in {**ROIS, "other": [4]}.items():
        layer = torch.nn.Linear(5, len(targets))
        _draw(layer)
        losses, best = naive_training(
            layer, X, _scaled(Y, head)[:, targets], training, rows, head.validation_rows_, weight
        )
        place = head.roi_names_.index(name)
        found = head.history_["validation_loss"][:, place]
        np.testing.assert_allclose(found[np.isfinite(found)], losses, rtol=1e-4)
        assert head.best_epoch_[name] == best
        total[targets] += layer(torch.as_tensor(X)).detach().numpy().T
        times[targets] += 1
    expected = (total / times[:, None]).T * head.response_scale_ + head.response_mean_
    np.testing.assert_allclose(head.predict(X), expected, rtol=1e-4, atol=1e-4)


def _draw(layer, seed=0):
    """Draw a layer as torch does by itself, from a generator."""
    generator, bound = torch.Generator().manual_seed(seed), layer.in_features**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)


def test_a_roi_does_not_depend_on_the_others(problem):
    X, Y = problem
    together = _head().fit(X, Y)
    for name in ("lh.V1v", "lh.PPA"):
        alone = _head("all").fit(X, Y[:, ROIS[name]])
        assert alone.best_epoch_["all"] == together.best_epoch_[name]
        own = np.setdiff1d(np.arange(len(ROIS[name])), np.flatnonzero(np.isin(ROIS[name], ROIS["rh.OFA"])))
        np.testing.assert_allclose(
            together.predict(X)[:, np.array(ROIS[name])[own]], alone.predict(X)[:, own], rtol=1e-4
        )
    assert len(set(together.best_epoch_.values())) > 1
    stopped = np.isnan(together.history_["validation_loss"])
    assert stopped.any()
    assert not stopped.all(axis=1).any()


def test_many_epochs_without_decay_are_least_squares(problem):
    X, Y = problem
    head = _head("all", max_epochs=600, learning_rate=0.1, decay=0.7, decay_every=20, weight_decay=0.0)
    head.set_params(validation_fraction=0).fit(X, Y)
    exact = LinearRegression().fit(X, Y)
    np.testing.assert_allclose(head.coef_, exact.coef_, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(head.intercept_, exact.intercept_, rtol=1e-3)
    assert head.n_epochs_ == head.best_epoch_["all"] == 600
    assert len(head.validation_rows_) == 0


def test_no_bias_of_units(problem):
    X, Y = problem
    one, other = _head().fit(X, Y), _head().fit(X, 100 * Y - 7)
    np.testing.assert_allclose(other.predict(X), 100 * one.predict(X) - 7, rtol=1e-3, atol=1e-2)
    assert one.best_epoch_ == other.best_epoch_


@pytest.mark.parametrize("grouped", [False, True])
def test_held_out_rows_never_enter_a_batch(problem, grouped):
    X, Y = problem
    groups = np.arange(len(X)) // 5 if grouped else None
    fixed = {"patience": None, "max_epochs": 5}
    first = _head(**fixed).fit(X, Y, groups=groups)
    held = first.validation_rows_
    assert 7 <= len(held) <= 10
    X, Y = X.copy(), Y.copy()
    X[held], Y[held] = 1e3, -1e3
    second = _head(**fixed).fit(X, Y, groups=groups)
    np.testing.assert_array_equal(first.history_["train_loss"], second.history_["train_loss"])
    np.testing.assert_array_equal(first.response_scale_, second.response_scale_)
    assert not np.array_equal(first.history_["validation_loss"], second.history_["validation_loss"])
    if grouped:
        assert not set(groups[held]) & set(np.delete(groups, held))


def test_stimuli_without_weight_or_response_change_nothing(problem):
    X, Y = problem
    weight = np.ones(len(X))
    weight[::7] = 0
    first = _head().fit(X, Y, sample_weight=weight)
    assert not set(first.validation_rows_) & set(np.flatnonzero(weight == 0))
    X, Y = X.copy(), Y.copy()
    X[::7], Y[::7] = 99, 99
    second = _head().fit(X, Y, sample_weight=weight)
    np.testing.assert_array_equal(first.coef_, second.coef_)


def test_subjects_side_by_side_do_not_depend_on_each_other(problem):
    X, Y = problem
    Y = Y.copy()
    Y[:30, :3] = np.nan  # what subject 1 did not see
    Y[50:, 3:] = np.nan
    rois = {"subj01.lh.OFA": [0, 1, 2], "subj02.lh.OFA": [3, 4, 5]}
    both = _head(rois).fit(X, Y)
    alone = _head("all").fit(X, Y[:, :3])
    np.testing.assert_allclose(both.coef_[:3], alone.coef_, rtol=1e-4, atol=1e-6)
    assert both.best_epoch_["subj01.lh.OFA"] == alone.best_epoch_["all"]


def test_one_seed_one_result(problem):
    X, Y = problem
    first = _head().fit(X, Y)
    np.testing.assert_array_equal(_head().fit(X, Y).coef_, first.coef_)
    other = _head(seed=1).fit(X, Y)
    assert not np.array_equal(other.validation_rows_, first.validation_rows_)


def test_clips_each_roi_by_itself(problem):
    X, Y = problem
    given = {"clip": 0.05, "max_epochs": 8, "patience": None, "validation_fraction": 0}
    both = _head(**given).fit(X, Y)
    alone = _head("all", **given).fit(X, Y[:, [3]])
    np.testing.assert_allclose(both.coef_[3], alone.coef_[0], rtol=1e-4)
    unclipped = _head(**{**given, "clip": None}).fit(X, Y)
    assert not np.allclose(unclipped.coef_, both.coef_, rtol=1e-3)


@pytest.mark.parametrize("missing", [False, True])
def test_bf16_loses_digits_of_products_alone(problem, missing):
    X, Y = problem
    Y = np.where(np.random.default_rng(1).random(Y.shape) < 0.3 * missing, np.nan, Y)
    fixed = {"max_epochs": 10, "patience": None}
    exact, low = _head(**fixed).fit(X, Y), _head(precision="bf16", **fixed).fit(X, Y)
    np.testing.assert_allclose(low.history_["train_loss"], exact.history_["train_loss"], rtol=0.02)
    assert low.coef_.dtype == np.float32
    assert not np.array_equal(low.coef_, exact.coef_)


def test_goes_through_pickle_skops_and_clone(problem):
    from skops.io import dumps, get_untrusted_types, loads

    X, Y = problem
    head = _head().fit(X, Y)
    text = dumps(head)
    foreign = get_untrusted_types(data=text)
    assert foreign == ["featpipe.tuning.heads._linear_head.LinearHead"]
    for again in (pickle.loads(pickle.dumps(head)), loads(text, trusted=foreign)):
        np.testing.assert_array_equal(again.predict(X), head.predict(X))
    assert not any(torch.is_tensor(value) for value in vars(head).values())
    assert not hasattr(clone(head), "coef_")


def test_a_search_over_rates_and_routing(problem):
    X, Y = problem
    groups = np.arange(len(X)) // 3
    search = GridSearchCV(_head(), {"learning_rate": [1e-6, 0.05]}, cv=GroupKFold(3))
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), search)
        pipeline.fit(X, Y, groups=groups, sample_weight=np.ones(len(X)))
    assert search.best_params_ == {"learning_rate": 0.05}
    held = search.best_estimator_.validation_rows_
    assert not set(groups[held]) & set(np.delete(groups, held))
    assert cross_val_score(_head(**LINEAR_ALL_ROIS), X, Y, cv=3).shape == (3,)


def test_layers_are_put_side_by_side_and_ids_kept(problem):
    X, Y = problem
    ids = np.array([f"i{number:02d}" for number in range(len(X))])
    blocks = LayerBlocks(
        ids,
        names=["a", "b"],
        shapes=[(2,), (3,)],
        dims=[("feature",)] * 2,
        digests=["0", "1"],
        read=lambda layer, wanted: X[np.searchsorted(ids, wanted)][:, [slice(2), slice(2, 5)][layer]],
    )
    head = _head().fit(blocks, Y)
    np.testing.assert_array_equal(head.coef_, _head().fit(X, Y).coef_)
    np.testing.assert_array_equal(head.predict(blocks[:4]), head.predict(X[:4]))
    np.testing.assert_array_equal(head.validation_ids_, ids[head.validation_rows_])


def test_a_missing_target_or_roi_is_named(problem):
    X, Y = problem
    gone = Y.copy()
    gone[:, 4] = np.nan
    with pytest.raises(RequestError, match="Target 4 has no response among the 63 stimuli that are fitted"):
        _head().fit(X, gone)
    held = _head().fit(X, Y).validation_rows_
    gone = Y.copy()
    gone[held, 3] = np.nan
    with pytest.raises(RequestError, match=r"ROI 'lh\.PPA' has no response among the 7 stimuli held out"):
        _head().fit(X, gone)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"init": "ones"}, "init must be one of 'zeros', 'uniform', got 'ones'"),
        ({"learning_rate": -1}, "learning_rate must be a number > 0, got -1"),
        ({"validation_fraction": 1.0}, "validation_fraction must be a number >= 0 and < 1, got 1.0"),
        ({"device": "tpu"}, "Device 'tpu' cannot be used here"),
    ],
)
def test_wrong_parameters_say_what_is_right(problem, given, message):
    with pytest.raises(RequestError, match=message):
        _head(**given).fit(*problem)


def test_too_few_stimuli_to_hold_any_out(problem):
    X, Y = problem
    with pytest.raises(RequestError, match=r"holds out 0\.9 of 3 stimuli, which leaves none"):
        _head(validation_fraction=0.9).fit(X[:3], Y[:3])
    with pytest.raises(RequestError, match=r"holds out 0\.1 of 1 groups"):
        _head().fit(X, Y, groups=np.zeros(len(X)))
    with pytest.raises(RequestError, match="sample_weight must be >= 0"):
        _head().fit(X, Y, sample_weight=-np.ones(len(X)))


def test_columns_of_rois():
    columns = columns_of({"a": [3, 1], "b": np.array([True, True, False, False, False])}, 5)
    assert columns.names == ("a", "b", "other")
    np.testing.assert_array_equal(columns.column, [3, 1, 0, 1, 2, 4])
    np.testing.assert_array_equal(columns.part, [0, 0, 1, 1, 2, 2])
    np.testing.assert_allclose(columns.mean_per_target(np.arange(6.0)), [2, 2, 4, 0, 5])
    assert columns_of("all", 3).names == columns_of(None, 3).names == ("all",)


@pytest.mark.parametrize(
    ("rois", "message"),
    [
        ("each", "rois must be a mapping"),
        ({}, "rois must be a mapping"),
        ({"a": []}, "Region 'a' has no targets"),
        ({"a": [0.5]}, "Region 'a' must be a one-dimensional array"),
        ({"a": [True, False]}, "mask of region 'a' has 2 entries for 5 targets"),
        ({"a": [0, 5]}, "numbered 0 to 4"),
        ({"a": [1, 1]}, "names some targets twice"),
        ({"other": [0]}, "4 targets are in no region and would form the region 'other'"),
    ],
)
def test_wrong_rois_are_named(rois, message):
    with pytest.raises(RequestError, match=message):
        columns_of(rois, 5)
