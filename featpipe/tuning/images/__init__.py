"""Images of a fit: decoded once, kept as 8-bit pixels, seen whole or augmented."""

from featpipe.tuning.images._images import Images
from featpipe.tuning.images._row_memory import ACTIVATIONS, RowMemory, RowStore

__all__ = ["ACTIVATIONS", "Images", "RowMemory", "RowStore"]
