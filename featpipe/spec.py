"""What a feature is: the frozen values that a cache key is made of.

Whatever can change a number is a field here; device, batch size, paths and library versions are not.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from dataclasses import replace as replace
from typing import Any, Literal, Self

import rfc8785

from featpipe.errors import SpecError

HEX_DIGEST = re.compile(r"[0-9a-f]{64}")  # a SHA-256, as it is written
FORMAT = 1
ZOOS = ("timm", "open_clip", "torchvision", "local", "python", "imported")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
STORE_DTYPES = ("float32", "float16")
REDUCTION_VERSIONS = {"none": 1, "mean": 1, "max": 1, "cls": 1, "grid": 1, "srp": 1}  # of their arithmetic
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")

Scalar = str | int | float | bool | None


def canonical_json(value: Any) -> bytes:
    """Encode a value as canonical JSON (RFC 8785): one text for one value."""
    return rfc8785.dumps(value)


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as a user names it: ``ZOO:NAME``, with the zoo's tag of pretrained weights if given.

    ``timm:resnet50.a1_in1k``, ``open_clip:ViT-B-32/openai``, ``torchvision:alexnet``, ``local:FILE``,
    ``python:FILE.py:FUNCTION``, ``imported:NAME``.
    """

    zoo: str
    name: str
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``ZOO:NAME``; raises `SpecError` when the zoo is missing or unknown."""
        zoo, colon, name = text.partition(":")
        if not colon or zoo not in ZOOS or not name:
            raise SpecError(
                f"Model {text!r} does not say where it comes from. Write ZOO:NAME with ZOO one of "
                f"{', '.join(ZOOS)}, such as timm:resnet50 or open_clip:ViT-B-32/openai."
            )
        mark = {"timm": ".", "open_clip": "/"}.get(zoo)
        if mark is None or mark not in name:
            return cls(zoo, name)
        name, _, tag = name.partition(mark)
        return cls(zoo, name, tag or None)

    @property
    def architecture(self) -> str:
        """``ZOO:NAME`` without the tag: the weights digest stands for the weights."""
        return f"{self.zoo}:{self.name}"

    def __str__(self) -> str:
        mark = {"timm": ".", "open_clip": "/"}.get(self.zoo, ".")
        return self.architecture + (f"{mark}{self.tag}" if self.tag else "")


def from_anywhere(model: str) -> str:
    """Return the name of a model with the path of its file, if it has one, made absolute."""
    zoo, _, name = model.partition(":")
    path, colon, function = name.rpartition(":") if zoo == "python" else (name, "", "")
    if zoo in ("python", "local") and os.path.exists(path):
        return f"{zoo}:{os.path.abspath(path)}{colon}{function}"
    return model


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From a decoded RGB image to the tensor that a network sees.

    The image is resized, cropped at its centre, divided by 255, and normalised per channel as
    ``(x - mean) / std``. Black pads an image that is smaller than the crop, as in torchvision.

    Parameters
    ----------
    resize : int or (height, width)
        Length of the shorter side in pixels, or the exact size (the aspect ratio is then not kept).
    crop : (height, width) or None
        Centre crop in pixels; None keeps the whole image.
    interpolation : {"nearest", "bilinear", "bicubic", "lanczos"}
        Pillow's filter of that name, with antialiasing.
    mean, std : tuple of float
        One number a channel, in units of the image divided by 255.
    decoder : str
        Who turns bytes into pixels, with the version of the colour, alpha, depth and rotation policy.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int] | None
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    decoder: str = "pillow-rgb1"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise SpecError(
                f"Interpolation {self.interpolation!r} is not known; choose from {', '.join(INTERPOLATIONS)}."
            )
        sizes = (self.resize,) if isinstance(self.resize, int) else self.resize
        if any(size < 1 for size in (*sizes, *(self.crop or ()))):
            raise SpecError(
                f"Image sizes must be at least one pixel, got resize={self.resize}, crop={self.crop}."
            )
        if len(self.mean) != 3 or len(self.std) != 3:
            raise SpecError(f"Mean and std need three numbers (R, G, B), got {self.mean} and {self.std}.")
        if not all(math.isfinite(v) for v in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise SpecError(f"Mean must be finite and std positive, got mean={self.mean}, std={self.std}.")

    @property
    def mode(self) -> Literal["model", "whole"]:
        """ "whole" when the full image reaches the network, "model" when its border is cropped."""
        return "whole" if self.crop is None and isinstance(self.resize, tuple) else "model"

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(height, width) of the network's input, None where it follows the image."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; raises `SpecError` on a missing or an unknown field."""
        _require_kinds("Preprocessing", value, _PREPROCESSING_KINDS)
        for name in _PREPROCESSING_KINDS.keys() & value.keys() - {"interpolation", "decoder"}:
            numbers = value[name] if type(value[name]) is list else [value[name] or 1]
            kinds = {int, float} if name in ("mean", "std") else {int}
            if not set(map(type, numbers)) <= kinds or len(numbers) > 3:
                raise SpecError(f"Preprocessing has numbers as {name}, got {str(value[name])[:40]}.")
        return cls(**_known(cls, {name: _frozen(item) for name, item in value.items()}))


@dataclass(frozen=True, slots=True)
class Reduction:
    """What is kept of a layer's output: ``none``, ``mean``, ``max``, ``cls``, ``grid:K``, ``srp:D[:SEED]``.

    ``size`` is the side of the grid or the number of projected components; ``seed`` is the projection's.
    """

    kind: Literal["none", "mean", "max", "cls", "grid", "srp"]
    size: int = 0
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text form; raises `SpecError` when it is none of those above."""
        kind, *rest = text.split(":")
        wanted = {"none": (0, 0), "mean": (0, 0), "max": (0, 0), "cls": (0, 0), "grid": (1, 1), "srp": (1, 2)}
        low, high = wanted.get(kind, (-1, -1))
        numbers = [int(part) for part in rest if re.fullmatch(r"[0-9]{1,9}", part)]
        if not low <= len(rest) <= high or len(numbers) != len(rest) or (numbers and numbers[0] < 1):
            raise SpecError(
                f"Reduction {text!r} is not known. Write none, mean, max, cls, grid:K (such as grid:4) "
                "or srp:D:SEED (such as srp:4096:0)."
            )
        return cls(kind, *numbers)  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.kind == "grid":
            return f"grid:{self.size}"
        return f"srp:{self.size}:{self.seed}" if self.kind == "srp" else self.kind


@dataclass(frozen=True, slots=True)
class LayerRequest:
    """``PATTERN[:REDUCE]`` as written on the command line: which layers, and what to keep of them.

    A pattern is the name of a layer or a glob over such names. ``*`` stays within one dotted part, ``**``
    crosses parts. ``NAME@K`` asks for the K-th call of a layer that runs several times (from 0), and
    ``NAME/KEY`` for one element of a tuple or dict.
    """

    pattern: str
    reduction: Reduction = Reduction("none")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``PATTERN[:REDUCE]``; raises `SpecError`."""
        pattern, colon, reduction = text.partition(":")
        if not pattern:
            raise SpecError(f"Layer {text!r} has no name. Write PATTERN[:REDUCE], such as 'layer3:mean'.")
        return cls(pattern, Reduction.parse(reduction) if colon else Reduction("none"))

    def __str__(self) -> str:
        return f"{self.pattern}:{self.reduction}"


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """Everything that can change a number of one layer's features, except the images themselves.

    Parameters
    ----------
    model : str
        ``ZOO:NAME`` without a tag; a ``local:`` checkpoint has the name of the model inside it.
    weights : str
        Weights digest: SHA-256 over the sorted (name, dtype, shape, bytes) of what was loaded.
    layer : str
        A name from ``named_modules()``, or ``output`` for the model's own.
    preprocessing : Preprocessing or None
        None for imported arrays.
    model_args : tuple of (name, value)
        Sorted by name; scalars only.
    code : str
        SHA-256 of the file behind ``python:FILE.py:FUNCTION``.
    call : int
        Which call of a layer that runs several times in one pass.
    element : str
        Which element of a tuple or dict that the layer returns.
    prefix_tokens : int
        Tokens before the spatial ones (class, registers) in this model's sequences.
    layout : {"channels_first", "channels_last"}
        Where a four-dimensional output has its channels.
    reduction : Reduction
    reduction_version : int
        Version of that reduction's arithmetic.
    store_dtype : {"float32", "float16"}
    precision : {"fp32", "tf32", "bf16", "fp16"}
        Of the forward pass.
    view : int
        0 is the image itself; views from 1 on are augmented by ``augmentation`` from ``view_seed``.
    """

    model: str
    weights: str
    layer: str
    preprocessing: Preprocessing | None
    model_args: tuple[tuple[str, Scalar], ...] = ()
    code: str = ""
    call: int = 0
    element: str = ""
    prefix_tokens: int = 0
    layout: str = "channels_first"
    reduction: Reduction = Reduction("none")
    reduction_version: int = 1
    store_dtype: str = "float32"
    precision: str = "fp32"
    view: int = 0
    augmentation: str = ""
    view_seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise SpecError(
                f"Precision {self.precision!r} is not known; choose from {', '.join(PRECISIONS)}."
            )
        if self.store_dtype not in STORE_DTYPES:
            raise SpecError(
                f"Features are stored as {' or '.join(STORE_DTYPES)}, not {self.store_dtype!r}; "
                "zarr has no bfloat16."
            )
        if not HEX_DIGEST.fullmatch(self.weights):
            raise SpecError(f"A weights digest is 64 hexadecimal digits, got {self.weights!r}.")
        if list(self.model_args) != sorted(self.model_args, key=lambda item: item[0]):
            object.__setattr__(self, "model_args", tuple(sorted(self.model_args, key=lambda item: item[0])))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, without those at their default.

        A field that a later version adds leaves old keys as they are.
        """
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {f.name for f in fields(self) if f.default is MISSING or shown[f.name] != f.default}
        return {name: _plain(value) for name, value in shown.items() if name in kept}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; raises `SpecError` on a missing or an unknown field."""
        given = dict(value)
        _require_kinds("A spec", given, _SPEC_KINDS)
        if given.get("preprocessing") is not None:
            given["preprocessing"] = Preprocessing.from_json(given["preprocessing"])
        if "reduction" in given:
            given["reduction"] = Reduction.parse(given["reduction"])
        if "model_args" in given:
            if not set(map(type, given["model_args"].values())) <= _SCALARS:
                raise SpecError("The arguments of a model are text, numbers, true, false or null.")
            given["model_args"] = tuple(sorted(given["model_args"].items()))
        return cls(**_known(cls, given))

    def digest(self) -> str:
        """Return the digest of the features themselves, whatever the images."""
        return digest_of({"format": FORMAT, **self.to_json()})

    def document(self, stimuli: str) -> dict[str, Any]:
        """Return what ``spec.json`` holds: this spec and the digest of a stimulus set."""
        return {"format": FORMAT, "stimuli": stimuli, **self.to_json()}

    def key(self, stimuli: str) -> str:
        """Return the cache key of these features for a stimulus set given by its digest."""
        return digest_of(self.document(stimuli))

    @property
    def layer_label(self) -> str:
        """The layer as a request names it: ``NAME``, ``NAME@CALL``, ``NAME/ELEMENT``."""
        call = f"@{self.call}" if self.call else ""
        return self.layer + call + (f"/{self.element}" if self.element else "")


def match_names(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the names that a layer pattern matches, in their order.

    ``*`` and ``?`` stay within one dotted part, ``**`` crosses parts, ``[1-6]`` is one character. A name that
    equals the pattern is matched whatever its characters.
    """
    if pattern in names:
        return [pattern]
    wanted = re.compile(_glob(pattern))
    return [name for name in names if wanted.fullmatch(name)]


def _glob(pattern: str) -> str:
    """Translate a glob over dotted names to a regular expression."""
    tokens = re.split(r"(\*\*|\*|\?|\[!?[^\]]+\])", pattern)
    known = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    return "".join(known.get(token) or _literal_or_class(token) for token in tokens)


def _literal_or_class(token: str) -> str:
    if not re.fullmatch(r"\[!?[^\]]+\]", token):
        return re.escape(token)
    negated = token.startswith("[!")
    members = token[2 if negated else 1 : -1].replace("\\", r"\\").replace("^", r"\^").replace("[", r"\[")
    return f"[{'^.' if negated else ''}{members}]"


def split_layer(name: str) -> tuple[str, int | None, str]:
    """Split ``NAME[@CALL][/ELEMENT]`` into name, call (None when not given) and element."""
    base, _, element = name.partition("/")
    base, at, call = base.partition("@")
    if at and not call.isdecimal():
        raise SpecError(f"In layer {name!r} the call after '@' must be a number from 0, got {call!r}.")
    return base, int(call) if at else None, element


def _plain(value: Any) -> Any:
    if isinstance(value, Preprocessing):
        return value.to_json()
    if isinstance(value, Reduction):
        return str(value)
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return dict(value)  # model_args
    return list(value) if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


_SCALARS = {str, int, float, bool, type(None)}
_TEXTS = ("model", "weights", "layer", "code", "element", "layout", "reduction", "store_dtype", "precision")
_COUNTS = ("call", "prefix_tokens", "reduction_version", "view", "view_seed")
_SPEC_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys((*_TEXTS, "augmentation"), (str,)),
    **dict.fromkeys(_COUNTS, (int,)),
    "preprocessing": (dict, type(None)),
    "model_args": (dict,),
}
_PREPROCESSING_KINDS: Mapping[str, tuple[type, ...]] = {
    "resize": (int, list),
    "crop": (list, type(None)),
    "interpolation": (str,),
    "mean": (list,),
    "std": (list,),
    "decoder": (str,),
}


def _require_kinds(what: str, given: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    """Raise `SpecError` unless each field is of the kind of JSON value that it must be."""
    for name in given.keys() & kinds.keys():
        if type(given[name]) not in kinds[name]:
            wanted = " or ".join(kind.__name__ for kind in kinds[name])
            raise SpecError(f"{what} has {wanted} as {name}, got {repr(given[name])[:40]}.")


def _known(cls: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    needed = {f.name for f in fields(cls) if f.default is MISSING}
    if unknown := sorted(given.keys() - names):
        raise SpecError(
            f"{cls.__name__} has no field {', '.join(unknown)}; it may have been written by a newer featpipe."
        )
    if missing := sorted(needed - given.keys()):
        raise SpecError(f"{cls.__name__} lacks {', '.join(missing)}.")
    return dict(given)
