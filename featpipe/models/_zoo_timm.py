"""Networks from timm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from featpipe.errors import ModelError, WeightsUnavailable
from featpipe.models._architecture import Architecture, Wanted, construct, no_pretrained, unknown_model
from featpipe.models._hub import hub_file, url_file
from featpipe.models._torchvision import import_torchvision
from featpipe.spec import Preprocessing, Scalar


def import_timm() -> Any:
    """Import timm, which imports torchvision."""
    import_torchvision()
    import timm

    return timm


def build(wanted: Wanted) -> Architecture:
    """Build one of timm's networks.

    Raises
    ------
    UnknownModel, WeightsUnavailable, ModelError
    """
    timm = import_timm()
    cfg = _config(wanted)
    full = f"{wanted.name}.{wanted.tag}" if wanted.tag else wanted.name
    files = _files(cfg, wanted) if wanted.pretrained else []
    overlay = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(files[0])}} if files else {}
    create = partial(timm.create_model, full, **overlay)
    module, args = _sized(create, wanted)
    return Architecture(
        module=module,
        preprocessing=from_timm(timm.data.resolve_model_data_config(module), f"timm:{full}", wanted.whole),
        args=args,
        label=cfg.tag or "default",
        prefix_tokens=getattr(module, "num_prefix_tokens", 0),
        class_token=getattr(module, "cls_token", None) is not None,
        missing=_untrained_head(module, cfg) if files else (),
        files=tuple(map(str, files)),
    )


def from_timm(config: Mapping[str, Any], model: str, whole: bool = False) -> Preprocessing:
    """Turn timm's data configuration into a `Preprocessing`; raises `ModelError` where it cannot."""
    height, width = config["input_size"][-2:]
    crop_mode = "squash" if whole else config.get("crop_mode") or "center"
    if crop_mode not in ("center", "squash") or (crop_mode == "center" and height != width):
        raise ModelError(
            f"{model} asks for a {crop_mode!r} crop to {height}×{width}, which featpipe does not do. "
            "Use --preprocess whole, which resizes the whole image to the input size."
        )
    scaled = (math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"]))
    interpolation = "bilinear" if config["interpolation"] == "random" else config["interpolation"]
    kept_whole = whole or (crop_mode == "squash" and scaled == (height, width))
    return Preprocessing(
        resize=(height, width) if kept_whole else scaled[0] if crop_mode == "center" else scaled,
        crop=None if kept_whole else (height, width),
        interpolation=interpolation,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _config(wanted: Wanted) -> Any:
    """Return timm's pretrained configuration of a name and tag."""
    timm = import_timm()
    if not timm.is_model(wanted.name):
        raise unknown_model("timm", wanted.name, timm.list_models())
    tags = tags_of(wanted.name)
    if wanted.tag and wanted.tag not in tags:
        raise no_pretrained(f"timm:{wanted.name}", wanted.tag, tags)
    return timm.get_pretrained_cfg(f"{wanted.name}.{wanted.tag}" if wanted.tag else wanted.name)


def tags_of(name: str) -> list[str]:
    """Return the tags of timm's pretrained weights for a name, the default first."""
    cfgs = import_timm().models.get_arch_pretrained_cfgs(name).values()
    return [cfg.tag for cfg in cfgs if cfg.tag and cfg.has_weights]


def _files(cfg: Any, wanted: Wanted) -> list[Any]:
    if cfg.hf_hub_id:
        repository, _, revision = cfg.hf_hub_id.partition("@")
        names = [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        return hub_file(repository, names, revision or None)
    if cfg.url:
        return url_file(cfg.url)
    raise no_pretrained(f"timm:{wanted.name}", None, [])


def _sized(create: partial[nn.Module], wanted: Wanted) -> tuple[nn.Module, dict[str, Scalar]]:
    """Build, and where the network insists on its own input size, build it for the one wanted."""
    call = partial(construct, "timm", wanted.name, create)
    module = call(**wanted.args)
    if wanted.input_size is None or _accepts(module, wanted.input_size):
        return module, wanted.args
    height, width = wanted.input_size
    choices: list[dict[str, Scalar]] = [{"dynamic_img_size": True}]
    choices += [{"img_size": height}] if height == width else []
    for extra in choices:
        try:
            module = call(**{**wanted.args, **extra})
        except (ModelError, WeightsUnavailable):
            continue
        if _accepts(module, wanted.input_size):
            return module, {**wanted.args, **extra}
    raise ModelError(
        f"timm:{wanted.name} cannot take images of {height}×{width} pixels. Leave --image-size out, or pass "
        "the argument that this network has for it with --model-arg."
    )


@torch.inference_mode()
def _accepts(module: nn.Module, size: tuple[int, int]) -> bool:
    """Try the network on one black image; sizes are checked in many places, so nothing else is sure."""
    was_training = module.training
    try:
        module.eval()(torch.zeros(1, 3, *size))
    except (AssertionError, RuntimeError, ValueError):
        return False
    finally:
        module.train(was_training)
    return True


def _untrained_head(module: nn.Module, cfg: Any) -> tuple[str, ...]:
    """Return the parameters of a classifier that pretrained weights do not have in this size."""
    if getattr(module, "num_classes", None) == cfg.num_classes or not cfg.classifier:
        return ()
    heads = (cfg.classifier,) if isinstance(cfg.classifier, str) else cfg.classifier
    return tuple(
        name for name, _ in module.named_parameters() if name.startswith(tuple(f"{head}." for head in heads))
    )
