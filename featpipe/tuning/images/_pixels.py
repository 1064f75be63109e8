"""Decoded images as 8-bit pixels, held once per process."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from featpipe.extraction._images import default_workers
from featpipe.models import apply_preprocessing
from featpipe.spec import Preprocessing
from featpipe.stimuli import StimulusSet
from featpipe.tuning.images._row_memory import RowMemory
from featpipe.views import View

PIXELS = RowMemory()
_DECODING = threading.Lock()
_VIEW = 40  # bits below the view's number in a label: the image's


class Pixels:
    """Images of a stimulus set at the size of a network's input, by row and view.

    What is held is named by the bytes of the image, the geometry and the view: folds, candidates of a search
    and predictions share it, whatever stimulus set they name.

    Parameters
    ----------
    stimuli : StimulusSet
    rows : sequence of int
        Of `stimuli`: row i here is ``rows[i]`` there.
    preprocessing : Preprocessing
        With an input size.
    views : sequence of View
        What view 0, 1, … means.
    device : torch.device
        Where pixels are wanted, and are held as long as there is room.
    limit : int, optional
        Bytes.
    """

    def __init__(
        self,
        stimuli: StimulusSet,
        rows: Sequence[int],
        preprocessing: Preprocessing,
        views: Sequence[View],
        *,
        device: torch.device,
        limit: int | None,
    ) -> None:
        self._stimuli, self._rows, self._views = stimuli, rows, views
        self._geometry = replace(preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self._device = device
        self._images = _numbers([stimuli.sha256[row] for row in rows])
        self._of_views = _numbers(views) << _VIEW
        key = (self._geometry, str(device))
        held = PIXELS.of(key).known(np.unique(self._images[:, None] + self._of_views).tolist())
        self._store = PIXELS.of(key, expected=int((~held).sum()), limit=limit)

    def labels(self, rows: np.ndarray, views: np.ndarray) -> list[int]:
        """Return a number for each row that is the same, in this process, where image and view are the same."""
        labels: list[int] = (self._images[rows] + self._of_views[views]).tolist()
        return labels

    def __call__(self, rows: np.ndarray, views: np.ndarray) -> torch.Tensor:
        """Return uint8 of shape (n_batch, 3, height, width), channels last, decoding what is not held.

        Raises
        ------
        BrokenImage
            Names the file.
        """
        labels = self.labels(rows, views)
        if self._store.known(labels).all():
            (pixels,) = self._take(labels, rows, views)
        else:
            with _DECODING:  # a second thread waits for the first one's images
                (pixels,) = self._take(labels, rows, views)
        return pixels.permute(0, 3, 1, 2)

    def _take(self, labels: list[int], rows: np.ndarray, views: np.ndarray) -> tuple[torch.Tensor, ...]:
        return self._store.take_or(
            labels, lambda places: (self._decode(rows[places], views[places]),), device=self._device
        )

    def _decode(self, rows: np.ndarray, views: np.ndarray) -> torch.Tensor:
        """Return uint8 of shape (n, height, width, 3), each image decoded in a thread."""
        assert self._geometry.input_size is not None
        pixels = np.empty((len(rows), *self._geometry.input_size, 3), dtype=np.uint8)

        def load(place: int) -> None:
            row = self._rows[rows[place]]
            image = self._views[views[place]].of(self._stimuli.open(row), self._stimuli.sha256[row])
            pixels[place] = apply_preprocessing(image, self._geometry).permute(1, 2, 0)

        with ThreadPoolExecutor(_workers(), thread_name_prefix="decode") as pool:
            for _ in pool.map(load, range(len(rows))):
                pass
        batch = torch.from_numpy(pixels)
        return (
            batch.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else batch
        )


def _workers() -> int:
    """Return how many threads decode; a worker process has the share that it was given of torch's."""
    own = multiprocessing.parent_process() is not None
    return min(default_workers(), torch.get_num_threads()) if own else default_workers()


_NUMBERS: dict[Hashable, int] = {}
_NUMBERING = threading.Lock()


def _numbers(values: Sequence[Hashable]) -> np.ndarray:
    """Return one number for each value, the same for equal values as long as the process lives."""
    with _NUMBERING:
        return np.array([_NUMBERS.setdefault(value, len(_NUMBERS)) for value in values], dtype=np.int64)
