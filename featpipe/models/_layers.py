"""Which layers a pattern names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from featpipe.errors import LayerNotFound
from featpipe.spec import LayerRequest, split_layer


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
    regex = _glob(pattern)
    found = [name for name in names if name == pattern or regex.fullmatch(name)]
    if not found:
        close = difflib.get_close_matches(pattern, names, n=5, cutoff=0.4)
        hint = f"The closest names are {', '.join(close)}." if close else f"There are {len(names)} layers."
        raise LayerNotFound(
            f"No layer matches {pattern!r}. {hint} `featpipe layers MODEL` lists all of them."
        )
    return [(name, call, element) for name in found]


def _glob(pattern: str) -> re.Pattern[str]:
    """Translate a glob over dotted names to a regular expression."""
    tokens = re.split(r"(\*\*|\*|\?|\[!?[^\]]+\])", pattern)
    known = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    return re.compile("".join(known.get(token) or _literal_or_class(token) for token in tokens))


def _literal_or_class(token: str) -> str:
    if not re.fullmatch(r"\[!?[^\]]+\]", token):
        return re.escape(token)
    negated = token.startswith("[!")
    members = token[2 if negated else 1 : -1].replace("\\", r"\\").replace("^", r"\^").replace("[", r"\[")
    return f"[{'^.' if negated else ''}{members}]"
