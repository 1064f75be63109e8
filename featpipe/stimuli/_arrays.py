"""Images that are the rows of an array, whatever file format holds it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from featpipe.errors import EmptySource, StimulusError
from featpipe.stimuli._damage import Unusable, damage_as
from featpipe.stimuli._decode import require_pixels
from featpipe.stimuli._ids import require_unique
from featpipe.stimuli._images import Part

_CHANNELS = (1, 3, 4)
_MAX_IMAGES = 10_000_000  # metadata of a stranger can claim any number
_MAX_CHUNK = 1 << 29  # bytes; one image costs decoding its chunk
_KINDS = (np.dtype(np.uint8), np.dtype(np.uint16))


class Rows(Protocol):
    """An array on disk whose rows can be read one by one, from any thread."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_stimuli, …)."""

    @property
    def dtype(self) -> np.dtype:
        """Of the stored values."""

    def row(self, position: int) -> np.ndarray:
        """Read one row into memory."""


@dataclass(frozen=True)
class ArrayImages:
    """The rows of one array as images."""

    rows: Rows
    ids: tuple[str, ...]
    label: str
    depends: tuple[Path, ...]
    within: Any = None

    def file(self, position: int) -> str:
        return f"{self.label}[{position}]"

    @property
    def parts(self) -> list[Part]:
        return [Part(self.depends, range(len(self.ids)), self.within)]

    def read(self, position: int) -> np.ndarray:
        with damage_as(
            lambda why: StimulusError(
                f"Image {self.file(position)!r} cannot be read: {why}. Check that the file is whole."
            )
        ):
            return self.rows.row(position)


def array_images(
    rows: Rows,
    label: str,
    depends: Sequence[Path],
    *,
    max_pixels: int,
    ids: Sequence[str] | None = None,
    within: Any = None,
) -> ArrayImages:
    """Take the rows of an array as images, after checking that they can only be meant in one way.

    Parameters
    ----------
    rows : Rows of shape (n, H, W), (n, H, W, C) or (n, C, H, W), uint8 or uint16, C one of 1, 3, 4
    label : str
        How errors name the array.
    depends : sequence of Path
        The files that hold it.
    ids : sequence of str, optional
        Without them, the row number in at least five digits: ``00000``, ``00001`` …
    within : JSON value
        Where in those files.
    """
    _require_pixel_type(rows.dtype, label)
    require_layout(rows.shape, label)
    height, width = rows.shape[-2:] if _channels_first(rows.shape) else rows.shape[1:3]
    try:
        require_pixels(width, height, max_pixels)
    except Unusable as error:
        raise error.named(f"{label}[0]") from None
    n_stimuli = rows.shape[0]
    names = numbered(n_stimuli) if ids is None else tuple(ids)
    if len(names) != n_stimuli:
        raise StimulusError(
            f"{label!r} has {n_stimuli} images and {len(names)} ids. Give exactly one id per image."
        )
    require_unique(names, (f"{label}[{row}]" for row in range(n_stimuli)))
    return ArrayImages(rows, names, label, tuple(depends), within)


def require_chunks(chunks: Sequence[int] | None, dtype: np.dtype, label: str) -> None:
    """Raise `StimulusError` where the chunk around one image would fill the memory."""
    n_bytes = math.prod(chunks or ()) * dtype.itemsize
    if n_bytes > _MAX_CHUNK:
        raise StimulusError(
            f"{label!r} has chunks of {tuple(chunks or ())}, which are {n_bytes} bytes each; {_MAX_CHUNK} "
            "are the limit, because one image costs a whole chunk. Write it again with one image per chunk."
        )


def numbered(n_stimuli: int, prefix: str = "") -> tuple[str, ...]:
    """Return row numbers as ids, zero-padded to at least five digits."""
    digits = max(5, len(str(n_stimuli - 1)))
    return tuple(f"{prefix}{row:0{digits}d}" for row in range(n_stimuli))


def _require_pixel_type(dtype: np.dtype, label: str) -> None:
    if dtype.hasobject:
        raise StimulusError(
            f"{label!r} holds Python objects (a pickle), which are never loaded because they can run code. "
            "Save the images as an array of uint8."
        )
    if dtype.newbyteorder("=") not in _KINDS:
        raise StimulusError(
            f"{label!r} has values of {dtype}; images are uint8 (0 to 255) or uint16 (0 to 65535). Convert "
            "them, such as np.round(images * 255).astype(np.uint8) for values between 0 and 1."
        )


def require_layout(shape: tuple[int, ...], label: str) -> None:
    """Raise `StimulusError` for a shape that is not one of images, or may be meant in two ways."""
    wanted = "Wanted: (n, height, width), (n, height, width, C) or (n, C, height, width) with C of 1, 3 or 4."
    if shape and shape[0] == 0:
        raise EmptySource(f"{label!r} has the shape {shape}, so it holds no image. {wanted}")
    if len(shape) not in (3, 4) or 0 in shape or shape[0] > _MAX_IMAGES:
        raise StimulusError(f"{label!r} has the shape {shape}, which is not one of images. {wanted}")
    if len(shape) == 3 and shape[-1] in _CHANNELS:
        raise StimulusError(
            f"{label!r} has the shape {shape}, which looks like one image and not a stack. Save it as "
            f"images[np.newaxis]. {wanted}"
        )
    if len(shape) == 4 and (shape[-1] in _CHANNELS) == (shape[1] in _CHANNELS):
        which = (
            "either the second or the last" if shape[-1] in _CHANNELS else "neither the second nor the last"
        )
        raise StimulusError(
            f"{label!r} has the shape {shape}, in which {which} axis can be the channels. {wanted}"
        )


def _channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[-1] not in _CHANNELS
