"""From a request to a card, without building a network when the answer is remembered."""

from __future__ import annotations

from featpipe.models._card import ModelCard, ModelRequest


def resolve(request: ModelRequest, *, rehash: bool = False) -> ModelCard:
    """Return what a request resolves to."""
    from featpipe.models._backbone import load

    return load(request, rehash=rehash).card
