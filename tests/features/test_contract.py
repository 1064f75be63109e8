"""CachedFeatures is an ordinary scikit-learn transformer whose samples are ids."""

from __future__ import annotations

import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline

from featpipe import CachedFeatures, LayerScaler, RidgeEncoder
from featpipe.features import READS
from featpipe.store import CachedArray
from featpipe.testing import check_ids_estimator


def _pipeline(root, **given):
    features = CachedFeatures(root, layers=given.pop("layers", ["layer1", "layer2"]), **given)
    return make_pipeline(features, LayerScaler(), RidgeEncoder(alphas=[1.0, 100.0], cv=3))


@pytest.fixture
def responses(filled):
    _, rows = filled
    return (rows["layer2"] @ np.random.default_rng(5).standard_normal((5, 4))).astype(np.float32)


@pytest.fixture
def reads(monkeypatch):
    """List the layers that are read from disk."""
    seen, read = [], CachedArray.read

    def counted(self, *args, **kwargs):
        seen.append(self.spec.layer)
        return read(self, *args, **kwargs)

    monkeypatch.setattr(CachedArray, "read", counted)
    return seen


@pytest.mark.parametrize("output", ["matrix", "blocks"])
def test_keeps_the_contract_of_ids(filled, ids, responses, output):
    features = CachedFeatures(filled[0], layers=["layer1", "layer2"], output=output)
    check_ids_estimator(features, ids, responses)


def test_a_pipeline_keeps_the_contract_of_ids(filled, ids, responses):
    check_ids_estimator(_pipeline(filled[0], output="blocks"), ids, responses)


def test_clone_and_parameters_go_round(filled):
    features = CachedFeatures(filled[0], "timm:tiny", ["layer1"], "mean", weights="made up", output="blocks")
    again = clone(features)
    assert again.get_params() == features.get_params()
    assert again.set_params(layers=["layer2"]).layers == ["layer2"]
    assert features.layers == ["layer1"]


def test_travels_in_a_few_hundred_bytes(filled, ids):
    features = CachedFeatures(str(filled[0]), "timm:tiny", ["layer1"], "mean")
    assert len(pickle.dumps(features)) < 1000
    fitted = pickle.loads(pickle.dumps(features.fit(ids)))
    assert len(pickle.dumps(fitted)) < 3000
    np.testing.assert_array_equal(fitted.transform(ids[:3]), features.transform(ids[:3]))


def test_transform_before_fit_says_so(filled, ids):
    with pytest.raises(NotFittedError, match="not fitted"):
        CachedFeatures(filled[0]).transform(ids)


def test_a_layer_is_a_hyperparameter(filled, ids, responses):
    grid = {"cachedfeatures__layers": [["layer1"], ["layer2"]]}
    search = GridSearchCV(_pipeline(filled[0]), grid, cv=3).fit(ids, responses)
    assert search.best_params_ == {"cachedfeatures__layers": ["layer2"]}  # what the responses are made of


def test_each_layer_is_read_once_whatever_asks_for_it(filled, ids, responses, reads):
    grid = {"cachedfeatures__layers": [["layer1"], ["layer2"], ["layer1", "layer2"]]}
    GridSearchCV(_pipeline(filled[0]), grid, cv=4).fit(ids, responses)
    assert sorted(reads) == ["layer1", "layer2"]


def test_layers_beyond_the_limit_are_not_held(filled, ids, reads):
    READS.limit = filled[1]["layer2"].nbytes
    features = CachedFeatures(filled[0], layers=["layer1", "layer2"]).fit(ids)
    first, second = features.transform(ids[:4]), features.transform(ids[:4])
    np.testing.assert_array_equal(first, second)
    assert sorted(reads) == ["layer1", "layer1", "layer2"]
    assert READS.nbytes <= READS.limit


def test_the_layer_used_last_stays(filled, ids, reads):
    READS.limit = filled[1]["layer1"].nbytes  # either layer, not both
    for layer in ("layer2", "layer1", "layer1", "layer2"):
        CachedFeatures(filled[0], layers=layer).fit_transform(ids)
        assert READS.nbytes <= READS.limit
    assert reads == ["layer2", "layer1", "layer2"]


@pytest.mark.parametrize("output", ["matrix", "blocks"])
def test_processes_find_the_same_scores(filled, ids, responses, output):
    pipeline = _pipeline(str(filled[0]), output=output)
    alone = cross_val_score(pipeline, ids, responses, cv=4)
    np.testing.assert_allclose(cross_val_score(pipeline, ids, responses, cv=4, n_jobs=2), alone, rtol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_dask_finds_the_same_scores(filled, ids, responses):
    distributed = pytest.importorskip("distributed")
    pipeline = _pipeline(str(filled[0]))
    alone = cross_val_score(pipeline, ids, responses, cv=3)
    cluster = {"processes": False, "n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
    with distributed.Client(**cluster), joblib.parallel_config("dask"):
        far = cross_val_score(pipeline, ids, responses, cv=3)
    np.testing.assert_allclose(far, alone, rtol=1e-6)


_WITHOUT_TORCH = """
import sys
import numpy as np
from sklearn.pipeline import make_pipeline
import featpipe.model_selection
from featpipe import CachedFeatures, LayerScaler, RidgeEncoder

ids = np.array([f"image_{number}" for number in range(24)])
Y = np.random.default_rng(0).standard_normal((24, 3)).astype(np.float32)
features = CachedFeatures(sys.argv[1], layers=["layer1", "layer2"], output="blocks")
pipeline = make_pipeline(features, LayerScaler(), RidgeEncoder(alphas=[1.0, 10.0], cv=3))
featpipe.model_selection.evaluate(pipeline, ids, Y, cv=3)
loaded = {name.partition(".")[0] for name in sys.modules} & {"torch", "timm", "open_clip", "torchvision"}
assert not loaded, loaded
"""


def test_reading_and_scoring_load_no_torch(filled):
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH, str(filled[0])], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
