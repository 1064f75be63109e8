"""Tuners that are fitted to RDMs."""

from featpipe.tuning.rdms._siamese_tuner import SiameseTuner

__all__ = ["SiameseTuner"]
