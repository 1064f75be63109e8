"""Encoding models: from features to responses, one linear map per target."""

from __future__ import annotations

from featpipe.encoding._encoder import RidgeEncoder
from featpipe.encoding._scaler import LayerScaler

__all__ = ["LayerScaler", "RidgeEncoder"]
