"""The images of a fit as a network sees them, by row number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from featpipe.errors import RequestError, SpecError
from featpipe.models import normalise
from featpipe.spec import Preprocessing
from featpipe.stimuli import StimulusSet
from featpipe.tuning.images._crops import Crops
from featpipe.tuning.images._pixels import Pixels
from featpipe.views import ITSELF, USUAL, Augmentation, View


class Images:
    """Normalised batches of images by row, whole or augmented.

    An image is decoded when it is first asked for, and its pixels are then held as long as there is room, for
    everything in this process that asks for the same image at the same size. What a batch holds depends on
    rows, views and nothing else.

    Parameters
    ----------
    stimuli : StimulusSet
    ids : sequence of str
        Which of them, in this order: row i is ``ids[i]``.
    preprocessing : Preprocessing
    device : torch.device
    memory_format : torch.memory_format
        That of the network.
    augmentation : str, optional
        ``crop:FRACTION[:flip]``, what training sees in place of the images.
    views : int
        0 draws a fresh crop, at whole pixels of the network's input, for every row of every batch. With more,
        a row is drawn from that many views of the image and the image itself: those of
        ``featpipe extract --views``, which repeat from epoch to epoch.
    view_seed : int
        Of these views.
    memory_limit : int, optional
        Bytes of pixels that this process may hold on each device. By default 20 % of the memory that is
        available there. What finds no room is decoded again for every batch.

    Attributes
    ----------
    sha256 : tuple of str
        Digest of each image's bytes.
    augmentation : str
        What a view is, in full.
    reusable : bool
        Whether views repeat in training, so that what is computed of a row and a view may be kept.

    Raises
    ------
    RequestError
        An id without an image, or a number that is no number of views or bytes.
    SpecError
        An augmentation that cannot be parsed, or a preprocessing whose size follows the image.
    """

    def __init__(
        self,
        stimuli: StimulusSet,
        ids: Sequence[str] | np.ndarray,
        preprocessing: Preprocessing,
        *,
        device: torch.device,
        memory_format: torch.memory_format = torch.channels_last,
        augmentation: str | None = None,
        views: int = 0,
        view_seed: int = 0,
        memory_limit: int | None = None,
    ) -> None:
        rows = _rows_of(ids, stimuli)
        size = _size_of(preprocessing)
        _require_count("views", views)
        if memory_limit is not None:
            _require_count("memory_limit", memory_limit)
        self.sha256 = tuple(stimuli.sha256[row] for row in rows)
        self.preprocessing, self.device, self._format = preprocessing, device, memory_format
        kind = USUAL if augmentation is None else Augmentation.parse(augmentation)
        self.augmentation, self.views, self.view_seed = str(kind), views, view_seed
        self._crops = Crops(kind, size) if augmentation is not None and views == 0 else None
        seen = [ITSELF, *(View(number, kind, view_seed) for number in range(1, views + 1))]
        self._pixels = Pixels(stimuli, rows, preprocessing, seen, device=device, limit=memory_limit)

    def __len__(self) -> int:
        return len(self.sha256)

    @property
    def reusable(self) -> bool:
        """Whether views repeat in training, so that what is computed of a row and a view may be kept."""
        return self._crops is None

    def choose(self, rows: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Return the view of each row: 0 is the image itself, as in evaluation (no generator).

        Parameters
        ----------
        rows : long tensor of shape (n_batch,)
        generator : torch.Generator or None
            All that is random comes from here, a row after another.

        Returns
        -------
        views : long tensor of shape (n_batch,), on the device of the generator
        """
        if generator is not None and self._crops is not None:
            return self._crops.draw(len(rows), generator)
        if generator is not None and self.views:
            return torch.randint(self.views + 1, (len(rows),), generator=generator, device=generator.device)
        return torch.zeros_like(rows)

    def labels(self, rows: torch.Tensor, views: torch.Tensor) -> list[int]:
        """Return what names the pixels of each row, for a `RowStore` of this process.

        Equal labels are the same view of the same bytes, also of other `Images`. Fresh crops have none.

        Raises
        ------
        IndexError
            A view is a fresh crop.
        """
        return self._pixels.labels(_array(rows), _array(views))

    def __call__(
        self, rows: torch.Tensor, views: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Return what the network gets, by rows and the views that `choose` gave.

        Parameters
        ----------
        rows, views : long tensors of shape (n_batch,)
            Rows on the CPU cost no wait for the device.
        generator : torch.Generator, optional
            Nothing is drawn from it here.

        Returns
        -------
        float32 tensor of shape (n_batch, 3, height, width), on the device

        Raises
        ------
        BrokenImage
            Names the file.
        """
        if self._crops is None:
            batch = self._pixels(_array(rows), _array(views))
        else:
            batch = self._pixels(_array(rows), np.zeros(len(rows), dtype=np.int64))
            crops = views.cpu()
            if crops.any():
                batch = self._crops(batch, crops)
        return normalise(batch, self.preprocessing).contiguous(memory_format=self._format)


def _rows_of(ids: Sequence[str] | np.ndarray, stimuli: StimulusSet) -> list[int]:
    place = stimuli.manifest.rows
    if missing := [str(name) for name in ids if name not in place]:
        raise RequestError(
            f"{len(missing)} of {len(ids)} stimuli have no image in {stimuli.name!r}, first {missing[0]!r}. "
            "Give the images with stimuli=, and check that the ids match."
        )
    return [place[name] for name in ids]


def _size_of(preprocessing: Preprocessing) -> tuple[int, int]:
    if (size := preprocessing.input_size) is None:
        raise SpecError(
            "This network's preprocessing keeps the shape of each image, so images cannot share a batch. "
            "Give a fixed size: preprocess='whole', image_size=(height, width)."
        )
    return size


def _require_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise RequestError(f"{name} is {value!r}; give a whole number from 0 on.")


def _array(values: torch.Tensor) -> np.ndarray:
    return values.cpu().numpy()
