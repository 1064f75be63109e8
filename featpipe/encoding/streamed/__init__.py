"""Layers that do not fit in memory, read tile by tile."""
