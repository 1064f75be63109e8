"""What a user asks for, and what it resolves to: plain values that need no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from featpipe.errors import SpecError
from featpipe.models._weights_request import WeightsRequest
from featpipe.spec import ModelRef, Preprocessing, Scalar, from_anywhere


@dataclass(frozen=True)
class ModelRequest:
    """A network as a user asks for it.

    Parameters
    ----------
    model : str
        ``ZOO:NAME``, see `featpipe.spec.ModelRef`.
    weights : str
        ``default`` (the zoo's pretrained tag), a TAG, ``random:SEED``, or a file: ``.safetensors``, or
        ``.pth``/``.pt``/``.bin``, which is read without executing code.
    model_args : tuple of (name, value)
        Passed to the zoo's constructor.
    preprocess : {"model", "whole"}
        The network's own transform, or the whole image resized to the input size without a crop.
    mean, std : three floats, optional
        Override the network's own, in units of the image divided by 255.
    image_size : int or (height, width), optional
        Override the input size in pixels; the resize keeps its ratio to the crop.
    interpolation : str, optional
        Override Pillow's filter.
    trust : bool
        Allow ``python:FILE.py:FUNCTION`` to execute that file.
    """

    model: str
    weights: str = "default"
    model_args: tuple[tuple[str, Scalar], ...] = ()
    preprocess: str = "model"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    image_size: int | tuple[int, int] | None = None
    interpolation: str | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        for name in ("model", "weights"):
            if not isinstance(getattr(self, name), str):
                raise SpecError(
                    f"{name} must be text, got {getattr(self, name)!r}. Write ZOO:NAME; of weights default, a TAG, "
                    "random:SEED or a file."
                )
        if self.preprocess not in ("model", "whole"):
            raise SpecError(f"Preprocess is 'model' or 'whole', got {self.preprocess!r}.")
        object.__setattr__(self, "model_args", tuple(sorted(self.model_args, key=lambda item: item[0])))

    @property
    def input_size(self) -> tuple[int, int] | None:
        """``image_size`` as (height, width), None when it was left to the network."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    def from_anywhere(self) -> Self:
        """Return the same request with the paths of its files made absolute."""
        file = WeightsRequest.parse(self.weights, ModelRef.parse(self.model)).file
        weights = self.weights if file is None else os.path.abspath(file)
        return replace(self, model=from_anywhere(self.model), weights=weights)


@dataclass(frozen=True)
class ModelCard:
    """What a request resolved to: all of a network that enters a cache key, and its layer names.

    Parameters
    ----------
    architecture : str
        ``ZOO:NAME`` without a tag; ``FeatureSpec.model``.
    weights : str
        Digest of the weights that were loaded.
    weights_label : str
        How a person calls them: a tag, ``random:0``, or a file name.
    preprocessing : Preprocessing
    layers : tuple of str
        Names in network order (``named_modules()``), and last ``output``, the network's own.
    model_args : tuple of (name, value)
        Sorted; includes what was added to make weights and architecture fit.
    code : str
        SHA-256 of the file behind ``python:FILE.py:FUNCTION``, else empty.
    prefix_tokens : int
        Tokens before the spatial ones.
    class_token : bool
        Whether the first prefix token is a class token.
    layout : {"channels_first", "channels_last"}
        Where four-dimensional outputs have their channels; `layout_of` knows the exceptions.
    layout_exceptions : tuple of str
        Layers whose maps have the other layout.
    missing : tuple of str
        Parameters that the weights file lacks; layers that depend on them must not be stored.
    channels_last : bool
        A convolutional net, which runs faster in torch's channels_last memory format.
    """

    architecture: str
    weights: str
    weights_label: str
    preprocessing: Preprocessing
    layers: tuple[str, ...]
    model_args: tuple[tuple[str, Scalar], ...] = ()
    code: str = ""
    prefix_tokens: int = 0
    class_token: bool = False
    layout: str = "channels_first"
    layout_exceptions: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    channels_last: bool = False

    def layout_of(self, layer: str) -> str:
        """Return where a four-dimensional output of this layer has its channels."""
        if layer not in self.layout_exceptions:
            return self.layout
        return "channels_last" if self.layout == "channels_first" else "channels_first"

    def prefix_tokens_of(self, layer: str) -> int:
        """Return the tokens before the spatial ones in a layer: a patch embedding has none yet."""
        return 0 if "patch_embed" in layer.split(".") else self.prefix_tokens

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        shown = {
            f.name: list(value) if isinstance(value := getattr(self, f.name), tuple) else value
            for f in fields(self)
        }
        return {
            **shown,
            "preprocessing": self.preprocessing.to_json(),
            "model_args": dict(self.model_args),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; raises `SpecError` on a missing or an unknown field."""
        names = {f.name for f in fields(cls)}
        if wrong := sorted(names ^ value.keys()):
            raise SpecError(f"A model card has exactly the fields {', '.join(sorted(names))}; see {wrong}.")
        given: dict[str, Any] = {
            name: tuple(item) if isinstance(item, list) else item for name, item in value.items()
        }
        given["preprocessing"] = Preprocessing.from_json(value["preprocessing"])
        given["model_args"] = tuple(sorted(value["model_args"].items()))
        return cls(**given)
