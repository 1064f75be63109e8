"""Encoding models: from features to responses, one linear map per target."""

from __future__ import annotations

from featpipe.encoding._banded import BandedRidge
from featpipe.encoding._banded_contributions import band_contributions, unique_contributions
from featpipe.encoding._best_layer import BestLayer
from featpipe.encoding._encoder import RidgeEncoder
from featpipe.encoding._per_roi import PerROI
from featpipe.encoding._regions_of_targets import region_positions
from featpipe.encoding._scaler import LayerScaler
from featpipe.encoding._stacked import StackedLayers
from featpipe.encoding._target_view import TargetView

__all__ = [
    "BandedRidge",
    "BestLayer",
    "LayerScaler",
    "PerROI",
    "RidgeEncoder",
    "StackedLayers",
    "TargetView",
    "band_contributions",
    "region_positions",
    "unique_contributions",
]
