"""Visual towers from open_clip. The text tower is never built."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import nn

from featpipe.errors import ModelError
from featpipe.models._architecture import Architecture, State, Wanted, construct, no_pretrained, unknown_model
from featpipe.models._hub import hub_file, url_file
from featpipe.models._torchvision import import_torchvision
from featpipe.models._weights import load_state, read_state
from featpipe.spec import Preprocessing

_HUB_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_ARGS = {"force_quick_gelu"}


def import_open_clip() -> Any:
    """Import open_clip, which imports torchvision."""
    import_torchvision()
    import open_clip

    return open_clip


def build(wanted: Wanted) -> Architecture:
    """Build the visual tower of one of open_clip's networks.

    Its forward pass is ``encode_image`` before normalisation. Weights that were trained with QuickGELU get
    it: ``force_quick_gelu`` is then among the arguments, and so in the key.

    Raises
    ------
    UnknownModel, WeightsUnavailable, ModelError
    """
    tag_cfg, tag = _pretrained_config(wanted)
    args = dict(wanted.args)
    if tag_cfg.get("quick_gelu") and not _config(wanted.name).get("quick_gelu"):
        args["force_quick_gelu"] = True
    tower = construct("open_clip", wanted.name, partial(_tower, wanted), **args)
    adapt = partial(_visual_part, tower)
    files = _files(tag_cfg) if wanted.pretrained else []
    missing = load_state(tower, adapt(read_state(files[0])), source=files[0]) if files else ()
    trunk = getattr(tower, "trunk", tower)
    has_class_token = getattr(tower, "class_embedding", getattr(trunk, "cls_token", None)) is not None
    return Architecture(
        module=tower,
        preprocessing=_preprocessing(tag_cfg, tower, wanted),
        args=args,
        label=tag or "",
        prefix_tokens=getattr(trunk, "num_prefix_tokens", int(has_class_token)),
        class_token=has_class_token,
        missing=missing,
        files=tuple(map(str, files)),
        adapt=adapt,
    )


def tags_of(name: str) -> list[str]:
    """Return the tags of open_clip's weights for a network."""
    return list(import_open_clip().list_pretrained_tags_by_model(name))


def _config(name: str) -> dict[str, Any]:
    open_clip = import_open_clip()
    config = open_clip.get_model_config(name)
    if config is None:
        raise unknown_model("open_clip", name, open_clip.list_models())
    return dict(config)


def _pretrained_config(wanted: Wanted) -> tuple[dict[str, Any], str | None]:
    """Return open_clip's configuration of a tag, empty without one."""
    open_clip = import_open_clip()
    _config(wanted.name)
    tags = tags_of(wanted.name)
    tag = wanted.tag or (tags[0] if wanted.pretrained and len(tags) == 1 else None)
    if (tag is None and wanted.pretrained) or (tag is not None and tag not in tags):
        raise no_pretrained(f"open_clip:{wanted.name}", tag, tags)
    return (dict(open_clip.get_pretrained_cfg(wanted.name, tag)) if tag else {}), tag


def _tower(wanted: Wanted, **args: Any) -> nn.Module:
    """Build the visual tower as open_clip's own models do."""
    from open_clip.model import _build_vision_tower

    if unknown := args.keys() - _ARGS:
        raise TypeError(f"open_clip's visual tower takes {sorted(_ARGS)}, not {sorted(unknown)}")
    config = _config(wanted.name)
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    if wanted.input_size is not None:
        vision["image_size"] = wanted.input_size
    quick_gelu = bool(config.get("quick_gelu") or args.get("force_quick_gelu"))
    tower = _build_vision_tower(config["embed_dim"], vision, quick_gelu)
    if getattr(tower, "output_tokens", False):
        tower.output_tokens = False  # CoCa's tower: the pooled embedding alone
    return tower


def _visual_part(tower: nn.Module, state: State) -> State:
    """Keep the visual tower of a whole checkpoint, its position embedding resized to the tower's grid."""
    from open_clip.model import resize_pos_embed

    whole = (
        state
        if any(name.startswith("visual.") for name in state)
        else {f"visual.{k}": v for k, v in state.items()}
    )
    visual = {name: tensor for name, tensor in whole.items() if name.startswith("visual.")}
    resize_pos_embed(visual, SimpleNamespace(visual=tower))
    return {name.removeprefix("visual."): tensor for name, tensor in visual.items()}


def _files(tag_cfg: dict[str, Any]) -> list[Any]:
    if hub := tag_cfg.get("hf_hub"):
        repository, _, name = hub.rpartition("/")
        safe = name.rpartition(".")[0] + ".safetensors"
        return hub_file(repository, [safe, name] if name else _HUB_NAMES)
    return url_file(tag_cfg["url"])


def _preprocessing(tag_cfg: dict[str, Any], tower: nn.Module, wanted: Wanted) -> Preprocessing:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    config = merge_preprocess_dict(PreprocessCfg(), tag_cfg)
    size = getattr(tower, "image_size", config["size"])
    height, width = (size, size) if isinstance(size, int) else size
    mode = "squash" if wanted.whole else config["resize_mode"]
    if mode == "longest" or (mode == "shortest" and height != width):
        raise ModelError(
            f"open_clip:{wanted.name} resizes the {mode} side to fit {height}×{width}, which featpipe does "
            "not do. Use --preprocess whole, which resizes the whole image to the input size."
        )
    return Preprocessing(
        resize=height if mode == "shortest" else (height, width),
        crop=(height, width) if mode == "shortest" else None,
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
