"""Where a network's layers have their channels, and what kind of network it is."""

from __future__ import annotations

import torch
from torch import nn

from featpipe.errors import ModelError
from featpipe.models._hooks import elements_of, every_module_called, hooked

_FAILURES = (RuntimeError, AssertionError, ValueError, TypeError, IndexError)


def layouts(module: nn.Module, size: tuple[int, int]) -> tuple[str, tuple[str, ...]]:
    """Return the network's usual layout of four-dimensional outputs, and the layers with the other one.

    Names and types of layers do not tell, so the shapes of one square image are followed: of the three axes of
    a map two are equal, and the other one is its channels. Where all are equal, or all differ, the layer
    follows its network.

    Raises
    ------
    ModelError
        When the network does not take an image of this size.
    """
    shapes = _map_shapes(module, size)
    seen = {name: found for name, shape in shapes.items() if (found := _layout(shape))}
    usual = _stated(module) or "channels_first"
    return usual, tuple(name for name, layout in seen.items() if layout != usual)


def is_convolutional(module: nn.Module) -> bool:
    """Say whether a network convolves beyond cutting the image into patches."""
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    return sum(not _cuts_patches(convolution) for convolution in convolutions) >= 2


def _cuts_patches(convolution: nn.Conv2d) -> bool:
    return convolution.kernel_size == convolution.stride and convolution.kernel_size != (1, 1)


def _stated(module: nn.Module) -> str | None:
    """Return what a timm network says of itself; Swin transformers of torchvision do not say."""
    stated = str(getattr(module, "output_fmt", "")).rpartition(".")[2]
    return "channels_last" if stated == "NHWC" or type(module).__name__ == "SwinTransformer" else None


def _layout(shape: tuple[int, ...]) -> str | None:
    first, second, third = shape
    if second == third != first:
        return "channels_first"
    return "channels_last" if first == second != third else None


def _map_shapes(module: nn.Module, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of one image's map per layer that gives one, in network order."""
    shapes: dict[str, tuple[int, ...]] = {}

    def see(name: str, output: object) -> None:
        tensors = [t for t in (elements_of(output) or {"": output}).values() if isinstance(t, torch.Tensor)]
        maps = [tuple(tensor.shape[1:]) for tensor in tensors if tensor.ndim == 4]
        if maps:
            shapes.setdefault(name, maps[0])

    layers = {name or "output": layer for name, layer in module.named_modules()}
    with torch.inference_mode(), hooked(layers, see), every_module_called():
        _pass_square(module, size)
    return {name: shapes[name] for name in layers if name in shapes}


def _pass_square(module: nn.Module, size: tuple[int, int]) -> None:
    """Run a square image; a network that insists on another form runs that, and its maps tell nothing.

    Shapes are enough, so torch's meta device computes nothing; a network with tensors that it does not
    register computes after all.
    """
    side = min(size)
    for shape in dict.fromkeys([(side, side), size]):
        for run in (_run_on_meta, _run):
            try:
                run(module, shape)
            except _FAILURES as error:
                failure = error
            else:
                return
    raise ModelError(
        f"The network does not take an image of {size[0]}×{size[1]} pixels: {type(failure).__name__}: {failure}. "
        "Check --image-size and --model-arg."
    ) from failure


def _run_on_meta(module: nn.Module, size: tuple[int, int]) -> None:
    named = [*module.named_parameters(), *module.named_buffers()]
    shapes = {name: tensor.detach().to("meta") for name, tensor in named}
    torch.func.functional_call(module, shapes, torch.zeros(1, 3, *size, device="meta"))


def _run(module: nn.Module, size: tuple[int, int]) -> None:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    module(torch.zeros(1, 3, *size, device=device))
