"""`Responses` is an array to everyone who indexes, searches or checks, and a few bytes to everyone who sends it."""

from __future__ import annotations

import os
import pickle

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_validate, train_test_split
from sklearn.utils import _safe_indexing, check_array, indexable, shuffle
from sklearn.utils.validation import check_consistent_length, check_X_y

from featpipe.datasets import Responses
from featpipe.errors import DatasetError
from featpipe.model_selection import evaluate

N, TARGETS = 60, 7


@pytest.fixture
def matrix(rng):
    values = rng.standard_normal((N, TARGETS)).astype(np.float32)
    values[3, 2] = np.nan
    return values


@pytest.fixture
def y(matrix, tmp_path):
    return Responses.write(tmp_path / "responses.npy", matrix)


KEYS = {
    "slice": slice(5, 40, 3),
    "mask": np.arange(N) % 3 == 0,
    "integers": np.array([7, 3, 3, -1]),
    "list": [1, 2, 5],
    "none": np.array([], dtype=int),
    "rows": (np.arange(9), ...),
    "mask with ellipsis": (np.arange(N) < 9, ...),
    "columns": (slice(None), np.array([4, 1])),
    "last columns": (..., np.arange(TARGETS) > 4),
    "both": (slice(3, 9), slice(1, 4)),
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_indexing_is_that_of_the_array(y, matrix, key):
    chosen = y[key]
    assert isinstance(chosen, Responses)
    assert (chosen.shape, chosen.ndim, chosen.dtype, len(chosen)) == (
        matrix[key].shape,
        2,
        matrix.dtype,
        len(matrix[key]),
    )
    np.testing.assert_array_equal(np.asarray(chosen), matrix[key])
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(chosen))), matrix[key])


@pytest.mark.parametrize(
    "key", [3, -2, (3, ...), (slice(None), 2), (4, 2), (np.array([2, 4]), 1), (5, slice(2))]
)
def test_a_number_reads(y, matrix, key):
    np.testing.assert_array_equal(y[key], matrix[key])


def test_choices_follow_one_another(y, matrix):
    rows, columns = np.array([50, 3, 3, 20, 41]), np.array([6, 0, 2])
    chosen = y[rows][:, columns][1:][:, 1:]
    np.testing.assert_array_equal(np.asarray(chosen), matrix[rows][:, columns][1:][:, 1:])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (np.array([N]), "outside of 60"),
        (np.ones(3, dtype=bool), "mask of shape"),
        (np.array([0.5]), "not float64"),
        ((np.array([1]), np.array([2])), "pair them up"),
        ((0, 0, 0), "rows and columns"),
        (None, "rows and columns"),
    ],
)
def test_what_cannot_be_chosen_is_named(y, key, message):
    with pytest.raises(IndexError, match=message):
        y[key]


def test_an_array_is_always_a_copy(y, matrix):
    np.asarray(y)[:] = 0
    np.testing.assert_array_equal(np.array(y, dtype=np.float64), matrix.astype(np.float64))
    with pytest.raises(ValueError, match="without a copy"):
        np.array(y, copy=False)


@pytest.mark.parametrize("kind", ["all", "split", "groups", "bootstrap", "order"])
def test_little_is_sent_whatever_the_size(tmp_path, rng, kind):
    n, columns = 9841, 39548
    path = tmp_path / "large.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (n, columns))  # a hole in the file system
    rows = {
        "all": np.arange(n),
        "split": np.sort(rng.permutation(n)[:7872]),
        "groups": np.sort(rng.permutation(n)[:100]),
        "bootstrap": rng.integers(0, n, n),
        "order": rng.permutation(n),
    }[kind]
    chosen = Responses(path)[rows]
    sent = pickle.dumps(chosen)
    assert len(sent) <= (4_000 if kind in ("all", "split", "groups") else 40_000)
    assert pickle.loads(sent).shape == (len(rows), columns)


def test_equality_is_of_content(y, matrix, tmp_path):
    elsewhere = Responses.write(tmp_path / "again.npy", matrix[::-1])
    assert elsewhere[::-1] == y
    assert elsewhere != y
    assert y[:5] != y[:6]
    assert y.fingerprint != elsewhere.fingerprint


def test_what_is_remembered_by_hash_is_not_remembered_of_another_file(y, matrix):
    before = joblib.hash(y)
    assert joblib.hash(Responses(y.path)) == before != joblib.hash(y[:5])
    np.save(y.path, matrix + 1)
    os.utime(y.path, (1, 1))
    assert joblib.hash(Responses(y.path)) != before


def test_a_map_of_a_file_is_found_again(y, matrix):
    whole = np.load(y.path, mmap_mode="r")
    for part in (slice(None), slice(5, 20)):
        found = Responses.of(np.asarray(whole[part]))
        assert found.path == y.path
        np.testing.assert_array_equal(np.asarray(found), matrix[part])
    for other in (matrix, whole[:, :3], whole[::2], np.array(whole), whole.astype(np.float64)):
        assert Responses.of(other) is None


def test_a_file_that_is_none_or_changes_is_named(y, tmp_path):
    with pytest.raises(DatasetError, match="on every machine that takes part"):
        Responses(tmp_path / "nothing.npy")
    np.savez(tmp_path / "two.npz", a=np.zeros(3))
    with pytest.raises(DatasetError, match=r"no \.npy file"):
        Responses(tmp_path / "two.npz")
    np.save(y.path, np.zeros((3, 2)))
    with pytest.raises(DatasetError, match="when the run began"):
        np.asarray(y)


class Strict(RegressorMixin, BaseEstimator):
    """Ridge that insists on being given the lazy matrix, as every step of a search is."""

    def __init__(self, alpha=1.0):
        self.alpha = alpha

    def fit(self, X, y):
        assert isinstance(y, Responses)
        check_consistent_length(X, y)
        self.ridge_ = Ridge(self.alpha).fit(*check_X_y(X, y, multi_output=True))
        return self

    def predict(self, X):
        return self.ridge_.predict(X)


@pytest.fixture
def complete(tmp_path, rng):
    X = rng.standard_normal((N, 4))
    Y = (X @ rng.standard_normal((4, TARGETS)) + rng.standard_normal((N, TARGETS))).astype(np.float32)
    return X, Y, Responses.write(tmp_path / "complete.npy", Y)


def test_scikit_learn_takes_it_for_an_array(complete):
    _, Y, y = complete
    assert indexable(y)[0] is y
    np.testing.assert_array_equal(check_array(y), Y)
    assert isinstance(_safe_indexing(y, np.arange(4)), Responses)
    for part, expected in zip(
        train_test_split(y, random_state=0), train_test_split(Y, random_state=0), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(part), expected)
    np.testing.assert_array_equal(np.asarray(shuffle(y, random_state=0)), shuffle(Y, random_state=0))


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_searches_and_folds_find_what_they_find_in_memory(complete, n_jobs):
    X, Y, y = complete
    lazy, held = (
        GridSearchCV(model, {"alpha": [0.1, 10.0]}, cv=KFold(3), n_jobs=n_jobs)
        for model in (Strict(), Ridge())
    )
    np.testing.assert_array_equal(
        lazy.fit(X, y).cv_results_["mean_test_score"], held.fit(X, Y).cv_results_["mean_test_score"]
    )
    np.testing.assert_array_equal(
        cross_validate(clone(lazy), X, y, cv=4)["test_score"],
        cross_validate(clone(held), X, Y, cv=4)["test_score"],
    )
    np.testing.assert_array_equal(cross_val_predict(Strict(), X, y), cross_val_predict(Ridge(), X, Y))


def test_evaluate_finds_what_it_finds_in_memory(complete):
    X, Y, y = complete
    lazy, held = (evaluate(Ridge(), X, target, cv=3, return_predictions=True) for target in (y, Y))
    for metric, scores in held.scores.items():
        np.testing.assert_array_equal(lazy.scores[metric], scores)
    np.testing.assert_array_equal(lazy.predictions, held.predictions)


def test_nothing_is_sliced_as_metadata(complete):
    """scikit-learn slices any array of that length that is given beside y; here y alone has it."""
    assert not hasattr(complete[2], "iloc")
    assert Responses(complete[2].path)[np.arange(5)].shape == (5, TARGETS)
