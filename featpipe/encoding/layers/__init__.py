"""Several layers: stacked, or the best of them."""
