"""Images of a fit: decoded once, kept as 8-bit pixels, seen whole or augmented."""

from featpipe.tuning.images._images import Images

__all__ = ["Images"]
