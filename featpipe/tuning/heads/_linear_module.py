"""One linear layer for all ROIs: a weight matrix whose rows are the columns of all of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from featpipe.tuning.heads._columns import Columns
from featpipe.tuning.heads._stacked import uniform

Piece = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # predictions, their targets, their ROIs


def read_outs(
    columns: Columns, n_features: int, generator: torch.Generator | None, *, zeros: bool
) -> tuple[nn.Parameter, nn.Parameter]:
    """Draw the weights (n_columns, n_features) and biases of a linear layer for each ROI, as it would be alone."""
    if zeros:
        n_columns = len(columns.column)
        return nn.Parameter(torch.zeros(n_columns, n_features)), nn.Parameter(torch.zeros(n_columns))
    state = None if generator is None else generator.get_state()
    drawn = []
    for size in columns.sizes.tolist():
        if generator is not None:
            generator.set_state(state)
        drawn.append(
            (
                uniform((size, n_features), n_features, generator),
                uniform((size,), n_features, generator),
            )
        )
    weight, bias = (nn.Parameter(torch.cat(part)) for part in zip(*drawn, strict=True))
    return weight, bias


class LinearModule(nn.Module):
    """``y = W x + b`` with a row of W for each column.

    Parameters
    ----------
    columns : Columns
    n_features : int
    zeros : bool
        Begin with weights of 0.
    generator : torch.Generator, optional
        Draws the weights as `torch.nn.Linear` does; without it they are to be loaded.
    """

    column: torch.Tensor
    part: torch.Tensor

    def __init__(
        self, columns: Columns, n_features: int, *, zeros: bool, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.weight, self.bias = read_outs(columns, n_features, generator, zeros=zeros)
        self.register_buffer("column", torch.tensor(columns.column))
        self.register_buffer("part", torch.tensor(columns.part))

    def owners(self) -> dict[str, torch.Tensor]:
        """Return the ROI of each entry of axis 0 of every parameter and buffer."""
        return dict.fromkeys(("weight", "bias", "column", "part"), self.part.clone())

    def forward(self, x: torch.Tensor, generator: torch.Generator | None = None) -> Iterator[Piece]:
        """Yield the predictions of all columns at once."""
        yield F.linear(x, self.weight, self.bias), self.column, self.part
