"""The feature cache: layout, writer, reader and verification. ``cache/README.md`` describes every file."""

from featpipe.store._array import CachedArray
from featpipe.store._cache import SHARD_ROWS, FeatureCache
from featpipe.store._codec import CODECS
from featpipe.store._stimuli import StoredStimuli
from featpipe.store._verify import Problem
from featpipe.store._writer import ArrayWriter
from featpipe.store.location import MirroredURL, Root, absolute, is_url, mirrored

__all__ = [
    "CODECS",
    "SHARD_ROWS",
    "ArrayWriter",
    "CachedArray",
    "FeatureCache",
    "MirroredURL",
    "Problem",
    "Root",
    "StoredStimuli",
    "absolute",
    "is_url",
    "mirrored",
]
