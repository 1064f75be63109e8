"""Tuners that are fitted to RDMs: a correlation distance, a head over two maps, a mask with its network."""

from featpipe.tuning.rdms._channel_mask_tuner import ChannelMaskTuner
from featpipe.tuning.rdms._group_conv_tuner import SiameseGroupConvTuner
from featpipe.tuning.rdms._siamese_tuner import SiameseTuner

__all__ = ["ChannelMaskTuner", "SiameseGroupConvTuner", "SiameseTuner"]
