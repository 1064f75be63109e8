"""Networks: where they come from, what they resolve to, and how their layers are read.

`ModelRequest` and `ModelCard` are plain values; only what builds or runs a network imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featpipe.models._card import ModelCard, ModelRequest
from featpipe.models._layers import match_layers
from featpipe.models._resolve import resolve
from featpipe.models._stage import from_stage
from featpipe.models._tuned_on import tuned_on

_HOMES = {  # imported on first use: these import torch
    "Backbone": "featpipe.models._backbone",
    "LayerInfo": "featpipe.models._describe",
    "Tap": "featpipe.models._hooks",
    "Tapped": "featpipe.models._hooks",
    "apply_preprocessing": "featpipe.models._preprocess",
    "describe": "featpipe.models._describe",
    "list_models": "featpipe.models._catalog",
    "load": "featpipe.models._load",
    "normalise": "featpipe.models._preprocess",
    "save_checkpoint": "featpipe.models._checkpoint",
}
__all__ = [
    "Backbone",
    "LayerInfo",
    "ModelCard",
    "ModelRequest",
    "Tap",
    "Tapped",
    "apply_preprocessing",
    "describe",
    "list_models",
    "load",
    "match_layers",
    "normalise",
    "resolve",
    "save_checkpoint",
    "tuned_on",
]

if TYPE_CHECKING:
    from featpipe.models._backbone import Backbone
    from featpipe.models._catalog import list_models
    from featpipe.models._checkpoint import save_checkpoint
    from featpipe.models._describe import LayerInfo, describe
    from featpipe.models._hooks import Tap, Tapped
    from featpipe.models._load import load
    from featpipe.models._preprocess import apply_preprocessing, normalise


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featpipe.models' has no attribute {name!r}")
    return from_stage(_HOMES[name], name)
