"""The loss of the heads: squared error of each ROI, over the responses that are there."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class SquaredError:
    """Weighted squared error per ROI.

    ``Σ_i Σ_{t ∈ ROI} w_i m_it (f_t(x_i) - y_it)²`` and ``Σ_i Σ_{t ∈ ROI} w_i m_it``, m_it = 0 where a response
    is missing: the first divided by the second is the ROI's mean squared error, over its stimuli and targets.

    Parameters
    ----------
    module : nn.Module
        Called with features and a generator (None in evaluation); yields (predictions of shape (n_batch, n),
        columns' targets (n,), their ROIs (n,)) piece by piece.
    X : tensor of shape (n_stimuli, …), or anything that gives one for ``X[rows]``
    Y : tensor of shape (n_stimuli, n_targets)
        NaN where missing.
    weight : tensor of shape (n_stimuli,), optional
    n_parts : int
    """

    def __init__(
        self, module: nn.Module, X, Y: torch.Tensor, *, weight: torch.Tensor | None, n_parts: int
    ) -> None:
        self.module, self.X, self.Y = module, X, Y
        self.weight = weight
        self.n_parts = n_parts
        self._complete = not bool(Y.isnan().any())

    def __call__(
        self, rows: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sums of errors and of weights of a batch: tensors of shape (n_parts,)."""
        losses = torch.zeros(self.n_parts, device=self.Y.device)
        weights = torch.zeros_like(losses)
        weight = None if self.weight is None else self.weight[rows, None]
        for predicted, targets, part in self.module(self.X[rows], generator):
            error, there = self._columns(predicted, rows, targets, weight)
            losses = losses.index_add(0, part, error)
            weights.index_add_(0, part, there)
        return losses, weights

    def _columns(self, predicted, rows, targets, weight) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sums over the batch for each column, (n,)."""
        measured = self._measured(rows, targets)
        if self._complete and weight is None:
            error = F.mse_loss(predicted, measured, reduction="none").sum(0)
            return error, torch.full_like(error, len(rows))
        missing = measured.isnan()
        there = (~missing).float() if weight is None else weight * ~missing
        error = F.mse_loss(predicted, measured.masked_fill_(missing, 0.0), reduction="none")
        return (there * error).sum(0), there.sum(0)

    def _measured(self, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return responses, (n_batch, n): whole rows first where most of them are wanted, which is faster."""
        if 2 * len(targets) < self.Y.shape[1]:
            return self.Y[rows[:, None], targets]
        return self.Y[rows].index_select(1, targets)
