"""The feature cache: layout, writer, reader and verification. ``cache/README.md`` describes every file."""

from featpipe.store._array import CachedArray
from featpipe.store._cache import SHARD_ROWS, FeatureCache
from featpipe.store._choice import ArrayChoice
from featpipe.store._codec import CODECS
from featpipe.store._copy import Copied
from featpipe.store._published import publish_index
from featpipe.store._stimuli import StoredStimuli
from featpipe.store._transfer import Move, plan_transfer, transfer
from featpipe.store._verify import Problem
from featpipe.store._writer import ArrayWriter
from featpipe.store.location import is_url

__all__ = [
    "CODECS",
    "SHARD_ROWS",
    "ArrayChoice",
    "ArrayWriter",
    "CachedArray",
    "Copied",
    "FeatureCache",
    "Move",
    "Problem",
    "StoredStimuli",
    "is_url",
    "plan_transfer",
    "publish_index",
    "transfer",
]
