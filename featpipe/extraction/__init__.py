"""From images to committed shards: the stage that needs torch, and ends at the cache."""

from featpipe.extraction._extract import DryRun, Extraction, Means, Order, dry_run, extract
from featpipe.extraction._plan import Target

__all__ = ["DryRun", "Extraction", "Means", "Order", "Target", "dry_run", "extract"]
