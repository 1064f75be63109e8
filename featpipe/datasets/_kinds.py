"""What ``DATA`` looks like; told apart from a path to images without importing what reads it."""

from __future__ import annotations

KINDS = ("table", "algonauts2019", "algonauts2023", "synthetic")
EVERYONE = "all"


def is_data(text: str) -> bool:
    """Tell whether a text starts like ``DATA``, as against a path to images."""
    return text.partition(":")[0] in KINDS and ":" in text
