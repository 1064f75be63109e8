"""The feature cache: layout, writer, reader and verification. ``cache/README.md`` describes every file."""

from featpipe.store._array import CachedArray
from featpipe.store._cache import SHARD_ROWS, FeatureCache
from featpipe.store._codec import CODECS
from featpipe.store._mend import Mended, mend_files, recovered_array
from featpipe.store._stimuli import StoredStimuli
from featpipe.store._verify import Problem, Scope, verify_cache
from featpipe.store._writer import ArrayWriter

__all__ = [
    "CODECS",
    "SHARD_ROWS",
    "ArrayWriter",
    "CachedArray",
    "FeatureCache",
    "Mended",
    "Problem",
    "Scope",
    "StoredStimuli",
    "mend_files",
    "recovered_array",
    "verify_cache",
]
