"""Regions fitted together are fitted as each alone would be; what differs between regions stays apart."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import sklearn
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin, clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from featpipe.datasets._responses import Responses
from featpipe.encoding import LayerScaler, RidgeEncoder
from featpipe.encoding.regions._per_roi import PerROI
from featpipe.encoding.regions._target_view import TargetView
from featpipe.errors import RequestError
from featpipe.features import CachedFeatures
from featpipe.model_selection import evaluate
from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache

ROIS = {"lh.V1v": [0, 1, 2], "lh.FFA-1": [5, 3], "rh.V1v": np.arange(10) == 7}


@parametrize_with_checks([PerROI(RidgeEncoder()), PerROI(make_pipeline(StandardScaler(), RidgeEncoder()))])
def test_scikit_learn_is_at_home(estimator, check):
    check(estimator)


@pytest.fixture
def problem(rng):
    X = rng.standard_normal((60, 12)) + 1
    Y = X @ rng.standard_normal((12, 10)) + 3 * rng.standard_normal((60, 10))
    return X, Y


class Counting(RidgeEncoder):
    """A ridge that writes down what it is fitted to."""

    seen: list = []  # noqa: RUF012

    def fit(self, X, y, sample_weight=None, groups=None):
        self.seen.append((y, sample_weight, groups))
        return super().fit(X, y, sample_weight=sample_weight, groups=groups)


@pytest.fixture(autouse=True)
def _nothing_seen():
    Counting.seen.clear()


@pytest.mark.parametrize("rois", [None, ROIS, {"all": np.ones(10, dtype=bool), "some": [9, 1]}])
def test_equals_one_fit_of_all_targets_to_the_last_digit(problem, rois):
    X, Y = problem
    whole, found = RidgeEncoder().fit(X, Y), PerROI(Counting(), rois).fit(X, Y)
    assert len(Counting.seen) == 1
    assert Counting.seen[0][0] is Y  # not copied
    for name in ("coef_", "intercept_", "alpha_"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name), err_msg=name)
    np.testing.assert_array_equal(found.predict(X), whole.predict(X))
    assert found.score(X, Y) == whole.score(X, Y)


def _written(tmp_path, rng, ids):
    """Two layers of some stimuli in a cache."""
    cache = FeatureCache(tmp_path / "cache")
    manifest = StimulusManifest(tuple(ids.tolist()), tuple(f"{row:064x}" for row in range(len(ids))))
    cache.add_stimuli(manifest)
    for layer in ("early", "late"):
        spec = FeatureSpec("imported:test", "0" * 64, layer, None)
        writer = cache.writer(spec, manifest.digest, row_shape=(6,), dims=("channel",))
        for shard in writer.array.missing:
            n_rows = len(writer.array.layout.rows_of(shard))
            writer.publish(shard, rng.standard_normal((n_rows, 6)).astype(np.float32), {})
    return tmp_path / "cache"


def test_every_region_reads_a_layer_of_its_own(tmp_path, rng):
    ids = np.array([f"image_{row}" for row in range(60)])
    cache = _written(tmp_path, rng, ids)
    early, late = (CachedFeatures(cache, layers=layer).fit(ids).transform(ids) for layer in ("early", "late"))
    Y = np.column_stack([early @ rng.standard_normal(6), late @ rng.standard_normal(6)])
    pipeline = Pipeline([("features", CachedFeatures(cache, layers="early")), ("ridge", RidgeEncoder())])
    model = PerROI(pipeline, {"lh.V1v": [0], "lh.FFA-1": [1]})
    found = evaluate(model, ids, Y, groups=np.arange(60) // 2).scores["pearson_r"].mean(axis=0)
    assert found[0] > 0.9 > 0.5 > found[1]
    model.set_params(params={"lh.FFA-1": {"features__layers": ["late"]}})
    assert (evaluate(model, ids, Y, groups=np.arange(60) // 2).scores["pearson_r"] > 0.9).all()
    with pytest.raises(AttributeError, match="steps of their own"):
        _ = model.fit(ids, Y).coef_


def test_targets_in_no_region_form_another(problem):
    X, Y = problem
    found = PerROI(RidgeEncoder(), ROIS).fit(X, Y)
    assert list(found.rois_) == list(found.estimators_) == [*ROIS, "other"]
    np.testing.assert_array_equal(found.rois_["other"], [4, 6, 8, 9])


def test_estimators_of_regions_are_views_of_their_targets(problem):
    X, Y = problem
    whole, found = RidgeEncoder().fit(X, Y), PerROI(RidgeEncoder(), ROIS).fit(X, Y)
    for name, positions in found.rois_.items():
        view = found.estimators_[name]
        np.testing.assert_array_equal(view.predict(X), whole.predict(X)[:, positions])
        for result in ("coef_", "intercept_", "alpha_", "best_score_"):
            np.testing.assert_array_equal(getattr(view, result), getattr(whole, result)[positions])
    assert np.shares_memory(found.estimators_["lh.V1v"].coef_, found.coef_)
    assert found.estimators_["lh.V1v"].n_features_in_ == 12
    with pytest.raises(AttributeError, match="nonsense_"):
        _ = found.estimators_["lh.V1v"].nonsense_


def test_a_view_reaches_the_last_step_of_a_pipeline(problem):
    X, Y = problem
    pipeline = make_pipeline(LayerScaler(), RidgeEncoder())
    whole, found = clone(pipeline).fit(X, Y), PerROI(pipeline, ROIS).fit(X, Y)
    np.testing.assert_array_equal(found.estimators_["lh.FFA-1"].alpha_, whole[-1].alpha_[[5, 3]])
    np.testing.assert_array_equal(found.coef_, whole[-1].coef_)
    np.testing.assert_array_equal(found.predict(X), whole.predict(X))


def test_parameters_of_one_region_change_that_region_alone(problem):
    X, Y = problem
    plain = PerROI(Counting(), ROIS).fit(X, Y)
    found = PerROI(Counting(), ROIS, params={"lh.FFA-1": {"alpha": 10.0}, "rh.V1v": {"cv": 5}}).fit(X, Y)
    assert [y.shape[1] for y, *_ in Counting.seen] == [
        10,
        8,
        2,
    ]  # what resolves to equal parameters is one fit
    expected = RidgeEncoder(alpha=10.0).fit(X, Y[:, [5, 3]])
    np.testing.assert_allclose(found.estimators_["lh.FFA-1"].predict(X), expected.predict(X), rtol=1e-9)
    others = np.setdiff1d(np.arange(10), [3, 5])
    np.testing.assert_allclose(found.predict(X)[:, others], plain.predict(X)[:, others], rtol=1e-9)
    np.testing.assert_array_equal(found.alpha_[[3, 5]], 10.0)


class Mean(RegressorMixin, BaseEstimator):
    """Predicts the mean of all its targets: no target is treated alone."""

    def fit(self, X, y):
        self.level_, self.shape_ = y.mean(), y.shape[1]
        return self

    def predict(self, X):
        return np.full((len(X), self.shape_), self.level_)


class Loud(TransformerMixin, BaseEstimator):
    """A transformer that might look at targets."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X


def test_regions_of_an_estimator_that_mixes_targets_are_fitted_apart(problem):
    X, Y = problem
    found = PerROI(Mean(), ROIS).fit(X, Y)
    predicted = found.predict(X)
    for name, positions in found.rois_.items():
        np.testing.assert_allclose(predicted[:, positions], Y[:, positions].mean())
        assert isinstance(found.estimators_[name], Mean)
    with pytest.raises(AttributeError, match="coef_"):
        _ = found.coef_


@pytest.mark.parametrize("search", [False, True])
def test_searches_and_unknown_transformers_are_fitted_apart(problem, search):
    X, Y = problem
    ridge = RidgeEncoder(alpha=1.0)
    estimator = GridSearchCV(ridge, {"alpha": [1.0, 1e3]}) if search else make_pipeline(Loud(), ridge)
    found = PerROI(estimator, ROIS).fit(X, Y)
    for name, positions in found.rois_.items():
        expected = clone(estimator).fit(X, np.take(Y, positions, axis=1))
        np.testing.assert_array_equal(found.estimators_[name].predict(X), expected.predict(X))


def test_a_target_in_several_regions_gets_their_mean(problem):
    X, Y = problem
    rois = {"a": [0, 1, 2], "b": [2, 3], "c": [2]}
    found = PerROI(RidgeEncoder(alpha=1.0), rois, params={"b": {"alpha": 1e3}}).fit(X, Y)
    weak, strong = (RidgeEncoder(alpha=alpha).fit(X, Y) for alpha in (1.0, 1e3))
    expected = (2 * weak.predict(X)[:, 2] + strong.predict(X)[:, 2]) / 3
    np.testing.assert_allclose(found.predict(X)[:, 2], expected)
    np.testing.assert_allclose(X @ found.coef_.T + found.intercept_, found.predict(X))
    np.testing.assert_allclose(found.predict(X)[:, 3], strong.predict(X)[:, 3])
    with pytest.raises(AttributeError, match="several regions"):
        _ = found.alpha_


@pytest.mark.parametrize("estimator", [Counting(), make_pipeline(LayerScaler(), Counting())])
def test_targets_of_a_region_share_a_penalty(problem, estimator):
    X, Y = problem
    Y[:, :3] *= [1, 3, 9]
    rois = {"a": [2, 0, 1], "b": [3, 4, 5], "c": [5, 6, 0]}
    found = PerROI(estimator, rois, penalty="group").fit(X, Y)
    assert [y.shape[1] for y, *_ in Counting.seen] == [12]  # at once, 0 and 5 in two columns each
    shared = clone(estimator).set_params(
        **{name: "shared" for name in estimator.get_params() if "penalty" in name}
    )
    predicted = {}
    for name, positions in found.rois_.items():
        expected = clone(shared).fit(X, np.take(Y, positions, axis=1))
        predicted[name] = expected.predict(X)
        np.testing.assert_allclose(found.estimators_[name].predict(X), predicted[name], rtol=1e-9)
        assert len(set(found.estimators_[name].alpha_)) == 1
    both = (predicted["a"][:, 1] + predicted["c"][:, 2]) / 2
    np.testing.assert_allclose(found.predict(X)[:, 0], both, rtol=1e-9)


def test_regions_that_do_not_overlap_share_penalties_without_a_copy(problem):
    X, Y = problem
    found = PerROI(Counting(), ROIS, penalty="group").fit(X, Y)
    assert Counting.seen[0][0] is Y
    labels = np.array([0, 0, 0, 1, 3, 1, 3, 2, 3, 3])
    np.testing.assert_array_equal(found.coef_, RidgeEncoder(penalty=labels).fit(X, Y).coef_)
    np.testing.assert_array_equal(found.alpha_, RidgeEncoder(penalty=labels).fit(X, Y).alpha_)


def test_a_search_inside_a_region_shares_its_penalty(problem):
    X, Y = problem
    search = GridSearchCV(RidgeEncoder(), {"cv": [3, 5]})
    found = PerROI(search, ROIS, penalty="group").fit(X, Y)
    assert all(one.best_estimator_.penalty == "shared" for one in found.estimators_.values())


def test_a_response_of_one_dimension_stays_one(problem):
    X, Y = problem
    one, found = RidgeEncoder().fit(X, Y[:, 0]), PerROI(RidgeEncoder(), {"a": [0], "b": [0]}).fit(X, Y[:, 0])
    np.testing.assert_array_equal(found.predict(X), one.predict(X))
    np.testing.assert_array_equal(found.coef_, one.coef_)
    assert found.alpha_ == one.alpha_


def test_responses_that_stay_in_a_file_are_read_by_who_fits_them(problem, tmp_path):
    X, Y = problem
    lazy = Responses.write(tmp_path / "responses.npy", Y)
    params = {"lh.FFA-1": {"alpha": 10.0}}
    found, expected = (PerROI(Counting(), ROIS, params=params).fit(X, y) for y in (lazy, Y))
    np.testing.assert_array_equal(found.predict(X), expected.predict(X))
    assert [type(y) for y, *_ in Counting.seen[:2]] == [Responses, Responses]


@pytest.mark.parametrize("routing", [False, True])
def test_weights_and_groups_reach_every_fit(problem, routing):
    X, Y = problem
    weight, groups = np.arange(60) % 3 + 1.0, np.arange(60) // 2
    with sklearn.config_context(enable_metadata_routing=routing):
        model = PerROI(Counting(), ROIS, params={"rh.V1v": {"cv": 3}})
        model.fit(X, Y, sample_weight=weight, groups=groups)
    for _, *seen in Counting.seen:
        np.testing.assert_array_equal(seen, [weight, groups])


def test_weights_reach_the_end_of_a_pipeline(problem):
    X, Y = problem
    weight = np.arange(60) % 3 + 1.0
    with sklearn.config_context(enable_metadata_routing=True):
        scaler = LayerScaler().set_fit_request(sample_weight=False)
        found = make_pipeline(scaler, PerROI(RidgeEncoder(), ROIS)).fit(X, Y, sample_weight=weight)
        expected = make_pipeline(scaler, RidgeEncoder()).fit(X, Y, sample_weight=weight)
    np.testing.assert_array_equal(found.predict(X), expected.predict(X))


def test_missing_responses_and_workers_change_nothing(problem):
    X, Y = problem
    Y[:7, 2] = np.nan
    params = {"rh.V1v": {"cv": 3}}
    serial = PerROI(RidgeEncoder(), ROIS, params=params).fit(X, Y)
    spread = PerROI(RidgeEncoder(), ROIS, params=params, n_jobs=2).fit(X, Y)
    np.testing.assert_allclose(spread.predict(X), serial.predict(X), rtol=1e-9)
    np.testing.assert_array_equal(serial.coef_[2], RidgeEncoder().fit(X, Y).coef_[2])


def test_a_search_over_it_sets_parameters_of_its_estimator(problem):
    X, Y = problem
    search = GridSearchCV(
        PerROI(RidgeEncoder(), ROIS), {"estimator__alphas": [[1e6], [0.1, 1.0]]}, cv=KFold(3)
    ).fit(X, Y)
    assert search.best_params_ == {"estimator__alphas": [0.1, 1.0]}
    again = clone(search.best_estimator_)
    assert again.get_params()["estimator__alphas"] == [0.1, 1.0]
    assert not hasattr(again, "estimators_")


def test_a_fitted_model_travels_once(problem):
    X, Y = problem
    found = PerROI(RidgeEncoder(), {f"lh.{number}": [number] for number in range(10)}).fit(X, Y)
    for again in (pickle.loads(pickle.dumps(found)), _through_skops(found)):
        np.testing.assert_array_equal(again.predict(X), found.predict(X))
        np.testing.assert_array_equal(again.estimators_["lh.3"].coef_, found.coef_[3:4])
        assert len({id(view.estimator) for view in again.estimators_.values()}) == 1


def _through_skops(model):
    skops = pytest.importorskip("skops.io")
    stored = skops.dumps(model)
    return skops.loads(stored, trusted=skops.get_untrusted_types(data=stored))


@pytest.mark.parametrize(
    ("rois", "said"),
    [
        ({"a": []}, "'a' has no targets"),
        ({"a": np.zeros(10, dtype=bool)}, "'a' has no targets"),
        ({"a": np.ones(9, dtype=bool)}, "9 entries for 10 targets"),
        ({"a": [3, 10]}, "positions from 3 to 10"),
        ({"a": [-1]}, "positions from -1"),
        ({"a": [1, 1]}, "names some targets twice"),
        ({"a": [0.5]}, "of float64"),
        ({("lh", "V1v"): [1]}, "Names of regions are texts"),
        ({"other": [1]}, "another name"),
        ([[1, 2]], "must be a mapping"),
    ],
)
def test_regions_that_make_no_sense_are_refused(problem, rois, said):
    with pytest.raises(RequestError, match=said):
        PerROI(RidgeEncoder(), rois).fit(*problem)


def test_requests_that_nobody_can_meet_are_refused(problem):
    with pytest.raises(RequestError, match=r"region 'rh.V4', but there are 'lh.V1v'"):
        PerROI(RidgeEncoder(), ROIS, params={"rh.V4": {}}).fit(*problem)
    with pytest.raises(RequestError, match="penalty must be one of"):
        PerROI(RidgeEncoder(), penalty="roi").fit(*problem)
    with pytest.raises(RequestError, match="Ridge has none"):
        PerROI(Ridge(), penalty="group").fit(*problem)


def test_a_result_whose_axis_of_targets_is_unknown_is_not_guessed(problem):
    X, Y = problem
    model = RidgeEncoder().fit(X, Y)
    model.square_ = np.eye(10)
    view = TargetView(model, np.array([1, 3]), 10)
    with pytest.raises(AttributeError, match="target_axes"):
        _ = view.square_
    model.target_axes = {"square_": 1}
    np.testing.assert_array_equal(view.square_, np.eye(10)[:, [1, 3]])
