"""The objective of the regression: squared errors of measured responses."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from featpipe.tuning.responses._measured import Measured
from featpipe.tuning.responses._modules import Readout


class SquaredErrors:
    """Squared errors over the responses that are there; the loss of a batch is their mean.

    Parameters
    ----------
    module : Readout
    measured : Measured
    """

    def __init__(self, module: Readout, measured: Measured) -> None:
        self.module = module
        self.Y = torch.as_tensor(measured.values, device=module.body.images.device)

    def __call__(
        self, rows: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of squared errors of a batch and their number, each of shape (1,)."""
        predicted = self.module(rows, generator).float()
        there = ~self.Y[rows].isnan()
        error = F.mse_loss(predicted, self.Y[rows].nan_to_num(), reduction="none")
        return (error * there).sum()[None], there.sum().float()[None]
