"""Banded ridge in torch arrays, as on a GPU, is banded ridge in NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.encoding import BandedRidge
from featpipe.encoding.banded import _banded, _bands, _folds, _ridge

WIDTHS = {"dual": (20, 50, 30), "primal": (4, 9, 6)}


@pytest.fixture
def as_on_a_device(monkeypatch):
    """Give solvers torch tensors on the processor whenever a GPU is named."""
    torch = pytest.importorskip("torch")

    def placed(array, device):
        return array if device == "cpu" else torch.as_tensor(np.ascontiguousarray(array))

    for module in (_bands, _folds, _ridge):
        monkeypatch.setattr(module, "on_device", placed)
    monkeypatch.setattr(_banded, "check_device", lambda device: None)


def _problem(rng, widths):
    X = rng.standard_normal((60, sum(widths)))
    Y = X[:, :8] @ rng.standard_normal((8, 5)) + 2 * rng.standard_normal((60, 5))
    Y[:6, 1] = np.nan
    return X, Y


@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("scoring", ["r2", "pearson_r"])
@pytest.mark.parametrize("center", [False, True])
def test_arrays_of_torch_give_the_same_model(rng, widths, scoring, center, as_on_a_device):
    X, Y = _problem(rng, widths)
    model = BandedRidge(widths, scoring=scoring, fit_intercept=center, n_iter=3, refine=2)
    expected = model.fit(X, Y)
    found = BandedRidge(**model.get_params()).set_params(device="cuda").fit(X, Y)
    np.testing.assert_allclose(found.best_score_, expected.best_score_, atol=1e-9)
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-5, atol=1e-8)


def test_reduced_precision_and_singular_problems_in_torch(rng, as_on_a_device):
    X, Y = _problem(rng, WIDTHS["dual"])
    X[:30] = X[30:]
    params = {"widths": WIDTHS["dual"], "alphas": [1e-30, 1.0, 100.0], "search_precision": "reduced"}
    expected, found = (BandedRidge(**params, device=device).fit(X, Y) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(found.best_score_, expected.best_score_, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("precision", ["exact", "reduced"])
def test_a_gpu_gives_the_same_model(rng, widths, precision):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    X, Y = _problem(rng, widths)
    model = BandedRidge(widths, search_precision=precision)
    expected = model.fit(X, Y)
    found = BandedRidge(**model.get_params()).set_params(device="cuda").fit(X, Y)
    np.testing.assert_allclose(found.best_score_, expected.best_score_, atol=1e-4)
