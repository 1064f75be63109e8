"""Training in torch behind scikit-learn estimators: one loop, and modules and losses that differ."""

from __future__ import annotations

from featpipe.tuning._history import History
from featpipe.tuning._loop import Epoch, train
from featpipe.tuning._range_test import RangeTest, range_test
from featpipe.tuning._training import Training
from featpipe.tuning.heads import (
    DEEP,
    LINEAR_ALL_ROIS,
    LINEAR_PER_ROI,
    VERTEX_POSITION,
    VERTEX_POSITION_RESIDUAL,
    DeepHead,
    LinearHead,
    VertexPositionHead,
)
from featpipe.tuning.rdms import ChannelMaskTuner, SiameseGroupConvTuner, SiameseTuner
from featpipe.tuning.responses import ContrastiveTuner, ResponseTuner

__all__ = [
    "DEEP",
    "LINEAR_ALL_ROIS",
    "LINEAR_PER_ROI",
    "VERTEX_POSITION",
    "VERTEX_POSITION_RESIDUAL",
    "ChannelMaskTuner",
    "ContrastiveTuner",
    "DeepHead",
    "Epoch",
    "History",
    "LinearHead",
    "RangeTest",
    "ResponseTuner",
    "SiameseGroupConvTuner",
    "SiameseTuner",
    "Training",
    "VertexPositionHead",
    "range_test",
    "train",
]
