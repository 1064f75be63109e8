"""Which layers a pattern names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from featpipe.errors import LayerNotFound
from featpipe.spec import LayerRequest, match_names, split_layer


def match_layers(request: LayerRequest, names: Sequence[str]) -> list[tuple[str, int | None, str]]:
    """Return (layer, call, element) of every name that a pattern matches, in network order.

    Parameters
    ----------
    request : LayerRequest
        Pattern: a name, or a glob in which ``*`` and ``?`` stay within one dotted part, ``**`` crosses
        parts, and ``[1-6]`` is a class; ``@CALL`` and ``/ELEMENT`` may follow.
    names : sequence of str
        Layer names in network order.

    Raises
    ------
    LayerNotFound
        When nothing matches; the message has the closest names.
    """
    pattern, call, element = split_layer(request.pattern)
    found = match_names(pattern, names)
    if not found:
        close = difflib.get_close_matches(pattern, names, n=5, cutoff=0.4)
        hint = f"The closest names are {', '.join(close)}." if close else f"There are {len(names)} layers."
        raise LayerNotFound(
            f"No layer matches {pattern!r}. {hint} `featpipe layers MODEL` lists all of them."
        )
    return [(name, call, element) for name in found]
