"""What a user may write for a name or a digest."""

from __future__ import annotations

from fnmatch import fnmatchcase

_FEWEST_DIGITS = 4  # of a digest, so that a short name is not taken for one


def is_name(name: str, wanted: str) -> bool:
    """Whether a name, or a glob over names, is meant."""
    return name == wanted or fnmatchcase(name, wanted)


def begins(digest: str, wanted: str) -> bool:
    """Whether the first digits of a digest are meant: four or more."""
    return len(wanted) >= _FEWEST_DIGITS and digest.startswith(wanted)
