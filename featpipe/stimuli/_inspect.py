"""What has to be known of every image before anything starts: digest, size, and whether it can be decoded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import PIL

from featpipe.remembered import remembered_many
from featpipe.stimuli._damage import Unusable
from featpipe.stimuli._decode import DECODER, decode, header_size
from featpipe.stimuli._images import Images, stored_digest

Progress = Callable[[int, int], None]


class Facts(NamedTuple):
    """What is known of a stored image; ``problem`` is why it cannot be used."""

    sha256: str
    width: int
    height: int
    problem: str = ""
    large: bool = False


def inspect(
    images: Images, *, decoded: bool, max_pixels: int, rehash: bool, progress: Progress | None
) -> list[Facts]:
    """Return the facts of every image, from the table of what is remembered where the files are unchanged.

    Parameters
    ----------
    images : Images
    decoded : bool
        Decode each image, so that a truncated one is known; otherwise only its header is read.
    max_pixels : int
        Larger images are not decoded.
    rehash : bool
        Ignore what is remembered.
    progress : callable (done, total), optional
    """
    parts = images.parts
    # Pillow's version: what one version cannot decode another may.
    looked_at = f"up to {max_pixels}" if decoded else "headers"
    with _ReadAhead(images, decoded, max_pixels, progress) as facts:
        answers = remembered_many(
            f"stimulus-facts by {DECODER} of Pillow {PIL.__version__}, {looked_at}",
            [(part.files, part.within) for part in parts],
            lambda number: json.dumps([facts(position) for position in parts[number].positions]),
            rehash=rehash,
        )
    if progress is not None:
        progress(len(images.ids), len(images.ids))
    return [Facts(*values) for part in json.loads(f"[{','.join(answers)}]") for values in part]


def look(images: Images, position: int, *, decoded: bool, max_pixels: int) -> Facts:
    """Read one image and say what it is."""
    digest, width, height = "", 0, 0
    try:
        stored = images.read(position)
        digest = stored_digest(stored)
        if isinstance(stored, bytes):  # shape and type of an array were checked for all its rows
            width, height = header_size(stored)
            if decoded and width * height <= max_pixels:
                decode(stored, max_pixels)
    except Unusable as error:
        return Facts(digest, width, height, error.reason, error.large)
    return Facts(digest, width, height)


class _ReadAhead:
    """Facts by position, in rising order, with the images behind the present one already in work.

    An image that is not remembered mostly has neighbours that are not; memory holds a few images only.
    """

    def __init__(
        self, images: Images, decoded: bool, max_pixels: int, progress: Progress | None = None
    ) -> None:
        self._images, self._decoded, self._max_pixels, self._progress = images, decoded, max_pixels, progress
        self._n_threads = min(8, os.cpu_count() or 1)
        self._pending: dict[int, Future[Facts]] = {}

    def __enter__(self) -> _ReadAhead:
        self._pool = ThreadPoolExecutor(self._n_threads, thread_name_prefix="stimuli")
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, position: int) -> Facts:
        total = len(self._images.ids)
        for ahead in range(position, min(position + 4 * self._n_threads, total)):
            if ahead not in self._pending:
                self._pending[ahead] = self._pool.submit(
                    look, self._images, ahead, decoded=self._decoded, max_pixels=self._max_pixels
                )
        facts = self._pending.pop(position).result()
        if self._progress is not None:
            self._progress(position + 1, total)
        return facts
