"""RDMs as ``y`` of scikit-learn, joblib and dask: stimuli are split, pairs never, and nothing is confused."""

from __future__ import annotations

import pickle
import sys

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin, clone
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    ShuffleSplit,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    train_test_split,
)
from sklearn.pipeline import make_pipeline
from sklearn.utils import check_consistent_length, indexable, resample, shuffle
from sklearn.utils._indexing import _safe_indexing
from sklearn.utils.validation import _num_samples

from featpipe.rsa import RDMs, concat

N_STIMULI = 30


class Weighted(RegressorMixin, BaseEstimator):
    """Predicts 1 - r of the rows of X, whose second half counts ``weight``; checks what it was given."""

    def __init__(self, weight=1.0):
        self.weight = weight

    def fit(self, X, y):
        assert isinstance(y, RDMs)
        assert X[:, 0].astype(int).tolist() == [
            int(i.partition("/")[2]) for i in y.ids
        ]  # rows are its stimuli
        self.training_ids_ = y.ids
        return self

    def predict(self, X):
        rows = X[:, 1:].copy()
        rows[:, rows.shape[1] // 2 :] *= self.weight
        return RDMs(1 - np.corrcoef(rows), [f"{int(k) % 2}/{int(k)}" for k in X[:, 0]])

    def score(self, X, y):
        predicted = self.predict(X)
        assert predicted.ids.tolist() == y.ids.tolist()
        assert not set(y.ids) & set(self.training_ids_)
        measured = ~np.isnan(y.upper()[0])
        return np.mean(
            [np.corrcoef(rdm[measured], predicted.upper()[0, measured])[0, 1] for rdm in y.upper()]
        )


class Numbers(TransformerMixin, BaseEstimator):
    """Ids to rows, as the first step of our pipelines does."""

    def __init__(self, table=None):
        self.table = table

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return self.table[[int(i.partition("/")[2]) for i in X]]


@pytest.fixture(scope="module")
def X():
    rng = np.random.default_rng(0)
    return np.column_stack([np.arange(N_STIMULI), rng.standard_normal((N_STIMULI, 20))])


@pytest.fixture(scope="module")
def y(X):
    """Two sets, even and odd stimuli, measured in two subjects; planted weight 3."""
    ids = [f"{k % 2}/{k}" for k in range(N_STIMULI)]
    full = RDMs(Weighted(weight=3.0).predict(X).values.repeat(2, axis=0), ids)
    order = np.argsort(np.arange(N_STIMULI) % 2, kind="stable")
    joined = concat([full[order[:15]], full[order[15:]]])
    return joined.take(ids)


SPLITTERS = {
    "KFold": KFold(4),
    "shuffled KFold": KFold(4, shuffle=True, random_state=0),
    "ShuffleSplit": ShuffleSplit(3, test_size=0.3, random_state=0),
    "GroupKFold": GroupKFold(3),
    "StratifiedKFold of sets": StratifiedKFold(3, shuffle=True, random_state=0),
    "one set out": LeaveOneGroupOut(),
}


def splits(name, X, y):
    """The folds of a splitter; strata and sets are given in place of y, as a splitter cannot sort RDMs."""
    groups = {"GroupKFold": np.arange(N_STIMULI) // 3, "one set out": y.sets}.get(name)
    return list(SPLITTERS[name].split(X, y.sets if "Stratified" in name else y, groups))


def test_it_counts_as_one_column(X, y):
    assert (len(y), y.shape, y.ndim, _num_samples(y)) == (N_STIMULI, (N_STIMULI,), 1, N_STIMULI)
    check_consistent_length(X, y)
    assert indexable(X, y)[1] is y
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        check_consistent_length(X, y[:7])


@pytest.mark.parametrize("name", SPLITTERS)
def test_splitters_split_stimuli(X, y, name):
    for train, test in splits(name, X, y):
        for rows in (train, test):
            part = _safe_indexing(y, rows)
            assert part == y[rows]
            assert part.values.shape == (2, len(rows), len(rows))
        assert not set(y[train].ids) & set(y[test].ids)


@pytest.mark.parametrize("name", SPLITTERS)
def test_cross_validate_scores_the_pairs_within_each_test_fold(X, y, name):
    folds = splits(name, X, y)
    found = cross_validate(Weighted(), X, y, cv=folds)["test_score"]
    by_hand = [Weighted().fit(X[train], y[train]).score(X[test], y[test]) for train, test in folds]
    np.testing.assert_allclose(found, by_hand)


def test_splitters_are_passed_as_they_are(X, y):
    groups = np.arange(N_STIMULI) // 3
    for cv in (3, KFold(3), ShuffleSplit(2, test_size=0.3, random_state=0)):
        assert np.isfinite(cross_val_score(Weighted(), X, y, cv=cv)).all()
    assert np.isfinite(cross_val_score(Weighted(), X, y, cv=GroupKFold(3), groups=groups)).all()


@pytest.mark.parametrize("backend", ["sequential", "threading", "loky"])
def test_grid_search_finds_what_was_planted(X, y, backend):
    with joblib.parallel_backend(backend, n_jobs=1 if backend == "sequential" else 2):
        search = GridSearchCV(Weighted(), {"weight": [0.0, 1.0, 3.0]}, cv=3).fit(X, y)
    assert search.best_params_ == {"weight": 3.0}
    assert search.best_estimator_.training_ids_.tolist() == y.ids.tolist()
    assert search.best_score_ == pytest.approx(1)


def test_a_pipeline_of_ids(X, y):
    pipeline = make_pipeline(Numbers(table=X), Weighted(weight=3.0))
    scores = cross_validate(
        pipeline, y.ids, y, cv=KFold(3, shuffle=True, random_state=1), return_train_score=False
    )
    np.testing.assert_allclose(scores["test_score"], 1)
    search = GridSearchCV(pipeline, {"weighted__weight": [0.0, 3.0]}, cv=3)
    np.testing.assert_allclose(cross_val_score(search, y.ids, y, cv=3), 1)  # nested


@pytest.mark.slow
def test_dask_gets_the_target_once(X, y, monkeypatch):
    """It is scattered as data, not embedded in each task: more candidates pickle it no more often."""
    distributed = pytest.importorskip("distributed")
    pickled = []
    monkeypatch.setattr(
        RDMs, "__getstate__", lambda self: pickled.append(1) or self.__dict__.copy(), raising=False
    )
    options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
    counts = []
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster):
        for weights in ([0.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]):
            pickled.clear()
            with joblib.parallel_config(backend="dask", wait_for_workers_timeout=30):
                search = GridSearchCV(Weighted(), {"weight": weights}, cv=3).fit(X, y)
            assert search.best_params_ == {"weight": 3.0}
            counts.append(len(pickled))
    assert counts == [1, 1]


def test_dask_knows_how_large_it_is(y):
    """Its joblib backend scatters arguments of more than 1 kB by `sys.getsizeof`, and embeds smaller ones."""
    assert sys.getsizeof(y) > y.values.nbytes
    sizeof = pytest.importorskip("dask.sizeof").sizeof
    assert sizeof(y) > y.values.nbytes


def test_clone_and_pickle(X, y):
    estimator = clone(Weighted(weight=2.0)).fit(X, y)
    for again in (pickle.loads(pickle.dumps(y)), joblib.hash(y) and clone(y, safe=False)):
        assert again == y
    assert joblib.hash(pickle.loads(pickle.dumps(y))) == joblib.hash(y)
    assert clone(estimator).get_params() == {"weight": 2.0}
    assert pickle.loads(pickle.dumps(estimator)).predict(X) == estimator.predict(X)


def test_other_tools_of_sklearn_that_index(X, y):
    train, test = train_test_split(y, test_size=10, random_state=0)
    assert sorted([*train.ids, *test.ids]) == sorted(y.ids)
    assert shuffle(y, random_state=0).take(y.ids) == y
    drawn = resample(y, random_state=0)
    twice = drawn.ids[:, None] == drawn.ids
    np.fill_diagonal(twice, False)
    assert twice.any()
    assert np.isnan(drawn.values[:, twice]).all()


@pytest.mark.parametrize(
    "index", [[0, 2], np.array([True] * 2 + [False] * 28), slice(1, 4), (np.array([1, 5]), ...)]
)
def test_every_index_that_sklearn_sends(y, index):
    rows = np.arange(N_STIMULI)[index[0] if isinstance(index, tuple) else index]
    assert y[index].ids.tolist() == y.ids[rows].tolist()
    if not isinstance(index, tuple):
        assert _safe_indexing(y, index) == y[index]


def test_it_is_no_array(y):
    """As an array it would be a column of objects, or three axes of which the first is subjects."""
    assert not hasattr(y, "__array__")
    for dtype in (None, float, object):
        with pytest.raises(TypeError, match="object to sequence"):
            np.asarray(y, dtype=dtype)
    with pytest.raises(TypeError, match="not iterable"):
        iter(y)


def test_strata_cannot_be_made_of_rdms(X, y):
    with pytest.raises(TypeError, match="object to sequence"):
        list(StratifiedKFold(3).split(X, y))


def test_cross_val_predict_is_not_for_rdms(X, y):
    """It puts the folds' predictions under one another as rows; `evaluate(…, return_predictions=True)` does not."""
    with pytest.raises(TypeError, match="object to sequence"):
        cross_val_predict(Weighted(), X, y, cv=3)
