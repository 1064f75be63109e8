"""The feature cache: its layout, writer and reader; around them are

``location`` (where a cache lies), ``claims`` (who is at what), ``copying`` (between caches), ``checking`` (damage and
its repair) and ``finding`` (lists, statistics, other libraries' types, leftovers). ``cache/README.md`` describes every
file.
"""

from featpipe.store._array import CachedArray
from featpipe.store._cache import SHARD_ROWS, FeatureCache
from featpipe.store._codec import CODECS
from featpipe.store._stimuli import StoredStimuli
from featpipe.store._writer import ArrayWriter
from featpipe.store.checking._evidence import sound_commits
from featpipe.store.checking._mend import Mended, mend_files, recovered_array, seal_again
from featpipe.store.checking._verify import Problem, Scope, verify_cache
from featpipe.store.claims._claim_files import ClaimFiles, Owner
from featpipe.store.claims._claims import (
    CLAIM_EXPIRY,
    LEAST_CLAIM_EXPIRY,
    Claims,
    claim_storage,
    exclusive_claim,
    work_of,
)
from featpipe.store.copying._choice import ArrayChoice
from featpipe.store.copying._copy import Copied
from featpipe.store.copying._published import publish_index
from featpipe.store.copying._transfer import Move, plan_transfer, transfer
from featpipe.store.finding._export import ENDINGS, export_array
from featpipe.store.finding._find import ArrayFilter, key_named, last_written
from featpipe.store.finding._garbage import Garbage, GarbageFilter
from featpipe.store.finding._open import FORMS, open_array
from featpipe.store.finding._provenance import Origin, origins, spans
from featpipe.store.finding._statistics import Statistics, array_statistics
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
    "Mended",
    "MirroredURL",
    "Move",
    "Origin",
    "Owner",
    "Problem",
    "Root",
    "Scope",
    "Statistics",
    "StoredStimuli",
    "absolute",
    "array_statistics",
    "claim_storage",
    "exclusive_claim",
    "export_array",
    "is_url",
    "key_named",
    "last_written",
    "mend_files",
    "mirrored",
    "open_array",
    "origins",
    "plan_transfer",
    "publish_index",
    "recovered_array",
    "require_shared",
    "seal_again",
    "shown_url",
    "sound_commits",
    "spans",
    "transfer",
    "verify_cache",
    "work_of",
]
