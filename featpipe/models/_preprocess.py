"""From a decoded image to the tensor that a network sees.

Geometry is done by Pillow on whole pixels, so a batch travels as uint8; dividing and normalising is left to
the device. The result equals the transforms of timm, open_clip and torchvision bit for bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from featpipe.errors import ModelError, SpecError
from featpipe.models._card import ModelRequest
from featpipe.spec import Preprocessing

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def apply_preprocessing(image: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
    """Resize and crop an RGB image.

    Returns
    -------
    tensor of shape (3, height, width), uint8
        In the memory order of the image, channels last: called from many threads, it leaves what torch would
        do in parallel to whoever stacks a batch.
    """
    height, width = _resized(image.size, preprocessing.resize)
    if image.size != (width, height):
        image = image.resize((width, height), _FILTERS[preprocessing.interpolation])
    if preprocessing.crop is not None:
        image = _centre_crop(image, preprocessing.crop)
    pixels = np.array(image, dtype=np.uint8)  # (height, width, 3), a copy
    return torch.from_numpy(pixels).permute(2, 0, 1)


def normalise(batch: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Turn a uint8 batch of shape (n, 3, height, width) into ``(x / 255 - mean) / std``, float32."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=batch.device)
        for values in (preprocessing.mean, preprocessing.std)
    )
    found = batch.to(torch.float32).div_(255)
    lines = found.movedim(1, -1)  # (n, height, width, 3)
    if lines.is_contiguous():  # channels last: arithmetic on whole lines is several times as fast
        width = lines.shape[2]
        lines.flatten(2).sub_(mean.repeat(width)).div_(std.repeat(width))
        return found
    return found.sub_(mean[:, None, None]).div_(std[:, None, None])


def override(native: Preprocessing, request: ModelRequest) -> Preprocessing:
    """Return a network's preprocessing with what the request changes.

    Another input size keeps the ratio of resize to crop. ``whole`` resizes the whole image to the input size.
    """
    size = request.input_size or native.input_size
    if request.preprocess == "whole":
        if size is None:
            raise SpecError(
                "This network has no input size of its own; --preprocess whole needs --image-size."
            )
        native = replace(native, resize=size, crop=None)
    elif request.input_size is not None:
        native = _rescaled(native, request.input_size)
    changed: dict[str, Any] = {
        "mean": request.mean,
        "std": request.std,
        "interpolation": request.interpolation,
    }
    return replace(native, **{name: value for name, value in changed.items() if value is not None})


def _rescaled(native: Preprocessing, size: tuple[int, int]) -> Preprocessing:
    if native.crop is None or isinstance(native.resize, tuple):
        old = native.crop or native.input_size or size
        pairs = zip(native.resize if isinstance(native.resize, tuple) else old, old, size, strict=True)
        height, width = (round(resize * new / crop) for resize, crop, new in pairs)
        return replace(native, resize=(height, width), crop=size if native.crop else None)
    if size[0] != size[1]:
        raise ModelError(
            f"An input of {size[0]}×{size[1]} pixels cannot be cut from an image whose shorter side is "
            "fixed. Use --preprocess whole, or a square --image-size."
        )
    return replace(native, resize=round(native.resize * size[0] / native.crop[0]), crop=size)


def _resized(size: tuple[int, int], target: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) after the resize; the longer side is rounded down, as in torchvision."""
    if isinstance(target, tuple):
        return target
    width, height = size
    short, long = min(size), max(size)
    longer = int(target * long / short)
    return (longer, target) if height >= width else (target, longer)


def _centre_crop(image: Image.Image, crop: tuple[int, int]) -> Image.Image:
    """Cut the centre, halves rounded to even as in torchvision; what lies outside the image is black."""
    height, width = crop
    if image.width < width or image.height < height:
        left, top = max(width - image.width, 0) // 2, max(height - image.height, 0) // 2
        padded = Image.new("RGB", (max(width, image.width), max(height, image.height)))
        padded.paste(image, (left, top))
        image = padded
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
