"""Ridge weights on the RDMs of channels, layers and directions: predictors, solvers, and the estimators."""

from __future__ import annotations

from featpipe.rsa.reweighted._feature_reweighted import FeatureReweightedRSA
from featpipe.rsa.reweighted._layer_weighted import LayerWeightedRSA

__all__ = ["FeatureReweightedRSA", "LayerWeightedRSA"]
