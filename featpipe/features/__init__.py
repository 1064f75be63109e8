"""From stimulus ids to rows of features: the first step of every pipeline. Needs no torch."""

from featpipe.features._cached import CachedFeatures, arrays_meant
from featpipe.features._joined import JoinedFeatures, parts_of
from featpipe.features._memory import READS, ReadCache
from featpipe.features._settle import arrays_of, layer_patterns

__all__ = [
    "READS",
    "CachedFeatures",
    "JoinedFeatures",
    "ReadCache",
    "arrays_meant",
    "arrays_of",
    "layer_patterns",
    "parts_of",
]
