"""From the bytes of an inner chunk to the bytes on disk and back.

A compressed chunk is followed by its CRC-32C, so that no broken byte reaches a decompressor: they do not
promise to survive one. Uncompressed chunks are the rows themselves, so that they can be read in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc, zstd

from featpipe.errors import RequestError

CODECS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "blosc-lz4": {"cname": "lz4", "clevel": 5, "shuffle": "shuffle"},
    "blosc-lz4-bit": {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle"},
    "blosc-zstd": {"cname": "zstd", "clevel": 1, "shuffle": "shuffle"},
    "blosc-zstd-bit": {"cname": "zstd", "clevel": 1, "shuffle": "bitshuffle"},
    "zstd": {"level": 1, "checksum": False},
    "zstd-fast": {"level": -1, "checksum": False},
}
SAVES_ENOUGH = 0.75  # of the size: `auto` compresses only below it; the figures are in cache/README.md
_AUTO = "zstd-fast"
_SHUFFLES = {"shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
CRC_BYTES = 4
_CRC_OF_CHECKED = 0x48674BC7  # of any bytes with their own CRC-32C behind them
_BLOSC_HEADER = 16
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def codec_metadata(codec: str, itemsize: int) -> list[dict[str, Any]]:
    """Return the zarr codecs of an inner chunk, array to bytes first."""
    raw = {"name": "bytes", "configuration": {"endian": "little"}}
    if codec == "none":
        return [raw]
    settings = dict(CODECS[codec])
    if not codec.startswith("zstd"):
        settings |= {"typesize": itemsize, "blocksize": 0}
    return [raw, {"name": codec.partition("-")[0], "configuration": settings}, {"name": "crc32c"}]


def crc32c(content: bytes | memoryview) -> bytes:
    """Return the CRC-32C of bytes, as it is stored: four bytes, little-endian."""
    checksum: int = google_crc32c.value(bytes(content))
    return checksum.to_bytes(CRC_BYTES, "little")


def encode_chunk(rows: np.ndarray, codec: str) -> memoryview | bytes:
    """Encode a C-contiguous little-endian array as one inner chunk; uncompressed, that is a view of it."""
    raw: memoryview = rows.reshape(-1).view(np.uint8).data
    if codec == "none":
        return raw
    settings = CODECS[codec]
    if codec.startswith("zstd"):
        packed: bytes = zstd.compress(raw, settings["level"], settings["checksum"])
    else:
        shuffle = _SHUFFLES[settings["shuffle"]]
        packed = blosc.compress(
            raw, settings["cname"].encode(), settings["clevel"], shuffle, 0, rows.dtype.itemsize
        )
    return packed + crc32c(packed)


def decode_chunk(stored: bytes | memoryview, out: np.ndarray, codec: str) -> None:
    """Decode one compressed chunk into a C-contiguous array of just its size.

    Raises
    ------
    ValueError
        The bytes are not an encoded chunk of that size.
    """
    if google_crc32c.value(bytes(stored)) != _CRC_OF_CHECKED:
        raise ValueError("the chunk does not match its checksum")
    packed = memoryview(stored)[:-CRC_BYTES]
    raw = out.reshape(-1).view(np.uint8)
    if codec.startswith("zstd"):
        _check_zstd_header(packed, raw.nbytes)
    else:
        _check_blosc_header(packed, raw.nbytes, out.itemsize)
    try:
        (zstd if codec.startswith("zstd") else blosc).decompress(packed, raw)
    except RuntimeError as error:  # what numcodecs raises for every failure
        raise ValueError(f"the chunk does not decompress ({error})") from error


def _check_zstd_header(packed: memoryview, n_bytes: int) -> None:
    """Compare the size that a frame claims, without which zstd goes on for as long as the frame does."""
    found = None
    if len(packed) > len(_ZSTD_MAGIC) and packed[:4] == _ZSTD_MAGIC:
        descriptor = packed[4]
        single = descriptor >> 5 & 1  # one segment: then no byte about the window
        width = (single, 2, 4, 8)[descriptor >> 6]
        start = 5 + (not single)
        found = int.from_bytes(packed[start : start + width], "little") + (256 if width == 2 else 0)
        found = found if width and not descriptor & 0b11 else None  # nor a dictionary
    if found != n_bytes:
        raise ValueError(f"the chunk does not hold {n_bytes} bytes")


def _check_blosc_header(packed: memoryview, n_bytes: int, itemsize: int) -> None:
    """Compare the sizes that blosc takes on trust with those that must be there."""
    decoded, block, stored = (int.from_bytes(packed[start : start + 4], "little") for start in (4, 8, 12))
    sizes = (decoded, stored) == (n_bytes, len(packed)) and 0 < block <= n_bytes
    if len(packed) < _BLOSC_HEADER or not sizes or packed[3] != itemsize:
        raise ValueError(f"the chunk does not hold {n_bytes} bytes")


def largest_encoded(n_bytes: int) -> int:
    """Return a bound on the stored size of a chunk, to be checked before memory is taken for it."""
    return n_bytes + n_bytes // 128 + 1024


def choose_codec(codec: str, sample: np.ndarray | None) -> str:
    """Resolve ``auto`` by compressing a sample of rows, and check any other name.

    ``auto`` compresses where that saves a quarter of the bytes, and leaves rows alone otherwise, because
    uncompressed rows are read at the speed of the page cache.
    """
    if codec != "auto":
        if codec not in CODECS:
            raise RequestError(f"Codec {codec!r} is not known; choose from auto, {', '.join(CODECS)}.")
        return codec
    if sample is None or not sample.size:
        return "none"
    packed = encode_chunk(np.ascontiguousarray(sample), _AUTO)
    return _AUTO if len(packed) <= SAVES_ENOUGH * sample.nbytes else "none"
