"""From a decoded image to the tensor that a network sees."""

from __future__ import annotations

import torch
from PIL import Image

from featpipe.spec import Preprocessing


def apply_preprocessing(image: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
    """Resize and crop an RGB image: uint8 tensor of shape (3, height, width)."""
    raise NotImplementedError


def normalise(batch: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Turn a uint8 batch of shape (n, 3, height, width) into the float32 that the network sees."""
    raise NotImplementedError
