"""The deep model of each ROI, all ROIs in one batched pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from featpipe.tuning.heads._columns import Columns
from featpipe.tuning.heads._linear_module import Piece, read_outs
from featpipe.tuning.heads._stacked import LinearBlock


class DeepModule(nn.Module):
    """Linear blocks, a stack of one trunk per ROI or one trunk for all, and a linear layer per ROI.

    Parameters
    ----------
    columns : Columns
    n_features : int
    shared : bool
        One trunk for all ROIs.
    n_blocks : int
    widening : float
        Of each block that is not residual.
    residual : bool
        Every second block adds to its input, keeps its width and drops nothing.
    dropout : float
    zeros : bool
        Begin with last layers of 0.
    generator : torch.Generator, optional
        Draws the weights; without it they are to be loaded.
    """

    column: torch.Tensor
    part: torch.Tensor

    def __init__(
        self,
        columns: Columns,
        n_features: int,
        *,
        shared: bool,
        n_blocks: int,
        widening: float,
        residual: bool,
        dropout: float,
        zeros: bool,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.shared = shared
        self.n_stack = 1 if shared else len(columns.names)
        self.blocks = nn.ModuleList()
        width = n_features
        for number in range(n_blocks):
            adds = residual and number % 2 == 1
            wider = width if adds else max(1, round(width * widening))
            made = LinearBlock(
                self.n_stack, width, wider, dropout=dropout, residual=adds, generator=generator
            )
            self.blocks.append(made)
            width = wider
        self.weight, self.bias = read_outs(columns, width, generator, zeros=zeros)
        self.register_buffer("column", torch.tensor(columns.column))
        self.register_buffer("part", torch.tensor(columns.part))
        self._sizes = columns.sizes.tolist()

    def owners(self) -> dict[str, torch.Tensor] | None:
        """Return the ROI of each entry of axis 0 of every parameter and buffer; None for a shared trunk."""
        if self.shared:
            return None
        state = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        stack = torch.arange(self.n_stack, device=self.part.device)
        return {name: stack if name.startswith("blocks.") else self.part.clone() for name in state}

    def forward(self, x: torch.Tensor, generator: torch.Generator | None = None) -> Iterator[Piece]:
        """Yield the predictions of all columns at once."""
        h = x.T[None]  # (1, n_features, n_batch)
        if not self.shared:
            h = h.expand(len(self.blocks[0].weight), -1, -1) if len(self.blocks) else h
        for block in self.blocks:
            h = block(h, generator)
        yield self._read_out(h), self.column, self.part

    def _read_out(self, h: torch.Tensor) -> torch.Tensor:
        """Return (n_batch, n_columns) from the trunks' (n_stack, width, n_batch)."""
        if len(h) == 1:
            return F.linear(h[0].T, self.weight, self.bias)
        if sum(self._sizes) != len(self.part):  # ROIs that stopped were cut out
            self._sizes = torch.unique_consecutive(self.part, return_counts=True)[1].tolist()
        weights, biases = self.weight.split(self._sizes), self.bias.split(self._sizes)
        return torch.cat([F.linear(z.T, w, b) for z, w, b in zip(h, weights, biases, strict=True)], dim=1)
