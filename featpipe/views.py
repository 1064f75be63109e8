"""Augmented views of a stimulus: which part of the image a network sees instead of the whole."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Self

from PIL import Image

from featpipe.errors import SpecError
from featpipe.spec import FeatureSpec

_VERSION = 1  # of the arithmetic below
_FORM = re.compile(r"crop:(?P<fraction>[0-9]*\.?[0-9]+)(?P<flip>:flip)?(?::(?P<version>[0-9]+))?")


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What makes a view: ``crop:FRACTION[:flip]``.

    A crop has `fraction` of the image's height and width, each rounded to whole pixels, and lies anywhere in
    the image with equal probability. It takes the place of the image before the network's preprocessing.
    The default is that of Gaziv (2019), section 2.3: crops of 87.5 % of the input size.

    Parameters
    ----------
    fraction : float
        Side of the crop over side of the image, > 0 and < 1.
    flip : bool
        Mirror one half of the views left to right.
    """

    fraction: float = 0.875
    flip: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise SpecError(f"A crop must be a fraction between 0 and 1 of each side, got {self.fraction}.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``crop:FRACTION[:flip]``, with the version behind it or without; raises `SpecError`."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise SpecError(
                f"Augmentation {text!r} is not known. Write crop:FRACTION or crop:FRACTION:flip, such as crop:0.875."
            )
        if found["version"] not in (None, str(_VERSION)):
            raise SpecError(
                f"Augmentation {text!r} is of version {found['version']}; this featpipe makes version {_VERSION}."
            )
        return cls(float(found["fraction"]), found["flip"] is not None)

    def __str__(self) -> str:
        """Return the form that enters a key, with the version of the arithmetic."""
        return f"crop:{self.fraction!r}{':flip' if self.flip else ''}:{_VERSION}"


USUAL = Augmentation()


@dataclass(frozen=True, slots=True)
class View:
    """One view of every image; number 0 is the image itself.

    Where a crop lies depends on the image's bytes, the number and the seed, and on nothing else: not on the
    id, the stimulus set, its order, or the batch.

    Parameters
    ----------
    number : int
        >= 0.
    augmentation : Augmentation
    seed : int
    """

    number: int = 0
    augmentation: Augmentation = USUAL
    seed: int = 0

    def of(self, image: Image.Image, sha256: str) -> Image.Image:
        """Return the view of an image whose stored bytes have a digest."""
        if self.number == 0:
            return image
        # 256 random bits, the same on every machine and with every library
        drawn = hashlib.sha256(f"featpipe-view {self.seed} {self.number} {sha256}".encode()).digest()
        left, width = _span(image.width, self.augmentation.fraction, drawn[:8])
        top, height = _span(image.height, self.augmentation.fraction, drawn[8:16])
        seen = image.crop((left, top, left + width, top + height))
        mirrored = self.augmentation.flip and drawn[16] % 2 == 1
        return seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else seen


ITSELF = View()


def spec_of_view(spec: FeatureSpec, view: View) -> FeatureSpec:
    """Return the features of a view, given those of the image itself; of view 0 they are the same."""
    if view.number == 0:
        return spec
    return replace(spec, view=view.number, augmentation=str(view.augmentation), view_seed=view.seed)


def _span(side: int, fraction: float, drawn: bytes) -> tuple[int, int]:
    """Return (start, length) of a crop along one side, from eight random bytes."""
    length = max(1, round(fraction * side))
    return int.from_bytes(drawn, "big") * (side - length + 1) >> 64, length
