"""A network whose layers are read, with gradients, for images by row number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from featpipe.models import Backbone, Tap
from featpipe.tuning.images import Images
from featpipe.tuning.network._frozen import freeze


class Body(nn.Module):
    """From row numbers to the outputs of some layers.

    Batch norm and dropout stay as in evaluation, whatever the mode of the module, unless dropout is asked for.

    Parameters
    ----------
    backbone : Backbone
        Its module is trained in place, on the device of the images.
    taps : sequence of Tap
    images : Images
    frozen : str or sequence of str, optional
        Layers whose parameters stay, see `freeze`.
    lora_rank : int, optional
        Train low-rank changes of linear layers and 1×1 convolutions instead of the weights themselves.
    lora_scale : float
    dropout : bool
        Let the network's own dropout drop in training.
    micro_batch : int, optional
        Images of which activations are held at a time; the gradient is that of the whole batch.
    seed : int
        Of low-rank factors.
    """

    def __init__(
        self,
        backbone: Backbone,
        taps: Sequence[Tap],
        images: Images,
        *,
        frozen: str | Sequence[str] | None = None,
        lora_rank: int | None = None,
        lora_scale: float = 1.0,
        dropout: bool = False,
        micro_batch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network = backbone.module.to(images.device)
        self.images, self.taps = images, tuple(taps)
        self._backbone = backbone
        freeze(self.network, frozen)
        self._tapped = backbone.tapped(self.taps)

    def train(self, mode: bool = True) -> Body:
        """Set the mode; the network's normalisation stays as in evaluation."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(
        self, rows: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Return (n_batch, *row) of each tap, float32; without a generator the images themselves."""
        views = self.images.choose(rows, generator)
        with self._tapped as tapped:
            found = tapped(self.images(rows, views, generator))
        return tuple(found[tap] for tap in self.taps)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of a row of each tap."""
        if not self._tapped.row_shapes:
            with torch.no_grad():
                self(torch.zeros(1, dtype=torch.long))
        return tuple(self._tapped.row_shapes[tap] for tap in self.taps)

    @property
    def dims(self) -> tuple[tuple[str, ...], ...]:
        """Names of the axes of a row of each tap, such as ("channel", "height", "width")."""
        self.shapes  # noqa: B018 (learns them)
        return tuple(self._tapped.dims[tap] for tap in self.taps)

    def tuned(self) -> dict[str, torch.Tensor]:
        """Return what training has changed: tensors of the plain network by name, on the CPU."""
        return {n: p.detach().cpu().clone() for n, p in self.network.named_parameters() if p.requires_grad}
