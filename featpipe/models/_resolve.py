"""From a request to a card, without building a network when the answer is remembered."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from featpipe.models._card import ModelCard, ModelRequest
from featpipe.models._stage import from_stage
from featpipe.remembered import remembered

if TYPE_CHECKING:
    from featpipe.models._backbone import Backbone

_MEANING = 1  # of a card: raise it when the same request comes to mean another card
_LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch")
_PLACES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "TORCH_HOME", "HF_ENDPOINT")


def resolve(request: ModelRequest, *, rehash: bool = False) -> ModelCard:
    """Return what a request resolves to.

    Two answers are remembered: which files a request reads, and the card that they give. The second is
    known by the files as they are now, so a changed file, hub cache or library builds the network again. A
    network from a user's own Python file is never remembered, as nobody knows what else that reads.

    Parameters
    ----------
    request : ModelRequest
    rehash : bool
        Ignore what is remembered.

    Raises
    ------
    MissingDependency, SpecError, UnknownModel, WeightsUnavailable, WeightsMismatch, ModelError, RequestError
    """
    answer = _Answer(request)
    if request.model.startswith("python:"):
        return answer.backbone.card
    details = _circumstances(request)
    try:
        files = remembered("model-files", (), answer.files, details=details, rehash=rehash)
        card = remembered("model-card", json.loads(files), answer.card, details=details, rehash=rehash)
    except FileNotFoundError:  # a remembered file is gone, as after clearing a hub's cache
        files = remembered("model-files", (), answer.files, details=details, rehash=True)
        card = remembered("model-card", json.loads(files), answer.card, details=details, rehash=True)
    return ModelCard.from_json(json.loads(card))


class _Answer:
    """The network behind both answers, built at most once."""

    def __init__(self, request: ModelRequest) -> None:
        self._request = request

    @cached_property
    def backbone(self) -> Backbone:
        return from_stage("featpipe.models._load", "load")(self._request)

    def files(self) -> str:
        return json.dumps(self.backbone.files)

    def card(self) -> str:
        return json.dumps(self.backbone.card.to_json())


def _circumstances(request: ModelRequest) -> dict[str, Any]:
    """Return what an answer depends on besides the content of files."""
    asked = {**asdict(request), "model_args": dict(request.model_args), "trust": False}
    return {
        "meaning": _MEANING,
        "request": json.loads(json.dumps(asked)),
        "folder": os.getcwd(),  # paths in a request are relative to it
        "versions": {library: _version(library) for library in _LIBRARIES},
        "places": {name: os.environ.get(name, "") for name in _PLACES},
        "machine": platform.machine(),
    }


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
