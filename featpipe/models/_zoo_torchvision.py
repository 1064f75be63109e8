"""Classification networks from torchvision."""

from __future__ import annotations

from functools import partial
from typing import Any

from featpipe.errors import ModelError
from featpipe.models._architecture import Architecture, Wanted, construct, no_pretrained, unknown_model
from featpipe.models._hub import url_file
from featpipe.models._torchvision import import_torchvision
from featpipe.spec import Preprocessing, Scalar

# Written out because torchvision sets them by itself when it loads weights, and they change the result.
_IMPLIED: dict[str, dict[str, Scalar]] = {
    "googlenet": {"transform_input": True, "aux_logits": False},
    "inception_v3": {"transform_input": True},
}


def build(wanted: Wanted) -> Architecture:
    """Build one of torchvision's classification networks.

    Raises
    ------
    UnknownModel, ModelError, WeightsUnavailable
    """
    models = import_torchvision().models
    _check_name(wanted.name)
    weights = _weights(wanted)
    if wanted.pretrained and weights is None:
        raise no_pretrained(f"torchvision:{wanted.name}", None, [])
    args = {**_IMPLIED.get(wanted.name, {}), **wanted.args, **_sized(wanted, weights)}
    silent = {"init_weights": False} if wanted.name in _IMPLIED else {}  # or it warns of a slow default
    files = url_file(weights.url) if wanted.pretrained and weights is not None else []
    loaded = {"weights": weights, **wanted.args} if files else {"weights": None, **args, **silent}
    module = construct("torchvision", wanted.name, partial(models.get_model, wanted.name), **loaded)
    is_vit = isinstance(module, models.VisionTransformer)
    return Architecture(
        module=module,
        preprocessing=_preprocessing(weights),
        args=args,
        label=weights.name if weights is not None else "",
        prefix_tokens=int(is_vit),
        class_token=is_vit,
        files=tuple(map(str, files)),
    )


def _sized(wanted: Wanted, weights: Any) -> dict[str, Scalar]:
    """Return the argument for another input size: only vision transformers insist on one."""
    own = _preprocessing(weights).input_size
    size = wanted.input_size
    if not wanted.name.startswith("vit_") or size is None or size == own:
        return {}
    height, width = size
    if wanted.pretrained or height != width:
        raise ModelError(
            f"torchvision:{wanted.name} with these weights takes images of {own} pixels, not {height}×{width}. "
            "Leave --image-size out, or take the network from timm, which resizes its position embedding."
        )
    return {"image_size": height}


def tags_of(name: str) -> list[str]:
    """Return the names of torchvision's weights for a network, the default first."""
    weights = import_torchvision().models.get_model_weights(name)
    members = list(weights.__members__)
    default = weights.DEFAULT.name if members else None
    return sorted(
        dict.fromkeys(member for member in members if member != "DEFAULT"), key=lambda m: m != default
    )


def classification_names() -> list[str]:
    """Return the names of torchvision's classification networks."""
    models = import_torchvision().models
    return list(models.list_models(module=models))


def _check_name(name: str) -> None:
    known = classification_names()
    if name in known:
        return
    if name in import_torchvision().models.list_models():
        raise ModelError(
            f"torchvision:{name} is not a classification network; detection, segmentation, video and "
            "quantised networks take other input. Choose from `featpipe models --zoo torchvision`."
        )
    raise unknown_model("torchvision", name, known)


def _weights(wanted: Wanted) -> Any:
    """Return the member of torchvision's weights enumeration, None where a network has none."""
    weights = import_torchvision().models.get_model_weights(wanted.name)
    if wanted.tag is None:
        return getattr(weights, "DEFAULT", None)
    if wanted.tag not in weights.__members__:
        raise no_pretrained(f"torchvision:{wanted.name}", wanted.tag, tags_of(wanted.name))
    return weights[wanted.tag]


def _preprocessing(weights: Any) -> Preprocessing:
    """Return the evaluation transform of the weights; ImageNet's usual one where a network has none."""
    if weights is None:
        return Preprocessing(256, (224, 224), "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transform = weights.transforms()
    crop = int(transform.crop_size[0])
    return Preprocessing(
        resize=int(transform.resize_size[0]),
        crop=(crop, crop),
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )
