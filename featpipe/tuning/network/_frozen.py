"""Which layers of a network stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number

from torch import nn

from featpipe.errors import RequestError
from featpipe.models import match_layers
from featpipe.spec import LayerRequest

_RANGE = ".."


def freeze(module: nn.Module, frozen: str | Sequence[str] | None) -> frozenset[str]:
    """Let everything be trained except some layers; return the names of all modules that are frozen.

    Parameters
    ----------
    module : nn.Module
    frozen : None, str, or sequence of str
        Each a layer (it and all within it); a glob over layer names, see `featpipe.spec.match_names`; or a
        range in the order of ``named_modules()``: ``A..B``, ``..B`` (from the start), ``A..`` (to the end),
        through the last layer within B. A range from the start and ``**`` include what the network itself holds,
        as the class token and the position embedding of a vision transformer.

    Raises
    ------
    LayerNotFound
        A name that matches nothing; the message has the closest names.
    RequestError
        A range that ends before it starts.
    """
    names = frozen_names(module, frozen)
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    for name, layer in module.named_modules():
        if name in names:
            for parameter in layer.parameters(recurse=False):
                parameter.requires_grad_(False)
    return names


def frozen_names(module: nn.Module, frozen: str | Sequence[str] | None) -> frozenset[str]:
    """Return the names of the modules that `frozen` means, all that lies within them included."""
    texts = [frozen] if isinstance(frozen, str | Number) else list(frozen or ())
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise RequestError(
            f"frozen names layers by text, got {wrong[0]!r}. Write a name, a glob or a range such as ..layer3, a "
            "number quoted."
        )
    order = [name for name, _ in module.named_modules()]
    return frozenset(name for text in texts for name in _of_one(text, order))


def _of_one(text: str, order: list[str]) -> list[str]:
    first, dots, last = text.partition(_RANGE)
    if not dots:
        return [name for found in _matches(text, order) for name in order if _within(name, found)]
    start = order.index(_matches(first, order)[0]) if first else 0
    ends = [place for place, name in enumerate(order) if last and _within(name, _matches(last, order)[-1])]
    stop = max(ends) + 1 if last else len(order)
    if stop <= start:
        raise RequestError(
            f"The frozen range {text!r} ends before it starts: {last!r} comes before {first!r} in the network. "
            "Write FIRST..LAST in the order of `featpipe layers MODEL`."
        )
    return order[start:stop]


def _matches(pattern: str, order: list[str]) -> list[str]:
    return [name for name, _, _ in match_layers(LayerRequest(pattern), order)]


def _within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")
