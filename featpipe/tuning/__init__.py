"""Training in torch behind scikit-learn estimators: one loop, and modules and losses that differ."""

from __future__ import annotations

from featpipe.tuning._deep_head import DeepHead
from featpipe.tuning._history import History
from featpipe.tuning._linear_head import LinearHead
from featpipe.tuning._loop import Epoch, train
from featpipe.tuning._rates import (
    DEEP,
    LINEAR_ALL_ROIS,
    LINEAR_PER_ROI,
    VERTEX_POSITION,
    VERTEX_POSITION_RESIDUAL,
)
from featpipe.tuning._training import Training
from featpipe.tuning._vertex_position_head import VertexPositionHead

__all__ = [
    "DEEP",
    "LINEAR_ALL_ROIS",
    "LINEAR_PER_ROI",
    "VERTEX_POSITION",
    "VERTEX_POSITION_RESIDUAL",
    "DeepHead",
    "Epoch",
    "History",
    "LinearHead",
    "Training",
    "VertexPositionHead",
    "train",
]
