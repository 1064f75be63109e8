"""Why one image cannot be used, and what parsers raise on bytes that are damaged or hostile."""

from __future__ import annotations

import lzma
import struct
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from featpipe.errors import BrokenImage, ImageTooLarge, StimulusError

# Parsers of images, archives and arrays do not promise what they raise; these were met, many by fuzzing.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    AttributeError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
    tokenize.TokenError,
)


class Unusable(Exception):
    """Why one image cannot be used, before it is known how to name it."""

    def __init__(self, reason: str, *, large: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.large = large

    def named(self, file: str) -> StimulusError:
        """Return the error that a user sees."""
        if self.large:
            return ImageTooLarge(
                f"Image {file!r} is too large: {self.reason}. If it is meant, scale it down or raise "
                "max_pixels."
            )
        return BrokenImage(
            f"Image {file!r} cannot be decoded: {self.reason}. Replace the file, or leave such images out "
            "with `featpipe extract --skip-broken`."
        )


@contextmanager
def damage_as(error_for: Callable[[str], Exception]) -> Iterator[None]:
    """Turn what a parser raises into our error, made from its reason; errors of ours pass."""
    try:
        yield
    except StimulusError:
        raise
    except DAMAGE as error:
        raise error_for(reason_of(error)) from error


def reason_of(error: BaseException) -> str:
    """Return an error's message without its full stop, or its name if it has none."""
    return (str(error) or type(error).__name__).rstrip(".")
