"""The feature cache: layout, writer, reader and verification. ``cache/README.md`` describes every file."""

from featpipe.store._array import CachedArray
from featpipe.store._cache import SHARD_ROWS, FeatureCache
from featpipe.store._choice import ArrayChoice
from featpipe.store._claim_files import ClaimFiles, Owner
from featpipe.store._claims import (
    CLAIM_EXPIRY,
    LEAST_CLAIM_EXPIRY,
    Claims,
    claim_storage,
    exclusive_claim,
    work_of,
)
from featpipe.store._codec import CODECS
from featpipe.store._copy import Copied
from featpipe.store._export import ENDINGS, export_array
from featpipe.store._find import ArrayFilter, last_written
from featpipe.store._garbage import Garbage, GarbageFilter
from featpipe.store._open import FORMS, open_array
from featpipe.store._provenance import Origin, origins, spans
from featpipe.store._published import publish_index
from featpipe.store._statistics import Statistics, array_statistics
from featpipe.store._stimuli import StoredStimuli
from featpipe.store._transfer import Move, plan_transfer, transfer
from featpipe.store._verify import Problem
from featpipe.store._writer import ArrayWriter
from featpipe.store.location import MirroredURL, Root, absolute, is_url, mirrored, require_shared, shown_url

__all__ = [
    "CLAIM_EXPIRY",
    "CODECS",
    "ENDINGS",
    "FORMS",
    "LEAST_CLAIM_EXPIRY",
    "SHARD_ROWS",
    "ArrayChoice",
    "ArrayFilter",
    "ArrayWriter",
    "CachedArray",
    "ClaimFiles",
    "Claims",
    "Copied",
    "FeatureCache",
    "Garbage",
    "GarbageFilter",
    "MirroredURL",
    "Move",
    "Origin",
    "Owner",
    "Problem",
    "Root",
    "Statistics",
    "StoredStimuli",
    "absolute",
    "array_statistics",
    "claim_storage",
    "exclusive_claim",
    "export_array",
    "is_url",
    "last_written",
    "mirrored",
    "open_array",
    "origins",
    "plan_transfer",
    "publish_index",
    "require_shared",
    "shown_url",
    "spans",
    "transfer",
    "work_of",
]
