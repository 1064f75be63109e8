"""The classifier of AlexNet and VGG slid over images that are larger than those of its training."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from featpipe.errors import ModelError
from featpipe.models import Backbone


def slide_classifier(backbone: Backbone) -> ExitStack:
    """Let the fully connected layers of a network run as convolutions over larger maps, as MatConvNet does.

    torchvision averages a larger map down to the size that the first of these layers takes. Here that layer looks
    at every window of that size instead, with the weights that it has (the layer is the same object, so tuned
    weights apply), the others at every place of the result: their outputs are maps (n, channels, height,
    width), 3×3 for the 9×9 of VGG-16 at 300×300. Names of layers stay. A map that is no larger, as at 224×224, goes
    the plain way and gives rows (n, channels).

    Parameters
    ----------
    backbone : Backbone
        AlexNet or VGG from torchvision, or another network of ``features``, ``avgpool`` and ``classifier``; its
        module is changed in place.

    Returns
    -------
    ExitStack
        Closing it makes the network plain again: ``with slide_classifier(backbone): …``.

    Raises
    ------
    ModelError
        Another network.

    References
    ----------
    Agrawal (2019), section 2: images of 300×300 for late MEG. Long, Shelhamer & Darrell (2015), section 3.1.
    """
    module = backbone.module
    size = _pooled_size(backbone)
    linear = [layer for layer in module.classifier if isinstance(layer, nn.Linear)]
    with ExitStack() as stack:
        _replace(stack, module, partial(_forward, module, size))
        _replace(stack, module.avgpool, partial(_no_smaller, size))
        for layer in linear:
            _replace(stack, layer, partial(_over_map, layer, size if layer is linear[0] else (1, 1)))
        return stack.pop_all()


def _pooled_size(backbone: Backbone) -> tuple[int, int]:
    """Return the (height, width) of the map that the classifier takes."""
    module = backbone.module
    parts = [getattr(module, name, None) for name in ("features", "avgpool", "classifier")]
    if isinstance(parts[1], nn.AdaptiveAvgPool2d) and isinstance(parts[2], nn.Sequential):
        size = parts[1].output_size
        height, width = (size, size) if isinstance(size, int) else size
        first = next((layer for layer in parts[2] if isinstance(layer, nn.Linear)), None)
        if (
            first is not None
            and height
            and width
            and first.in_features % (height * width) == 0
            and height * width > 1
        ):
            return height, width
    raise ModelError(
        f"{backbone.card.architecture} has no fully connected layers over a map that could slide over a larger "
        "one. Only networks of features, avgpool and classifier have them: torchvision:alexnet and "
        "torchvision:vgg11 to vgg19. Leave fully_convolutional out."
    )


def _replace(stack: ExitStack, layer: nn.Module, forward: partial) -> None:
    layer.forward = forward
    stack.callback(vars(layer).pop, "forward", None)


def _forward(module: nn.Module, size: tuple[int, int], images: torch.Tensor) -> torch.Tensor:
    maps = module.avgpool(module.features(images))
    return module.classifier(maps.flatten(1) if maps.shape[2:] == size else maps)


def _no_smaller(size: tuple[int, int], maps: torch.Tensor) -> torch.Tensor:
    """Leave a map that the classifier can slide over; stretch a smaller one, as torchvision does."""
    fits = maps.shape[2] >= size[0] and maps.shape[3] >= size[1]
    return maps if fits else F.adaptive_avg_pool2d(maps, size)


def _over_map(layer: nn.Linear, size: tuple[int, int], given: torch.Tensor) -> torch.Tensor:
    if given.ndim != 4:
        return F.linear(given, layer.weight, layer.bias)
    kernels = layer.weight.reshape(layer.out_features, -1, *size)
    return F.conv2d(given, kernels, layer.bias)
