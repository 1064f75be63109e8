"""The feature cache: layout, writer, reader and verification. ``cache/README.md`` describes every file."""

from featpipe.store._array import CachedArray
from featpipe.store._cache import SHARD_ROWS, FeatureCache
from featpipe.store._claim_files import ClaimFiles, Owner
from featpipe.store._claims import CLAIM_EXPIRY, LEAST_CLAIM_EXPIRY, Claims, exclusive_claim, work_of
from featpipe.store._codec import CODECS
from featpipe.store._mend import Mended, mend_files, recovered_array
from featpipe.store._stimuli import StoredStimuli
from featpipe.store._verify import Problem, Scope, verify_cache
from featpipe.store._writer import ArrayWriter

__all__ = [
    "CLAIM_EXPIRY",
    "CODECS",
    "LEAST_CLAIM_EXPIRY",
    "SHARD_ROWS",
    "ArrayWriter",
    "CachedArray",
    "ClaimFiles",
    "Claims",
    "FeatureCache",
    "Mended",
    "Owner",
    "Problem",
    "Scope",
    "StoredStimuli",
    "exclusive_claim",
    "mend_files",
    "recovered_array",
    "verify_cache",
    "work_of",
]
