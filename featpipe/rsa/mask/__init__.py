"""A learned coefficient per channel: the objective, what minimises it, and the estimator."""

from __future__ import annotations

from featpipe.rsa.mask._channel_mask import ChannelMask
from featpipe.rsa.mask._stage_tuning import plot_stage_tuning

__all__ = ["ChannelMask", "plot_stage_tuning"]
