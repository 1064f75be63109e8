"""Networks on cached features: a linear map, deep blocks, or one that knows where each vertex lies."""

from featpipe.tuning.heads._deep_head import DeepHead
from featpipe.tuning.heads._linear_head import LinearHead
from featpipe.tuning.heads._rates import (
    DEEP,
    LINEAR_ALL_ROIS,
    LINEAR_PER_ROI,
    VERTEX_POSITION,
    VERTEX_POSITION_RESIDUAL,
)
from featpipe.tuning.heads._vertex_position_head import VertexPositionHead

__all__ = [
    "DEEP",
    "LINEAR_ALL_ROIS",
    "LINEAR_PER_ROI",
    "VERTEX_POSITION",
    "VERTEX_POSITION_RESIDUAL",
    "DeepHead",
    "LinearHead",
    "VertexPositionHead",
]
