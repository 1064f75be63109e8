"""Decoded images in batches, made ahead of the network in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch

from featpipe.errors import SpecError
from featpipe.models import apply_preprocessing
from featpipe.spec import Preprocessing
from featpipe.stimuli import StimulusSet
from featpipe.views import ITSELF, View

_AHEAD = 3  # batches: one in the network, one ready, one in the making


def default_workers() -> int:
    """Return how many threads decode: one a processor, at most 16 (Pillow lets go of the interpreter)."""
    return min(16, len(os.sched_getaffinity(0)))


def padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Fill a short batch with its last row: rows of a forward pass depend on the size of the batch."""
    return np.concatenate([rows, np.full(size - len(rows), rows[-1])])


class ImageBatches:
    """A ``with`` that owns the decoding threads.

    Parameters
    ----------
    stimuli : StimulusSet
    preprocessing : Preprocessing
        Its geometry is applied here, on 8-bit pixels; normalisation is the device's part.
    workers : int
        Threads.
    pin : bool
        Put batches in page-locked memory, from which CUDA copies without waiting.
    view : View
        Which view of each image goes into the preprocessing; by default the image itself.
    """

    def __init__(
        self,
        stimuli: StimulusSet,
        preprocessing: Preprocessing,
        *,
        workers: int,
        pin: bool,
        view: View = ITSELF,
    ) -> None:
        self._stimuli = stimuli
        self._preprocessing = preprocessing
        self._size = self._input_size()
        self._pin = pin
        self._view = view
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def _input_size(self) -> tuple[int, int]:
        """Return (height, width) of what the network gets; raises `SpecError` where it follows the image."""
        if (size := self._preprocessing.input_size) is None:
            raise SpecError(
                "This network's preprocessing keeps the shape of each image, so images cannot share a batch. "
                "Give a fixed size: --preprocess whole --image-size HxW."
            )
        return size

    def __enter__(self) -> ImageBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def of(self, batches: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
        """Yield a uint8 tensor of shape (B, 3, height, width) for each array of rows, in order.

        Its memory is channels last, as images are decoded.

        Raises
        ------
        BrokenImage
            At the batch that holds the image.
        """
        rest = iter(batches)
        ahead = deque(self._submit(rows) for rows in islice(rest, _AHEAD))
        while ahead:
            pixels, futures = ahead.popleft()
            for future in futures:
                future.result()
            ahead.extend(self._submit(rows) for rows in islice(rest, 1))
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            yield batch.pin_memory() if self._pin else batch

    def _submit(self, rows: np.ndarray) -> tuple[np.ndarray, list[Future[None]]]:
        pixels = np.empty((len(rows), *self._size, 3), dtype=np.uint8)
        places: dict[int, list[int]] = {}
        for place, row in enumerate(rows.tolist()):  # padding repeats a row; decode it once
            places.setdefault(row, []).append(place)
        return pixels, [self._pool.submit(self._load, row, pixels, at) for row, at in places.items()]

    def _load(self, row: int, pixels: np.ndarray, places: list[int]) -> None:
        """Decode an image into its places of a batch; copying here keeps the network's threads free."""
        image = self._view.of(self._stimuli.open(row), self._stimuli.sha256[row])
        pixels[places] = apply_preprocessing(image, self._preprocessing).permute(1, 2, 0)
