"""Which models a zoo has."""

from __future__ import annotations


def list_models(pattern: str = "*", zoo: str | None = None) -> list[tuple[str, tuple[str, ...]]]:
    """Return (``ZOO:NAME``, tags of pretrained weights) of the models whose name matches a glob."""
    raise NotImplementedError
