"""Where a network's layers have their channels, and what kind of network it is."""

from __future__ import annotations

from torch import nn

_FIRST = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d)
_LAST = (nn.Linear, nn.LayerNorm)


def layouts(module: nn.Module, *, of_tokens: bool = False) -> tuple[str, tuple[str, ...]]:
    """Return the network's usual layout of four-dimensional outputs, and the layers with the other one.

    A network of tokens has no such outputs beyond its patches, and so no exceptions.

    A convolution puts channels first and a linear layer last. A block of such layers follows them, and one
    that has both, or neither, follows its network.
    """
    usual = _usual(module)
    if of_tokens:
        return usual, ()
    exceptions: list[str] = []
    known: dict[str, str] = {"": usual}
    for name, child in module.named_modules():
        if name:
            parent = known[name.rpartition(".")[0]]
            known[name] = _own(child) or (usual if _mixed(child) else parent)
            exceptions += [name] if known[name] != usual else []
    return usual, tuple(exceptions)


def is_convolutional(module: nn.Module) -> bool:
    """Say whether a network convolves beyond cutting the image into patches."""
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    return sum(not _cuts_patches(convolution) for convolution in convolutions) >= 2


def _cuts_patches(convolution: nn.Conv2d) -> bool:
    return convolution.kernel_size == convolution.stride and convolution.kernel_size != (1, 1)


def _usual(module: nn.Module) -> str:
    """Trust what a timm network says of itself; Swin transformers of torchvision do not say."""
    stated = str(getattr(module, "output_fmt", "")).rpartition(".")[2]
    is_swin = type(module).__name__ == "SwinTransformer"
    return "channels_last" if stated == "NHWC" or is_swin else "channels_first"


def _own(module: nn.Module) -> str | None:
    """Return the layout that a layer's type, or the types within it, decide."""
    if "2d" in type(module).__name__ or isinstance(module, _FIRST):
        return "channels_first"
    if isinstance(module, _LAST):
        return "channels_last"
    stated = str(getattr(module, "output_fmt", "")).rpartition(".")[2]
    if stated in ("NHWC", "NCHW"):
        return "channels_last" if stated == "NHWC" else "channels_first"
    kinds = {_own(child) for child in module.modules() if isinstance(child, (*_FIRST, *_LAST))}
    return kinds.pop() if len(kinds) == 1 else None


def _mixed(module: nn.Module) -> bool:
    return any(isinstance(child, (*_FIRST, *_LAST)) for child in module.modules())
