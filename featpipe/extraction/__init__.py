"""From images to committed shards: the stage that needs torch, and ends at the cache.

The values that say what to extract import no torch; `extract`, `dry_run` and `recompute` do, on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featpipe.extraction._again import IMPORTED, Again, plan_again, request_again
from featpipe.extraction._order import DryRun, Extraction, Means, NonFinite, Order, Progress, Target
from featpipe.extraction._repair import Repair, repair

__all__ = [
    "IMPORTED",
    "Again",
    "Comparison",
    "DaskWorkers",
    "DryRun",
    "Extraction",
    "Means",
    "NonFinite",
    "Order",
    "Progress",
    "Repair",
    "Target",
    "dry_run",
    "extract",
    "plan_again",
    "recompute",
    "repair",
    "request_again",
]

if TYPE_CHECKING:
    from featpipe.extraction._distributed import DaskWorkers
    from featpipe.extraction._dry_run import dry_run
    from featpipe.extraction._extract import extract
    from featpipe.extraction._recompute import Comparison, recompute

_HOMES = {
    "Comparison": "featpipe.extraction._recompute",
    "DaskWorkers": "featpipe.extraction._distributed",
    "dry_run": "featpipe.extraction._dry_run",
    "extract": "featpipe.extraction._extract",
    "recompute": "featpipe.extraction._recompute",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featpipe.extraction' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
