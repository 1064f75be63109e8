"""The images of a fit as a network sees them, by row number."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from featpipe.errors import RequestError
from featpipe.extraction._images import ImageBatches, default_workers
from featpipe.models import normalise
from featpipe.spec import Preprocessing
from featpipe.stimuli import StimulusSet


class Images:
    """Normalised batches of images by row.

    Parameters
    ----------
    stimuli : StimulusSet
    ids : sequence of str
        Which of them, in this order: row i is ``ids[i]``.
    preprocessing : Preprocessing
    device : torch.device
    memory_format : torch.memory_format
    """

    def __init__(
        self,
        stimuli: StimulusSet,
        ids: Sequence[str],
        preprocessing: Preprocessing,
        *,
        device: torch.device,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        place = {name: row for row, name in enumerate(stimuli.ids)}
        if missing := [name for name in ids if name not in place]:
            raise RequestError(
                f"{len(missing)} of {len(ids)} stimuli have no image in {stimuli.name!r}, first {missing[0]!r}. "
                "Give the images with stimuli=, and check that the ids match."
            )
        rows = [place[name] for name in ids]
        self.sha256 = tuple(stimuli.sha256[row] for row in rows)
        self.preprocessing, self.device, self._format = preprocessing, device, memory_format
        with ImageBatches(stimuli, preprocessing, workers=default_workers(), pin=False) as batches:
            parts = list(batches.of([torch.tensor(rows).numpy()]))
        self._pixels = torch.cat(parts)

    def __len__(self) -> int:
        return len(self.sha256)

    @property
    def reusable(self) -> bool:
        """Whether a row and a view always give the same pixels, so that what is computed of them may be kept."""
        return True

    def choose(self, rows: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Return the view of each row, (n_batch,): 0 is the image itself, as in evaluation (no generator)."""
        return torch.zeros_like(rows)

    def __call__(
        self, rows: torch.Tensor, views: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        """Return normalised pixels, (n_batch, 3, height, width), float32, on the device."""
        batch = self._pixels[rows.cpu()].to(self.device)
        return normalise(batch, self.preprocessing).contiguous(memory_format=self._format)
