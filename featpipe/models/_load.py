"""From a request to a network that is ready to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from featpipe.errors import ModelError, SpecError
from featpipe.models import _checkpoint, _python_file, _zoo_open_clip, _zoo_timm, _zoo_torchvision
from featpipe.models._architecture import Architecture, Wanted
from featpipe.models._backbone import Backbone
from featpipe.models._card import ModelCard, ModelRequest
from featpipe.models._layout import is_convolutional, layouts
from featpipe.models._preprocess import override
from featpipe.models._weights import load_state, read_state, weights_digest
from featpipe.models._weights_request import WeightsRequest
from featpipe.spec import ModelRef

_ZOOS: dict[str, Callable[[Wanted], Architecture]] = {
    "timm": _zoo_timm.build,
    "open_clip": _zoo_open_clip.build,
    "torchvision": _zoo_torchvision.build,
}


def load(request: ModelRequest) -> Backbone:
    """Build the network that a request asks for, load its weights, and take their digest.

    Parameters
    ----------
    request : ModelRequest

    Raises
    ------
    MissingDependency, SpecError, UnknownModel, WeightsUnavailable, WeightsMismatch, ModelError, RequestError
    """
    ref = ModelRef.parse(request.model)
    if ref.zoo == "local":
        return _load_checkpoint(request, ref.name)
    if ref.zoo == "imported":
        raise ModelError(f"{request.model} is an imported array, not a network; nothing can be run.")
    weights = WeightsRequest.parse(request.weights, ref)
    ref = replace(ref, tag=weights.tag)
    with torch.random.fork_rng(devices=[]):  # the caller's random state is not ours to move
        torch.manual_seed(weights.seed)
        built = _build(request, ref, pretrained=weights.pretrained)
    if weights.file is not None:
        missing = load_state(built.module, built.adapt(read_state(weights.file)), source=weights.file)
        files = (*built.files, str(weights.file))
        built = replace(built, missing=missing, files=files, label=weights.file.name)
    elif weights.random:
        built = replace(built, label=request.weights)
    return _finished(built, request, ref)


def _build(request: ModelRequest, ref: ModelRef, *, pretrained: bool) -> Architecture:
    if ref.zoo == "python":
        if ref.tag is not None:
            raise SpecError(
                f"A network of your own has no weights {ref.tag!r} in a zoo; give a file or random:SEED."
            )
        return _python_file.build(request, ref.name)
    size = request.input_size
    own = dict(request.model_args).get("img_size")
    if size is None and isinstance(own, int):
        size = (own, own)
    whole = request.preprocess == "whole"
    wanted = Wanted(ref.name, ref.tag, dict(request.model_args), size, pretrained, whole)
    return _ZOOS[ref.zoo](wanted)


def _finished(built: Architecture, request: ModelRequest, ref: ModelRef) -> Backbone:
    module = built.module.eval().requires_grad_(False)
    own = dict(built.args).get("img_size")
    if request.image_size is None and isinstance(own, int):
        request = replace(request, image_size=own)
    preprocessing = override(built.preprocessing, request)
    layout, exceptions = layouts(module, preprocessing.input_size or (224, 224))
    card = ModelCard(
        architecture=built.name or ref.architecture,
        weights=weights_digest(module, built.missing),
        weights_label=built.label,
        preprocessing=preprocessing,
        layers=(*(name for name, _ in module.named_modules() if name), "output"),
        model_args=tuple(sorted(built.args.items())),
        code=built.code,
        prefix_tokens=built.prefix_tokens,
        class_token=built.class_token,
        layout=layout,
        layout_exceptions=exceptions,
        missing=built.missing,
        channels_last=is_convolutional(module),
    )
    return Backbone(card, module, str(ref), built.files)


def _load_checkpoint(request: ModelRequest, name: str) -> Backbone:
    """Load what a checkpoint says that it is, under the requests that came with it."""
    inner, native, file = _checkpoint.underlying(request, name)
    backbone = load(inner)
    card = backbone.card
    if native is not None:
        card = replace(card, preprocessing=override(native, request))
    if inner.weights == str(file):
        card = replace(card, weights_label=Path(name).name)
    return replace(backbone, card=card, files=tuple(dict.fromkeys((*backbone.files, str(file)))))
