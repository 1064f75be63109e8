"""Every estimator of responses can be saved and loaded without executing code, also after its weights were routed."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.pipeline import Pipeline

from featpipe import (
    BandedRidge,
    BestLayer,
    DeepHead,
    LinearHead,
    PerROI,
    RidgeEncoder,
    StackedLayers,
    VertexPositionHead,
)
from featpipe.model_selection import fit_final
from featpipe.runs._fit import _forget_routing
from featpipe.runs._folder import RunFolder

ROIS = {"lh.V1v": np.arange(3), "rh.V1v": np.array([2, 3, 4])}
BANDED = BandedRidge(widths=[6, 6], n_iter=3, refine=0)
ESTIMATORS = {
    "ridge": RidgeEncoder(),
    "banded": BANDED,
    "stacked": StackedLayers(widths=[6, 6]),
    "best layer": BestLayer(widths=[6, 6], per="group", rois=ROIS),
    "regions": PerROI(RidgeEncoder(), ROIS),
    "regions that share a penalty": PerROI(RidgeEncoder(), ROIS, penalty="group"),
    "regions stacked": PerROI(StackedLayers(widths=[6, 6]), ROIS),
    "regions banded": PerROI(BANDED, ROIS),
    "linear": LinearHead(ROIS, max_epochs=2),
    "deep": DeepHead(ROIS, max_epochs=2),
    "vertex position": VertexPositionHead(
        ROIS, np.random.default_rng(0).standard_normal((6, 3)), max_epochs=2
    ),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_saved_estimator_predicts_the_same(rng, tmp_path, name):
    X = rng.standard_normal((40, 12), dtype=np.float32)
    Y = rng.standard_normal((40, 6), dtype=np.float32)
    weight = rng.integers(1, 4, 40).astype(np.float64)
    fitted = fit_final(Pipeline([("model", ESTIMATORS[name])]), X, Y, sample_weight=weight)
    _forget_routing(fitted)
    folder = RunFolder(tmp_path)
    folder.write_pipeline(fitted)
    np.testing.assert_array_equal(folder.load_pipeline().predict(X), fitted.predict(X))
