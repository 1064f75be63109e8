"""One text of the solvers for NumPy and torch: tensors on the processor stand for a GPU, and a GPU where one is."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import KFold

from featpipe.encoding import RidgeEncoder
from featpipe.encoding.ridge._closed_form import closed_form_fit, closed_form_scores
from featpipe.encoding.ridge._fold_search import fit_by_folds, fold_scores
from featpipe.encoding.ridge._gram import GramStatistics
from featpipe.encoding.ridge._ridge import cross_validated_scores, ridge
from featpipe.errors import RequestError

torch = pytest.importorskip("torch")

ALPHAS = np.logspace(-1, 5, 7)
SHAPES = [(60, 12), (30, 70)]  # feature by feature, stimulus by stimulus
TOLERANCE = {"float32": 2e-5, "float64": 1e-10}
ways = pytest.mark.parametrize("shape", SHAPES)
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE))


@pytest.fixture
def both(rng, shape, dtype):
    """Gram statistics of NumPy and of torch, and responses."""
    X = (rng.standard_normal(shape) + 1).astype(dtype)
    Y = (X @ rng.standard_normal((shape[1], 9)) + 5 * rng.standard_normal((shape[0], 9))).astype(dtype)
    weight = rng.random(shape[0]) + 0.2
    return GramStatistics(X, weight=weight), GramStatistics(torch.from_numpy(X), weight=weight), Y


def _agree(found, expected, dtype):
    assert all(isinstance(values, np.ndarray) for values in found)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@ways
@dtypes
def test_solutions_agree(both, dtype):
    numpys, torchs, Y = both
    alpha, rows = ALPHAS[np.arange(9) % 7], np.arange(3, len(Y))
    expected = ridge(numpys, Y, alpha, rows=rows, target_batch=4)
    _agree(ridge(torchs, Y, alpha, rows=rows, target_batch=4), expected, dtype)
    _agree(ridge(torchs, torch.from_numpy(Y), alpha, rows=rows), expected, dtype)


@ways
@dtypes
@pytest.mark.parametrize("scoring", ["r2", "pearson_r"])
def test_scores_of_folds_agree(both, dtype, scoring):
    numpys, torchs, Y = both
    splits = list(KFold(5).split(Y))
    expected = cross_validated_scores(numpys, Y, ALPHAS, splits, scoring=scoring)
    found = [
        cross_validated_scores(torchs, Y, ALPHAS, splits, scoring=scoring, target_batch=4),
        fold_scores(torchs, Y, ALPHAS, splits, rows=np.arange(len(Y)), scoring=scoring),
    ]
    _agree(found, [expected, expected], dtype)


@ways
@dtypes
@pytest.mark.parametrize("precision", ["exact", "reduced"])
def test_searches_agree(both, dtype, precision):
    numpys, torchs, Y = both
    splits, rows = list(KFold(5).split(Y)), np.arange(len(Y))
    expected, found = (
        fit_by_folds(gram, Y, ALPHAS, splits, rows=rows, precision=precision) for gram in (numpys, torchs)
    )
    _agree(found, expected, dtype)


@ways
@dtypes
@pytest.mark.parametrize("method", ["loo", "gcv"])
@pytest.mark.parametrize("scoring", ["r2", "pearson_r"])
def test_closed_forms_agree(both, dtype, method, scoring):
    numpys, torchs, Y = both
    kind = {"method": method, "scoring": scoring}
    subsets = [gram.decompose(np.arange(len(Y))) for gram in (numpys, torchs)]
    scores = [closed_form_scores(subset, Y, ALPHAS, **kind) for subset in subsets]
    _agree(scores[1:], scores[:1], dtype)
    expected, found = (closed_form_fit(subset, Y, ALPHAS, target_batch=4, **kind) for subset in subsets)
    _agree(found, expected, dtype)


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "must be 'cpu', 'cuda' or 'cuda:N', got 'gpu'"), (1, "got 1"), (None, "got None")],
)
def test_wrong_devices_are_named(rng, device, message):
    with pytest.raises(RequestError, match=message):
        RidgeEncoder(device=device).fit(rng.standard_normal((20, 3)), rng.standard_normal((20, 2)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_missing_gpu_is_named(rng):
    with pytest.raises(RequestError, match="torch sees no CUDA device here"):
        RidgeEncoder(device="cuda").fit(rng.standard_normal((20, 3)), rng.standard_normal((20, 2)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(300, 80), (100, 400)])
@pytest.mark.parametrize("cv", [5, "loo", "gcv"])
@pytest.mark.parametrize("search_precision", ["exact", "reduced"])
def test_a_gpu_finds_what_the_processor_finds(rng, shape, cv, search_precision):
    X = rng.standard_normal(shape).astype(np.float32)
    Y = X @ rng.standard_normal((shape[1], 40)) + 10 * rng.standard_normal((shape[0], 40))
    Y = Y.astype(np.float32)
    Y[:9, 3] = np.nan
    expected, found = (
        RidgeEncoder(cv=cv, device=device, search_precision=search_precision, target_batch=16).fit(X, Y)
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(found.best_score_, expected.best_score_, atol=1e-4)
    same = found.alpha_ == expected.alpha_
    assert same.mean() > 0.9  # of equally good penalties rounding chooses
    error = np.linalg.norm(found.coef_ - expected.coef_, axis=1) / np.linalg.norm(expected.coef_, axis=1)
    assert error[same].max() < 1e-4
