"""Tuners to responses: contrastive, and by regression."""

from __future__ import annotations

from featpipe.tuning.responses._contrastive_tuner import ContrastiveTuner
from featpipe.tuning.responses._losses import contrastive_loss
from featpipe.tuning.responses._projection import SharedProjection
from featpipe.tuning.responses._response_tuner import ResponseTuner

__all__ = ["ContrastiveTuner", "ResponseTuner", "SharedProjection", "contrastive_loss"]
