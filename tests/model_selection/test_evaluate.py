"""`evaluate` equals an explicit loop, and nothing of a test fold reaches a fit."""

from __future__ import annotations

import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, ShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from featpipe.encoding import LayerScaler, RidgeEncoder
from featpipe.errors import RequestError
from featpipe.metrics import METRICS, pearson_r
from featpipe.model_selection import evaluate, get_scorer

ALPHAS = [0.1, 10.0, 1000.0]


class Lookup(TransformerMixin, BaseEstimator):
    """Ids to rows, as `CachedFeatures` does."""

    def __init__(self, table=None, layer="good"):
        self.table = table
        self.layer = layer

    def fit(self, ids, y=None):
        return self

    def transform(self, ids):
        return np.stack([self.table[self.layer][stimulus] for stimulus in ids])


class Witness(RegressorMixin, BaseEstimator):
    """Remembers what it was fitted with."""

    __metadata_request__fit = {"sample_weight": True, "groups": True}  # noqa: RUF012

    def fit(self, X, y, sample_weight=None, groups=None):
        self.seen_ = {"X": X, "y": y, "sample_weight": sample_weight, "groups": groups}
        return self

    def predict(self, X):
        return np.zeros((len(X), self.seen_["y"].shape[1]))


class Lazy:
    """Responses that are read by rows only."""

    def __init__(self, values):
        self.values = values
        self.shape = values.shape

    def __len__(self):
        return len(self.values)

    def __getitem__(self, key):
        assert key[1] is Ellipsis
        return self.values[key]


@pytest.fixture
def study(rng):
    """Ids, a table of two layers of which only "good" drives the responses, and responses."""
    ids = np.array([f"92/image_{row:02d}" for row in range(60)])
    good, bad = rng.standard_normal((2, 60, 8))
    Y = good @ rng.standard_normal((8, 5)) + rng.standard_normal((60, 5))
    table = {name: dict(zip(ids, rows, strict=True)) for name, rows in (("good", good), ("bad", bad))}
    return ids, table, Y


def _pipeline(table, encoder=None, layer="good"):
    return make_pipeline(Lookup(table, layer), LayerScaler(), encoder or RidgeEncoder(alphas=ALPHAS))


def test_equals_an_explicit_loop(study):
    ids, table, Y = study
    cv = KFold(4)
    found = evaluate(_pipeline(table), ids, Y, cv=cv, return_predictions=True)
    for fold, (train, test) in enumerate(cv.split(ids)):
        predicted = _pipeline(table).fit(ids[train], Y[train]).predict(ids[test])
        np.testing.assert_array_equal(found.predictions[test], predicted)
        for name, metric in METRICS.items():
            np.testing.assert_array_equal(found.scores[name][fold], metric(Y[test], predicted))
    np.testing.assert_allclose(found.pooled_r, pearson_r(Y, found.predictions))


def test_tables_and_means_agree(study):
    ids, table, Y = study
    found = evaluate(_pipeline(table), ids, Y, cv=3, target_names=list("abcde"))
    frame = found.to_frame()
    assert list(frame.columns) == ["target", "fold", "metric", "value"]
    assert len(frame) == 3 * 5 * 2
    row = frame.query("target == 'b' and fold == 2 and metric == 'r2'")
    assert row["value"].item() == found.scores["r2"][2, 1]
    pd.testing.assert_series_equal(
        found.mean()["r2"], frame.query("metric == 'r2'").groupby("target")["value"].mean(), check_names=False
    )
    assert found.overall("r2") == pytest.approx(found.mean()["r2"].mean())
    with pytest.raises(RequestError, match="'rho' was not computed"):
        found.overall("rho")


def test_every_stimulus_is_tested_once_and_ids_say_where(study):
    ids, table, Y = study
    found = evaluate(_pipeline(table), ids, Y, cv=4, return_estimators=True)
    np.testing.assert_array_equal(np.sort(np.concatenate(found.test_ids)), ids)
    assert len(found.estimators) == found.n_folds == 4


def test_a_layer_is_a_hyperparameter_chosen_inside(study):
    ids, table, Y = study
    search = GridSearchCV(
        _pipeline(table, layer="bad"), {"lookup__layer": ["bad", "good"]}, scoring=get_scorer("pearson_r")
    )
    found = evaluate(search, ids, Y, cv=3, return_estimators=True)
    assert [e.best_params_["lookup__layer"] for e in found.estimators] == ["good"] * 3
    assert found.chosen == ({"lookup__layer": "good"},) * 3
    assert evaluate(_pipeline(table), ids, Y, cv=3).chosen is None


def test_responses_may_be_lazy_one_column_or_a_frame(study):
    ids, table, Y = study
    expected = evaluate(_pipeline(table), ids, Y, cv=3)
    lazy = evaluate(_pipeline(table), ids, Lazy(Y), cv=3)
    frame = evaluate(_pipeline(table), ids, pd.DataFrame(Y), cv=3)
    np.testing.assert_array_equal(lazy.scores["r2"], expected.scores["r2"])
    np.testing.assert_array_equal(frame.scores["r2"], expected.scores["r2"])
    assert evaluate(_pipeline(table), ids, Y[:, 0], cv=3).scores["r2"].shape == (3, 1)


def test_missing_trials_and_constant_targets_are_scored_and_counted(study):
    ids, table, Y = study
    Y[::7, 1], Y[:, 2] = np.nan, 4.0
    found = evaluate(_pipeline(table), ids, Y, cv=3)
    assert found.mean()["pearson_r"][1] > 0.5
    assert found.mean()["pearson_r"][2] == 0
    np.testing.assert_array_equal(found.constant_responses, [1, 1, 1])
    np.testing.assert_array_equal(found.constant_predictions, [1, 1, 1])


def test_a_fold_without_responses_of_a_target_is_left_out_of_its_mean(study):
    ids, table, Y = study
    folds = list(KFold(3).split(ids))
    Y = Y.copy()
    before = evaluate(_pipeline(table), ids, Y, cv=folds).fold_scores("pearson_r")
    Y[folds[0][1], 1] = np.nan
    found = evaluate(_pipeline(table), ids, Y, cv=folds)
    scores = found.fold_scores("pearson_r")
    assert np.isnan(scores[0, 1])
    np.testing.assert_array_equal(
        found.constant_responses, [0, 0, 0]
    )  # what has no score is not said to be 0
    np.testing.assert_array_equal(found.constant_predictions, [0, 0, 0])
    np.testing.assert_allclose(scores[0, 0], before[0, 0], atol=1e-6)
    assert found.mean()["pearson_r"][1] == pytest.approx(scores[1:, 1].mean())
    assert found.overall("pearson_r") == pytest.approx(found.mean()["pearson_r"].mean())


def test_folds_of_one_stimulus_have_no_score_but_a_pooled_one(study):
    ids, table, Y = study
    found = evaluate(_pipeline(table, RidgeEncoder(alpha=1.0)), ids, Y, cv=len(ids))
    assert np.isnan(found.overall("pearson_r"))
    assert "pearson_r nan" in repr(found)
    assert found.pooled_r.min() > 0.5


def test_groups_and_weights_arrive_sliced(study):
    ids, _, Y = study
    groups, weight = np.repeat(np.arange(20), 3), np.arange(60.0)
    found = evaluate(Witness(), ids, Y, cv=4, groups=groups, sample_weight=weight, return_estimators=True)
    for estimator, test_ids in zip(found.estimators, found.test_ids, strict=True):
        rows = np.flatnonzero(~np.isin(ids, test_ids))
        np.testing.assert_array_equal(estimator.seen_["X"], ids[rows])
        np.testing.assert_array_equal(estimator.seen_["groups"], groups[rows])
        np.testing.assert_array_equal(estimator.seen_["sample_weight"], weight[rows])
        assert not np.isin(groups[np.isin(ids, test_ids)], groups[rows]).any()


def test_nested_searches_receive_groups_and_weights(study):
    ids, table, Y = study
    groups, weight = np.repeat(np.arange(20), 3), np.arange(1.0, 61.0)
    search = GridSearchCV(_pipeline(table, Witness()), {"lookup__layer": ["good"]}, cv=GroupKFold(3))
    found = evaluate(search, ids, Y, cv=3, groups=groups, sample_weight=weight, return_estimators=True)
    seen = found.estimators[0].best_estimator_[-1].seen_
    assert len(seen["groups"]) == len(seen["sample_weight"]) == 60 - len(found.test_ids[0])
    assert search.estimator[-1].get_metadata_routing().fit.requests["groups"] is True


@pytest.mark.parametrize("scoring", [None, "r2", get_scorer("r2"), "pearson_r"])
def test_weights_are_routed_whatever_scores_the_search(study, scoring):
    ids, table, Y = study
    search = GridSearchCV(_pipeline(table), {"lookup__layer": ["good", "bad"]}, cv=3, scoring=scoring)
    plain, weighted = (evaluate(search, ids, Y, cv=3, sample_weight=w) for w in (None, np.arange(1.0, 61.0)))
    assert not np.array_equal(plain.scores["r2"], weighted.scores["r2"])


@pytest.mark.parametrize("encoder", [Ridge(), RidgeCV(scoring="r2")])
def test_steps_that_never_asked_do_without(study, encoder):
    ids, table, Y = study
    pipeline = make_pipeline(Lookup(table), LayerScaler(floor=0), StandardScaler(), encoder)
    found = evaluate(pipeline, ids, Y, cv=3, sample_weight=np.arange(1.0, 61.0))
    np.testing.assert_allclose(found.scores["r2"], evaluate(pipeline, ids, Y, cv=3).scores["r2"])
    assert encoder.get_params() == type(encoder)(**encoder.get_params()).get_params()


def test_weights_that_nobody_takes_are_pointed_out(study):
    ids, table, Y = study
    with pytest.warns(UserWarning, match="sample_weight was given, but no step"):
        evaluate(make_pipeline(Lookup(table), Ridge()), ids, Y, cv=3, sample_weight=np.ones(60))


@pytest.mark.parametrize(
    ("encoder", "blind"),
    [
        (RidgeEncoder(), False),
        (RidgeEncoder(cv=KFold(3)), True),
        (RidgeEncoder(cv=GroupKFold(3)), False),
        (RidgeCV(cv=3), True),
    ],
)
def test_a_search_that_ignores_groups_is_pointed_out(study, encoder, blind):
    ids, table, Y = study
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluate(_pipeline(table, encoder), ids, Y, cv=3, groups=np.repeat(np.arange(20), 3))
    ours = [str(w.message) for w in caught if "Groups were given" in str(w.message)]
    assert len(ours) == blind
    assert all(f"search in {type(encoder).__name__} splits" in message for message in ours)


@pytest.mark.parametrize("cv", ["loo", "gcv"])
def test_groups_of_one_stimulus_are_no_news_to_closed_forms(study, cv):
    ids, table, Y = study
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate(_pipeline(table, RidgeEncoder(cv=cv)), ids, Y, cv=3, groups=ids)
    assert found.n_folds == 3
    with pytest.raises(RequestError, match="must not be split"):
        evaluate(_pipeline(table, RidgeEncoder(cv=cv)), ids, Y, cv=3, groups=np.repeat(np.arange(20), 3))


def test_scores_are_unweighted_unless_asked(study):
    ids, table, Y = study
    weight = np.arange(1.0, 61.0)
    found = evaluate(
        _pipeline(table), ids, Y, cv=3, sample_weight=weight, weight_scores=True, return_predictions=True
    )
    test = np.isin(ids, found.test_ids[0])
    expected = pearson_r(Y[test], found.predictions[test], sample_weight=weight[test])
    np.testing.assert_allclose(found.scores["pearson_r"][0], expected)


def test_two_workers_find_what_one_finds(study):
    ids, table, Y = study
    one, two = (evaluate(_pipeline(table), ids, Y, cv=4, n_jobs=n_jobs) for n_jobs in (1, 2))
    np.testing.assert_allclose(two.scores["r2"], one.scores["r2"], rtol=1e-9)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_progress_counts_folds_up_to_all(study, n_jobs):
    ids, table, Y = study
    told = []
    evaluate(_pipeline(table), ids, Y, cv=4, n_jobs=n_jobs, progress=lambda *counts: told.append(counts))
    assert (told[0], told[-1]) == ((0, 4), (4, 4))
    assert {total for _, total in told} == {4}
    assert told == sorted(told)


class Counting(BaseEstimator, RegressorMixin):
    """Predicts the number of BLAS threads that it was fitted with."""

    def fit(self, X, y):
        self.threads_ = max(p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas")
        self.shape_ = y.shape[1:]
        return self

    def predict(self, X):
        return np.full((len(X), *self.shape_), float(self.threads_))


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_folds_keep_to_their_threads(study, n_jobs):
    *_, Y = study
    X = np.zeros((60, 2))
    before = [p["num_threads"] for p in threadpool_info()]
    for threads in (1, 2):
        found = evaluate(Counting(), X, Y, cv=3, n_jobs=n_jobs, threads=threads, return_predictions=True)
        assert set(found.predictions.ravel()) == {threads}
    assert [p["num_threads"] for p in threadpool_info()] == before


@pytest.mark.filterwarnings("default")  # of distributed's own start and end
def test_dask_finds_what_joblib_finds(study):
    distributed = pytest.importorskip("distributed")
    ids, table, Y = study
    expected = evaluate(_pipeline(table), ids, Y, cv=4)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        found = evaluate(_pipeline(table), ids, Y, cv=4)
    np.testing.assert_allclose(found.scores["r2"], expected.scores["r2"], rtol=1e-9)


def test_an_id_on_both_sides_is_refused_by_name(study):
    ids, table, Y = study
    ids[59] = ids[0]
    with pytest.raises(RequestError, match="scored on 1 stimuli that it is fitted on: 92/image_00"):
        evaluate(_pipeline(table), ids, Y, cv=KFold(4))
    evaluate(_pipeline(table), ids, Y, cv=4, groups=ids)  # what the message advises


def test_overlapping_rows_are_refused_also_for_a_matrix(study, rng):
    *_, Y = study
    with pytest.raises(RequestError, match="fitted on: 3, 4"):
        evaluate(Ridge(), rng.standard_normal((60, 2)), Y, cv=[(np.arange(5), np.arange(3, 60))])


def test_predictions_of_repeated_test_stimuli_are_refused(study):
    ids, table, Y = study
    with pytest.raises(RequestError, match="at most once"):
        evaluate(_pipeline(table), ids, Y, cv=ShuffleSplit(4, random_state=0), return_predictions=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": np.ones(3)}, "60 stimuli but 3 entries in groups"),
        ({"sample_weight": np.ones(61)}, "61 entries in sample_weight"),
        ({"target_names": ["a"]}, "1 target_names for 5 targets"),
        ({"scoring": "rho"}, "Unknown metric 'rho'"),
    ],
)
def test_what_does_not_fit_is_named(study, change, message):
    ids, table, Y = study
    with pytest.raises(RequestError, match=message):
        evaluate(_pipeline(table), ids, Y, **change)


def test_stimuli_without_a_fold_have_no_prediction(study):
    ids, table, Y = study
    found = evaluate(
        _pipeline(table), ids, Y, cv=[(np.arange(40), np.arange(40, 50))], return_predictions=True
    )
    assert np.isnan(found.predictions[:40]).all()
    assert np.isfinite(found.predictions[40:50]).all()


def _strongest(X, y):
    """Scores features by their largest correlation with any response: a choice that depends on labels."""
    Z, T = (v - v.mean(axis=0) for v in (X, y))
    return np.abs((Z / Z.std(axis=0)).T @ (T / T.std(axis=0))).max(axis=1)


class SelectStrongest(SelectKBest):
    def fit(self, X, y):
        self.scores_ = _strongest(X, y)
        self.pvalues_ = None
        self.n_features_in_ = X.shape[1]
        return self


@pytest.mark.parametrize(
    "steps",
    [[], [SelectStrongest(k=5)]],
    ids=["nested penalty", "nested penalty and label-dependent choice"],
)
def test_pure_noise_scores_zero(steps):
    """Mean r over folds is slightly negative at most, as every fold's mean moves away from the others'."""
    rng = np.random.default_rng(3)
    X, Y = rng.standard_normal((100, 200)), rng.standard_normal((100, 200))
    found = evaluate(make_pipeline(*steps, RidgeEncoder(alphas=ALPHAS, scoring="pearson_r")), X, Y, cv=5)
    r = found.scores["pearson_r"]
    standard_error = np.sqrt(1 / 18 / r.size) * 2  # folds and targets share features
    assert abs(r.mean()) < 3 * standard_error


def test_the_same_choice_outside_the_folds_leaks():
    """The control: without nesting, noise is predicted."""
    rng = np.random.default_rng(3)
    X, Y = rng.standard_normal((100, 2000)), rng.standard_normal((100, 1))
    chosen = X[:, np.argsort(_strongest(X, Y))[-5:]]
    assert evaluate(RidgeEncoder(alphas=ALPHAS), chosen, Y, cv=5).overall("pearson_r") > 0.3
