"""Which layers a text names."""

from __future__ import annotations

from collections.abc import Sequence

from featpipe.models import Backbone, Tap, match_layers
from featpipe.spec import LayerRequest


def taps_of(layers: Sequence[str], backbone: Backbone) -> list[Tap]:
    """Return the layers of a network that texts ``PATTERN[:REDUCE]`` mean, in their order.

    Raises
    ------
    LayerNotFound
        With the closest names.
    """
    taps = []
    for request in map(LayerRequest.parse, layers):
        found = match_layers(request, backbone.card.layers)
        taps += [Tap(name, call, element, request.reduction) for name, call, element in found]
    return list(dict.fromkeys(taps))


def label_of(tap: Tap) -> str:
    """Return a layer with its call, element and reduction, as a text names it."""
    call = "" if tap.call is None else f"@{tap.call}"
    return f"{tap.layer}{call}{tap.element and f'/{tap.element}'}:{tap.reduction}"
