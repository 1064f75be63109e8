"""From the stored bytes of an image to RGB pixels: one documented policy, named by `DECODER`.

* Formats: PNG, JPEG, BMP, GIF, TIFF, WebP, PNM, JPEG 2000. The content decides, not the extension.
* Several frames or pages (GIF, APNG, TIFF, MPO): the first.
* The rotation that EXIF asks for is applied.
* Alpha, also a transparent palette entry or colour, is laid over white: what image viewers show and
  most object sets were drawn on. Flatten the images first where subjects saw another background.
* Greyscale and 1-bit are replicated into three channels; palettes are looked up.
* 16-bit greyscale ``v`` becomes ``round(v / 257)``: full range to full range, nothing clipped. Of 16-bit
  colour Pillow keeps the high byte, which differs from that by at most one level.
* CMYK and YCbCr are converted by Pillow's formulas (inverted Adobe JPEGs included). ICC profiles and
  gamma are not applied.
* Floating-point, 32-bit integer and Lab pixels are refused, because their range is not known.

A change here that can change a pixel needs a new `DECODER`.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np

# Imported for registering themselves: only these are ever tried, never one that runs another program.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from featpipe.errors import StimulusError
from featpipe.stimuli._damage import DAMAGE, Unusable, reason_of

DECODER = "pillow-rgb1"
MAX_PIXELS = 89_478_485  # Pillow's own default
BACKGROUND = (255, 255, 255, 255)

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr"}
_SIXTEEN = {"I;16", "I;16L", "I;16B"}
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def header_size(stored: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels from the header alone; raises `Unusable`."""
    with _opened(stored) as image:
        return int(image.width), int(image.height)


def decode(stored: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to RGB by the policy of this module.

    Parameters
    ----------
    stored : bytes
        The file's bytes.
    max_pixels : int
        Width times height that is still decoded.

    Raises
    ------
    Unusable
        If the bytes are no image of a supported kind or end too early, or if the header says more than
        `max_pixels`; nothing is decoded then.
    """
    _require_strict_loading()
    with _opened(stored) as image:
        require_pixels(image.width, image.height, max_pixels)
        try:
            image.load()
            return _turned(_to_rgb(image), _orientation(image))
        except _BOMB as error:
            raise Unusable(reason_of(error), large=True) from error
        except DAMAGE as error:
            raise Unusable(reason_of(error)) from error


def require_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise `Unusable` for more than `max_pixels`."""
    if width * height > max_pixels:
        raise Unusable(
            f"{width} × {height} = {width * height} pixels, where {max_pixels} are the limit", large=True
        )


def from_pixels(pixels: np.ndarray) -> Image.Image:
    """Make an RGB image of an array by the same policy.

    Parameters
    ----------
    pixels : ndarray of shape (H, W), (H, W, C) or (C, H, W), uint8 or uint16, C one of 1, 3, 4
        Channels are first only where the last axis cannot be one of channels.
    """
    if pixels.dtype.itemsize == 2:
        pixels = _eight_bit(pixels)
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)  # (H, W, C)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


def _opened(stored: bytes) -> Image.Image:
    """Parse the header. Unlike Image.open this has no limit of its own, so none has to be changed."""
    if not stored:
        raise Unusable("the file is empty")
    reasons = []
    for name in _FORMATS:
        factory, accept = Image.OPEN[name]
        if accept(stored[:16]) is not True:  # a text says that this build of Pillow lacks the format
            continue
        try:
            return _supported(factory(BytesIO(stored), ""))
        except _BOMB as error:
            raise Unusable(reason_of(error), large=True) from error
        except DAMAGE as error:
            reasons.append(f"broken {name} header ({reason_of(error)})")
    raise Unusable("; ".join(reasons) or f"its content is none of {', '.join(_FORMATS)}")


def _supported(image: Image.Image) -> Image.Image:
    if image.width < 1 or image.height < 1:
        raise Unusable("it has no pixels")
    pnm = image.mode == "I" and image.format == "PPM"  # 16-bit PNM is read as 32-bit integers up to 65535
    if image.mode in _MODES or image.mode in _SIXTEEN or pnm:
        return image
    raise Unusable(
        f"pixels of Pillow's mode {image.mode!r} have no known range; save it with 8 or 16 bits a channel"
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN or image.mode == "I":
        image = _from_sixteen(image)
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode not in ("LA", "PA", "RGBA") and "transparency" not in image.info:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, BACKGROUND)
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def _from_sixteen(image: Image.Image) -> Image.Image:
    values = np.asarray(image)  # (H, W)
    grey = Image.fromarray(_eight_bit(values))
    if isinstance(clear := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _eight_bit(values: np.ndarray) -> np.ndarray:
    """Scale 0…65535 to 0…255, rounded: Pillow would clip at 255."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation; damaged EXIF, which viewers pass over, asks for none."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except (*DAMAGE, UserWarning):
        return 1


def _turned(rgb: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return rgb if turn is None else rgb.transpose(turn)


def _require_strict_loading() -> None:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise StimulusError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, which fills the lost part of a truncated image "
            "with grey. Some other code in this process set it; set it to False."
        )
