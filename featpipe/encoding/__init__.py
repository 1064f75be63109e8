"""Encoding models: from features to responses, one linear map per target."""

from __future__ import annotations

from featpipe.encoding._scaler import LayerScaler
from featpipe.encoding.banded._banded import BandedRidge
from featpipe.encoding.banded._contributions import band_contributions, unique_contributions
from featpipe.encoding.layers._best_layer import BestLayer
from featpipe.encoding.layers._stacked import StackedLayers
from featpipe.encoding.regions._per_roi import PerROI
from featpipe.encoding.regions._regions_of_targets import region_positions
from featpipe.encoding.regions._target_view import TargetView
from featpipe.encoding.ridge._encoder import RidgeEncoder

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
