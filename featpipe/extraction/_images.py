"""Decoded images in batches, made ahead of the network in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch

from featpipe.models import apply_preprocessing
from featpipe.spec import Preprocessing
from featpipe.stimuli import StimulusSet

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
    """

    def __init__(
        self, stimuli: StimulusSet, preprocessing: Preprocessing, *, workers: int, pin: bool
    ) -> None:
        self._stimuli = stimuli
        self._preprocessing = preprocessing
        self._pin = pin
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

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
            images = [future.result() for future in ahead.popleft()]
            ahead.extend(self._submit(rows) for rows in islice(rest, 1))
            batch = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
            yield batch.pin_memory() if self._pin else batch

    def _submit(self, rows: np.ndarray) -> list[Future[torch.Tensor]]:
        once = {int(row): None for row in rows}  # padding repeats a row; decode it once
        futures = {row: self._pool.submit(self._load, row) for row in once}
        return [futures[int(row)] for row in rows]

    def _load(self, row: int) -> torch.Tensor:
        return apply_preprocessing(self._stimuli.open(row), self._preprocessing)
