"""The vertex-position model of each ROI, all ROIs in one batched pass over some vertices of each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from featpipe.tuning.heads._columns import Columns
from featpipe.tuning.heads._linear_module import Piece
from featpipe.tuning.heads._stacked import StackedNorm, drop, stacked, uniform
from featpipe.tuning.heads._trunk import ConvTrunk


class VertexConvolution(nn.Module):
    """Convolution over vertices, kernel 1, of channels and the code of the position; BatchNorm1d, LeakyReLU.

    The convolution of two things side by side is the sum of one over each: the part of the position is the
    same for all stimuli, and that of the trunk's vector, in the first layer, for all vertices.
    """

    def __init__(
        self, n_stack: int, n_in: int, n_code: int, n_out: int, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.weight = stacked(n_stack, uniform((n_out, n_in), n_in + n_code, generator))
        self.of_code = stacked(n_stack, uniform((n_out, n_code), n_in + n_code, generator))
        self.norm = StackedNorm(n_stack, n_out)

    def forward(self, h: torch.Tensor, code: torch.Tensor, networks: slice | torch.Tensor) -> torch.Tensor:
        """Return (n_networks, n_out, n_batch, n_vertices).

        Parameters
        ----------
        h : tensor of shape (n_networks, n_in, n_batch, n_vertices or 1)
        code : tensor of shape (n_networks, n_vertices, n_code)
        networks : slice or int64 tensor
            Which of the stack take part.
        """
        placed = torch.bmm(self.of_code[networks], code.mT)  # (n_networks, n_out, n_vertices)
        seen = torch.bmm(self.weight[networks], h.flatten(2)).reshape(len(h), -1, *h.shape[2:])
        return F.leaky_relu(self.norm(seen + placed[:, :, None], networks))


class VertexModule(nn.Module):
    """A trunk and convolutions over vertices that are told, in every layer, where each vertex lies.

    Parameters
    ----------
    columns : Columns
    code : tensor of shape (n_columns, n_code), or int
        Codes of the positions; their number alone where they are to be loaded.
    shape : tuple of int
        Of the features of a stimulus: a vector, or (channels, height, width) with `trunk_channels`.
    trunk_channels : int, optional
        Of the convolutions that compress maps; None: the trunk is the identity.
    shared_trunk : bool
        One trunk for all ROIs. The convolutions over vertices are each ROI's own.
    channels, n_convolutions : int
    residual : bool
        Add the input of every second convolution, from the second pair on, to its output.
    dropout : float
        After every second convolution.
    zeros : bool
        Begin with a last map of 0.
    vertices_per_step : int
    generator : torch.Generator, optional
        Draws the weights; without it they are to be loaded.
    """

    column: torch.Tensor
    part: torch.Tensor
    code: torch.Tensor

    def __init__(
        self,
        columns: Columns,
        code: torch.Tensor | int,
        *,
        shape: tuple[int, ...],
        trunk_channels: int | None,
        shared_trunk: bool,
        channels: int,
        n_convolutions: int,
        residual: bool,
        dropout: float,
        zeros: bool,
        vertices_per_step: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        n_rois = len(columns.names)
        code = torch.empty(len(columns.column), code) if isinstance(code, int) else code
        self.shared_trunk = shared_trunk and trunk_channels is not None
        self.trunk = None
        width = shape[0]
        if trunk_channels is not None:
            self.trunk = ConvTrunk(1 if shared_trunk else n_rois, shape, trunk_channels, generator)
            width = self.trunk.width
        widths = [width, *[channels] * n_convolutions]
        self.convolutions = nn.ModuleList(
            VertexConvolution(n_rois, n_in, code.shape[1], n_out, generator)
            for n_in, n_out in pairwise(widths)
        )
        last = [uniform(shape, channels, generator) for shape in ((1, channels), (1,))]
        self.weight, self.bias = (stacked(n_rois, torch.zeros_like(w) if zeros else w) for w in last)
        self.residual, self.dropout = residual, dropout
        self.vertices_per_step = vertices_per_step
        self.register_buffer("column", torch.tensor(columns.column))
        self.register_buffer("part", torch.tensor(columns.part))
        self.register_buffer("code", code)
        self._sizes = torch.as_tensor(columns.sizes)
        self._largest = int(columns.sizes.max())

    def owners(self) -> dict[str, torch.Tensor] | None:
        """Return the ROI of each entry of axis 0 of every parameter and buffer; None for a shared trunk."""
        if self.shared_trunk:
            return None
        state = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        stack = torch.arange(len(self.weight), device=self.part.device)
        by_column = ("column", "part", "code")
        return {name: self.part.clone() if name in by_column else stack for name in state}

    def forward(self, x: torch.Tensor, generator: torch.Generator | None = None) -> Iterator[Piece]:
        """Yield predictions of vertices drawn from every ROI, or without a generator of all, some at a time."""
        z = self._compress(x)
        sizes = self._roi_sizes()
        starts = sizes.cumsum(0) - sizes
        if generator is not None:
            place = self._draw(sizes, generator) + starts[:, None]
            yield self._piece(z, place, slice(None), generator)
            return
        for first in range(0, self._largest, self.vertices_per_step):
            rois = torch.nonzero(sizes > first)[:, 0]  # that have vertices left
            step = torch.arange(first, first + self.vertices_per_step, device=x.device)
            place = step.expand(len(rois), -1)
            there = place < sizes[rois, None]
            place = torch.minimum(place, sizes[rois, None] - 1) + starts[rois, None]
            predicted, targets, part = self._piece(z, place, rois, None)
            yield predicted[:, there.flatten()], targets[there.flatten()], part[there.flatten()]

    def _compress(self, x: torch.Tensor) -> torch.Tensor:
        """Return the trunks' vectors (n_rois, width, n_batch), as a view where they are all one."""
        z = x.T[None] if self.trunk is None else self.trunk(x)
        return z.expand(len(self.weight), -1, -1)

    def _roi_sizes(self) -> torch.Tensor:
        if len(self._sizes) != len(self.weight):  # ROIs that stopped were cut out
            self._sizes = torch.unique_consecutive(self.part, return_counts=True)[1]
            self._largest = int(self._sizes.max())  # on the host: asked for at every step
        self._sizes = self._sizes.to(self.part.device)
        return self._sizes

    def _draw(self, sizes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw vertices within each ROI, (n_rois, n_drawn): one from every of n_drawn equal parts of it.

        Each vertex is as likely as any other; where all fit into a step, the largest ROI is taken as it is.
        The same numbers are used for every ROI, so that what one draws does not depend on the others, as long as one
        of them is larger than a step.
        """
        n_drawn = min(self.vertices_per_step, self._largest)
        within = torch.rand(n_drawn, generator=generator, device=sizes.device, dtype=torch.float64)
        share = (torch.arange(n_drawn, device=sizes.device) + within) / n_drawn
        return torch.minimum((share * sizes[:, None]).long(), sizes[:, None] - 1)

    def _piece(self, z: torch.Tensor, place: torch.Tensor, rois, generator) -> Piece:
        """Predict the columns at some places of some ROIs, (n_rois, n_vertices)."""
        code = self.code[place]  # (n_rois, n_vertices, n_code)
        h = z[rois][..., None]  # (n_rois, width, n_batch, 1)
        before = None
        for number, layer in enumerate(self.convolutions):
            h = layer(h, code, rois)
            if number % 2 == 0:
                continue
            if self.residual and before is not None:
                h = h + before
            h = before = drop(h, self.dropout, generator)
        weight, bias = self.weight[rois], self.bias[rois]
        out = torch.baddbmm(bias[:, :, None], weight, h.flatten(2)).reshape(len(place), h.shape[2], -1)
        flat = place.flatten()
        return out.transpose(0, 1).flatten(1), self.column[flat], self.part[flat]
