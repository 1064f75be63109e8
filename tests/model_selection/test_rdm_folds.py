"""Folds over stimulus sets, evaluation of RDMs, and steps that were fitted elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline

from featpipe import RDMs, evaluate
from featpipe.errors import RequestError
from featpipe.model_selection import SetKFold, get_scorer, make_cv
from featpipe.rsa import concat, rdm_rho


class Seen(TransformerMixin, BaseEstimator):
    """Pass ids on and remember those of the fit."""

    def fit(self, X, y=None):
        self.training_ids_ = np.asarray(X)
        return self

    def transform(self, X):
        return X


class Fitted(BaseEstimator):
    """Hold a fitted estimator as a search does."""

    def __init__(self, found=None):
        self.best_estimator_ = found


class Distances(BaseEstimator):
    """The RDM of the rows of a table by their squared distances, times `sign`."""

    def __init__(self, table=None, sign=1):
        self.table = table
        self.sign = sign

    def fit(self, X, y):
        assert isinstance(y, RDMs)
        assert np.array_equal(y.ids, X)
        self.fitted_ = True
        return self

    def predict(self, X):
        rows = np.stack([self.table[name] for name in X.tolist()])
        return RDMs(self.sign * ((rows[:, None] - rows) ** 2).sum(-1), X)


@pytest.fixture
def planted(rng):
    """Two sets of 40 and 30 stimuli, ids, features, and the RDMs of three subjects."""
    ids = np.array([f"a/{i}" for i in range(40)] + [f"b/{i}" for i in range(30)])
    table = {name: rng.normal(size=5) for name in ids.tolist()}
    rows = np.stack(list(table.values()))
    whole = ((rows[:, None] - rows) ** 2).sum(-1)[None].repeat(3, 0)
    parts = [RDMs(whole[:, s, s], ids[s]) for s in (slice(0, 40), slice(40, 70))]
    return ids, table, concat(parts)


def test_rdms_are_scored_by_metrics_of_rdms(planted):
    ids, table, y = planted
    found = evaluate(make_pipeline(Distances(table)), ids, y, cv="set")
    assert list(found.scores) == ["rdm_rho", "rdm_r2", "rdm_percent"]
    with pytest.raises(RequestError, match=r"Unknown metric 'pearson_r'\. Choose from rdm_rho"):
        evaluate(make_pipeline(Distances(table)), ids, y, cv="set", scoring="pearson_r")
    with pytest.raises(RequestError, match=r"Unknown metric 'rdm_rho'\. Choose from pearson_r"):
        evaluate(make_pipeline(Distances(table)), ids, np.zeros((len(ids), 2)), cv="set", scoring="rdm_rho")


def test_every_fold_has_its_share_of_every_set(planted):
    ids = planted[0]
    with pytest.warns(UserWarning, match="only 15 stimuli in a fold"):
        folds = list(SetKFold(2).split(ids))
    shares = [[sum(i.startswith(s) for i in ids[test]) for s in "ab"] for _, test in folds]
    assert shares == [[20, 15], [20, 15]]
    assert np.array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(70))


def test_folds_are_not_in_the_order_of_the_stimuli():
    ids = np.array([f"a/{i}" for i in range(80)])
    test = next(SetKFold(4).split(ids))[1]
    assert len(np.unique(test // 20)) == 4  # all four categories, not the first


@pytest.mark.parametrize("n", [1, 31])
def test_impossible_numbers_of_folds(planted, n):
    with pytest.raises(RequestError, match=f"{n} folds cannot be made of stimulus sets of 40, 30 stimuli"):
        next(SetKFold(n).split(planted[0]))


def test_rows_without_ids_have_no_sets(rng):
    with pytest.raises(RequestError, match="need stimulus ids"):
        next(SetKFold(2).split(rng.normal(size=(50, 2))))


def test_evaluate_gives_a_perfect_model_its_score_and_keeps_nothing_across_folds(planted):
    ids, table, y = planted
    pipeline = make_pipeline(Distances(table))
    found = evaluate(pipeline, ids, y, cv="set", scoring=["rdm_rho", "rdm_r2"], return_predictions=True)
    assert np.allclose(found.fold_scores("rdm_rho"), 1)
    assert found.scores["rdm_r2"].shape == (2, 3)
    assert np.isnan(found.predictions.take(["a/1", "b/1"]).values[0, 0, 1])
    assert np.allclose(rdm_rho(y, found.predictions), 1)


def test_an_int_keeps_shares_of_sets(planted):
    ids, table, y = planted
    with pytest.warns(UserWarning, match="only 15 stimuli"):
        found = evaluate(make_pipeline(Distances(table)), ids, y, cv=2, scoring="rdm_rho")
    assert [len(test) for test in found.test_ids] == [35, 35]


def test_a_search_sees_the_sign(planted):
    ids, table, y = planted
    pipeline = make_pipeline(Distances(table))
    search = GridSearchCV(
        pipeline, {"distances__sign": [-1, 1]}, scoring=get_scorer("rdm_rho"), cv=SetKFold(2)
    )
    with pytest.warns(UserWarning, match="only 15 stimuli"):
        search.fit(ids, y)
    assert search.best_params_ == {"distances__sign": 1}
    assert search.cv_results_["mean_test_score"] == pytest.approx([-1, 1])


@pytest.mark.parametrize("name", ["rdm_r2", "rdm_percent"])
def test_squares_cannot_lead_a_search(name):
    with pytest.raises(RequestError, match="wrong sign: choose 'rdm_rho'"):
        get_scorer(name)


def test_a_frozen_step_that_saw_a_test_stimulus_is_refused(planted):
    ids, table, y = planted
    seen = Seen().fit(ids[:3])
    pipeline = make_pipeline(FrozenEstimator(seen), Distances(table))
    with pytest.raises(RequestError, match="Fold 0 would score 3 stimuli that the frozen Seen was fitted on"):
        evaluate(pipeline, ids, y, cv="set", scoring="rdm_rho")


def test_a_frozen_step_from_elsewhere_is_welcome(planted):
    ids, table, y = planted
    elsewhere = Seen().fit(np.array(["other/1"]))
    pipeline = make_pipeline(FrozenEstimator(elsewhere), Distances(table))
    assert evaluate(pipeline, ids, y, cv="set", scoring="rdm_rho").overall("rdm_rho") == pytest.approx(1)


HIDING = {
    "a union inside": lambda seen: FrozenEstimator(FeatureUnion([("one", seen)])),
    "a pipeline in a pipeline": lambda seen: FrozenEstimator(make_pipeline(make_pipeline(seen))),
    "what a search found": lambda seen: FrozenEstimator(Fitted(seen)),
    "a candidate of a search": lambda seen: GridSearchCV(
        Pipeline([("step", "passthrough"), ("end", Distances())]), {"step": [FrozenEstimator(seen)]}
    ),
    "one of several grids": lambda seen: GridSearchCV(
        Pipeline([("step", "passthrough"), ("end", Distances())]), [{}, {"step": [FrozenEstimator(seen)]}]
    ),
}


@pytest.mark.parametrize("hide", HIDING.values(), ids=HIDING)
def test_frozen_steps_are_found_wherever_they_hide(planted, hide):
    ids, table, y = planted
    pipeline = make_pipeline(hide(Seen().fit(ids[:3])), Distances(table))
    with pytest.raises(RequestError, match="the frozen Seen was fitted on, first 'a/0'"):
        evaluate(pipeline, ids, y, cv="set", scoring="rdm_rho")


def test_frozen_pipelines_are_looked_into(planted):
    ids, table, y = planted
    inner = make_pipeline(Seen()).fit(ids[:1])
    with pytest.raises(RequestError, match="the frozen Seen was fitted on, first 'a/0'"):
        evaluate(make_pipeline(FrozenEstimator(inner), Distances(table)), ids, y, cv="set", scoring="rdm_rho")


def test_make_cv_by_set(planted):
    assert repr(make_cv(3, 70, by_set=True)) == "SetKFold(3, random_state=0)"
    groups = np.repeat(np.arange(35), 2)
    assert type(make_cv(3, 70, groups=groups, by_set=True)).__name__ == "GroupKFold"
