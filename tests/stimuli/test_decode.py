"""The policy that turns bytes into RGB; a pixel that changes here needs a new `DECODER`."""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import fields
from struct import pack

import numpy as np
import pytest
from PIL import Image, ImageFile

from featpipe.errors import StimulusError
from featpipe.spec import Preprocessing
from featpipe.stimuli import DECODER
from featpipe.stimuli._damage import Unusable
from featpipe.stimuli._decode import MAX_PIXELS, decode, header_size


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)


def rgb(stored):
    image = decode(stored)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_the_policy_is_the_default_of_a_spec():
    assert next(f.default for f in fields(Preprocessing) if f.name == "decoder") == DECODER


def test_the_limit_is_that_of_pillow():
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_lossless_colour_comes_back(encode, pixels, kind):
    image = Image.fromarray(pixels)
    if kind == "GIF":
        image = image.quantize(64)
    np.testing.assert_array_equal(rgb(encode(image, kind)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_decode_as_pillow_does(encode, pixels, kind):
    stored = encode(pixels, kind)
    assert rgb(stored).shape == pixels.shape
    assert np.abs(rgb(stored).astype(int).mean() - pixels.mean()) < 12


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_is_replicated(encode, pixels, mode):
    image = Image.fromarray(pixels).convert(mode)
    grey = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(rgb(encode(image)), np.repeat(grey[..., None], 3, axis=2))


def test_palette_is_looked_up(encode, pixels):
    image = Image.fromarray(pixels).quantize(16)
    np.testing.assert_array_equal(rgb(encode(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(encode, pixels, rng, mode):
    image = Image.fromarray(pixels).convert(mode)
    alpha = rng.integers(0, 256, (7, 9), dtype=np.uint8)
    image.putalpha(Image.fromarray(alpha))
    share = alpha[..., None] / 255
    wanted = np.asarray(image.convert("RGBA"))[..., :3] * share + 255 * (1 - share)
    np.testing.assert_allclose(rgb(encode(image)), wanted, atol=1)


def test_what_lies_under_full_transparency_does_not_matter(encode, pixels):
    clear = [
        encode(Image.fromarray(np.dstack([p, np.zeros((7, 9), np.uint8)]))) for p in (pixels, 255 - pixels)
    ]
    assert (rgb(clear[0]) == 255).all()
    assert (rgb(clear[1]) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(encode, kind):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert rgb(encode(image, kind, transparency=0)).tolist() == [
        [[255] * 3, [40, 50, 60]],
        [[40, 50, 60], [255] * 3],
    ]


def test_a_transparent_colour_is_white(encode):
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    assert rgb(encode(image, transparency=(1, 2, 3))).tolist() == [[[255, 255, 255], [4, 5, 6]]]


SIXTEEN = np.array([[0, 128, 129, 256, 257, 32768, 65534, 65535]], dtype=np.uint16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(encode, kind):
    stored = encode(SIXTEEN, kind)
    wanted = np.round(SIXTEEN[0] / 65535 * 255)
    np.testing.assert_array_equal(rgb(stored)[0], np.repeat(wanted[:, None], 3, axis=1))


def test_sixteen_bits_big_endian(encode):
    stored = encode(Image.frombytes("I;16B", (8, 1), SIXTEEN.astype(">u2").tobytes()), "TIFF")
    np.testing.assert_array_equal(rgb(stored)[0, :, 0], np.round(SIXTEEN[0] / 257))


def test_sixteen_bit_colour_is_within_one_level(rng):
    values = rng.integers(0, 65536, (4, 5, 3), dtype=np.uint16)
    np.testing.assert_allclose(rgb(png_by_hand(values)), values / 257, atol=1)


def test_cmyk_is_converted(encode):
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # full magenta and yellow
    np.testing.assert_allclose(rgb(encode(ink, "JPEG"))[0, 0], [255, 0, 0], atol=3)
    np.testing.assert_allclose(rgb(encode(ink, "TIFF"))[0, 0], [255, 0, 0], atol=3)


def test_adobe_stores_ink_inverted(encode):
    """Pillow writes Adobe's marker and inverts; without the marker the same bytes are the negative."""
    stored = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert b"Adobe" in stored
    assert rgb(stored)[0, 0, 0] > 250


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_of_exif_is_applied(encode, kind, orientation):
    """Corners tell: red was top left before the camera was turned."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16, 0] = 255
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 3),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = (
        {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    )
    stored = encode(np.ascontiguousarray(undo[orientation](upright)), kind, exif=exif, **options)
    np.testing.assert_allclose(rgb(stored), upright, atol=20)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow says so, rightly
def test_damaged_exif_turns_nothing(encode, pixels):
    stored = encode(pixels, "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff" + b"\xff" * 40)
    np.testing.assert_array_equal(rgb(stored), rgb(encode(pixels, "JPEG")))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_frames_the_first_is_taken(encode, kind):
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (rgb(stored) == [255, 0, 0]).all()


def test_the_content_decides_not_the_extension(encode, pixels):
    np.testing.assert_array_equal(rgb(encode(pixels, "BMP")), pixels)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_pixels_without_a_known_range_are_refused(encode, mode):
    image = Image.new(mode, (4, 3))
    with pytest.raises(Unusable, match=f"mode '{mode}' have no known range; save it with 8 or 16 bits"):
        header_size(encode(image, "TIFF"))


@pytest.mark.parametrize(
    ("stored", "match"),
    [
        (b"", "the file is empty"),
        (b"hello", "its content is none of PNG, JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "broken PNG header"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "its content is none of"),  # never Ghostscript
    ],
)
def test_what_is_no_image_says_so(stored, match):
    with pytest.raises(Unusable, match=match):
        header_size(stored)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_a_truncated_image_is_broken(encode, rng, kind):
    stored = encode(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), kind)
    with pytest.raises(Unusable):
        decode(stored[: len(stored) // 2])


def test_a_decompression_bomb_is_not_decoded():
    """Four gigapixels in a hundred bytes; Pillow's own limits are neither asked nor changed."""
    bomb = png_by_hand(np.zeros((1, 1), np.uint8), size=(65_535, 65_535))
    with pytest.raises(Unusable, match="65535 × 65535 = 4294836225 pixels, where 89478485 are the limit"):
        decode(bomb)
    assert Image.MAX_IMAGE_PIXELS == MAX_PIXELS


def test_the_limit_can_be_moved_both_ways(encode, pixels, monkeypatch):
    with pytest.raises(Unusable, match="9 × 7 = 63 pixels, where 62"):
        decode(encode(pixels), 62)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # a stricter one of Pillow's is not ours
    assert decode(encode(pixels), 63).size == (9, 7)


def test_a_process_that_accepts_truncated_images_is_told(png, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(StimulusError, match="LOAD_TRUNCATED_IMAGES is set"):
        decode(png)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the damage
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_damage_gives_an_image_or_says_why_not(encode, rng, kind):
    whole = encode(Image.new("RGB", (12, 10), (200, 30, 90)), kind)
    for _ in range(200):
        stored = np.frombuffer(whole, np.uint8).copy()
        stored[rng.integers(0, len(stored), 3)] = rng.integers(0, 256, 3)
        with suppress(Unusable):
            assert decode(stored.tobytes(), 10_000).mode == "RGB"


def png_by_hand(values, size=None):
    """Encode a PNG that Pillow does not write: 16-bit colour, or a header that lies."""
    height, width = values.shape[:2]
    lines = b"".join(b"\0" + line.astype(values.dtype.newbyteorder(">")).tobytes() for line in values)
    shown = size or (width, height)
    header = pack(">IIBBBBB", *shown, 8 * values.itemsize, 2 if values.ndim == 3 else 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    made = (pack(">I", len(c)) + kind + c + pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)
