"""Products of stimuli per channel: computed once per layer and stimulus set, grown, and shared by all fits."""

from __future__ import annotations

from featpipe.rsa.statistics._held import STATISTICS
from featpipe.rsa.statistics._statistics import ChannelStatistics, channel_statistics

__all__ = ["STATISTICS", "ChannelStatistics", "channel_statistics"]
