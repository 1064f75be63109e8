"""Fresh crops in training: every position of a crop has a number, and a draw is a number."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from featpipe.views import Augmentation


class Crops:
    """All crops of one size out of images of one size, enlarged to that size again.

    Crop 0 is the whole image; 1 to `n` are the positions, row by row, each followed by its mirror image where
    the augmentation flips. So a crop can be made again from its number, whatever was drawn since.

    Parameters
    ----------
    augmentation : Augmentation
        Its fraction of the height and of the width, each rounded to whole pixels.
    size : (height, width)
    """

    def __init__(self, augmentation: Augmentation, size: tuple[int, int]) -> None:
        self._side = tuple(max(1, round(augmentation.fraction * side)) for side in size)
        self._size = size
        self._tops, self._lefts = (side - crop + 1 for side, crop in zip(size, self._side, strict=True))
        self._mirrors = 2 if augmentation.flip else 1
        self.n = self._tops * self._lefts * self._mirrors

    def draw(self, n_batch: int, generator: torch.Generator) -> torch.Tensor:
        """Return a crop for each row, uniform over 1 to `n`, (n_batch,), on the generator's device.

        Rows are drawn one after another: on the CPU a batch in parts has the crops of the whole.
        """
        return torch.randint(1, self.n + 1, (n_batch,), generator=generator, device=generator.device)

    def __call__(self, images: torch.Tensor, crops: torch.Tensor) -> torch.Tensor:
        """Return the crops of a batch, resized bilinearly to the size of the images.

        Parameters
        ----------
        images : uint8 tensor of shape (n_batch, 3, height, width)
        crops : long tensor of shape (n_batch,), on the CPU

        Returns
        -------
        float32 tensor of shape (n_batch, 3, height, width), from 0 to 255, on the device of the images
        """
        position = (crops - 1).clamp(min=0)
        tops = (position // self._mirrors // self._lefts).to(images.device)
        lefts = (position // self._mirrors % self._lefts).to(images.device)
        height, width = self._side
        windows = images.unfold(2, height, 1).unfold(3, width, 1)  # a view of all positions
        seen = windows[torch.arange(len(images), device=images.device), :, tops, lefts]
        mirrored = _places(position % self._mirrors == 1, images.device)
        seen[mirrored] = seen[mirrored].flip(3)
        large = F.interpolate(seen.to(torch.float32), size=self._size, mode="bilinear")
        whole = _places(crops == 0, images.device)
        large[whole] = images[whole].to(torch.float32)
        return large


def _places(chosen: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.nonzero(chosen)[:, 0].to(device)
