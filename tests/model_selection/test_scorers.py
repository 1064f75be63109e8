"""Names of scores work in scikit-learn's searches and in processes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV

from featpipe.errors import RequestError
from featpipe.metrics import METRICS
from featpipe.model_selection import get_metrics, get_scorer


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_scorer_is_the_mean_over_targets_also_after_pickling(rng, name):
    X, Y = rng.standard_normal((30, 4)), rng.standard_normal((30, 3))
    model = Ridge().fit(X, Y)
    scorer = pickle.loads(pickle.dumps(get_scorer(name)))
    assert scorer(model, X, Y) == pytest.approx(METRICS[name](Y, model.predict(X)).mean())


def test_a_scorer_drives_a_search(rng):
    X = rng.standard_normal((60, 4))
    Y = X @ rng.standard_normal((4, 3))
    search = GridSearchCV(Ridge(), {"alpha": [1e-3, 1e6]}, scoring=get_scorer("r2")).fit(X, Y)
    assert search.best_params_ == {"alpha": 1e-3}


def test_other_names_are_those_of_scikit_learn():
    model = DummyRegressor().fit([[0.0], [1.0]], [0.0, 2.0])
    assert get_scorer("neg_mean_absolute_error")(model, [[0.0]], [0.0]) == -1.0


def test_metrics_by_name_list_and_mapping():
    assert list(get_metrics("r2")) == ["r2"]
    assert list(get_metrics(("pearson_r", "r2"))) == ["pearson_r", "r2"]
    assert get_metrics({"mine": np.subtract}) == {"mine": np.subtract}


@pytest.mark.parametrize(("scoring", "message"), [("spearman", "metric 'spearman'"), ((), "No metric")])
def test_unknown_metrics_name_the_choices(scoring, message):
    with pytest.raises(RequestError, match=f"{message}.*pearson_r, r2"):
        get_metrics(scoring)
