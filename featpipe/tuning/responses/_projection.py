"""From features and from responses into one space: two linear maps and the head that both share."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from featpipe.errors import RequestError
from featpipe.tuning.heads._stacked import uniform

_SHARED, _PROJECTED = 256, 128  # most dimensions by default; 128 is SimCLR's
_IMAGES, _RESPONSES = 0, 1


class SharedProjection(nn.Module):
    """``z^x = g_H(g_A(a))`` and ``z^y = g_H(g_Y(y))``: the report's linear maps and projection head.

    g_H has three linear layers v₁ → v₁ → v₁ → v₂, the first two followed by batch norm and ReLU. Its weights, and
    those of its batch norm, serve both modalities; each modality is normalised by the statistics of its own batch,
    as two calls of one network do, and has running statistics of its own, so that evaluation does what training did.
    The layers in front of batch norm have no bias, which it would take away again.

    Parameters
    ----------
    n_features, n_targets : int
    shared : int, optional
        v₁ ≤ n_targets; by default a quarter of `n_targets`, rounded up, and at most 256. Much of what single targets
        do is noise to images, and as many dimensions as targets make it a way to tell stimuli apart.
    projected : int, optional
        v₂ ≤ v₁; by default the lesser of v₁ and 128.
    generator : torch.Generator, optional
        Draws the weights as `torch.nn.Linear` does; without it they are to be loaded.

    Raises
    ------
    RequestError
        Not ``1 <= v₂ <= v₁ <= n_targets``.

    References
    ----------
    Mulrooney & Brockmeier (2023), "Contrastive Learning Network".
    """

    def __init__(
        self,
        n_features: int,
        n_targets: int,
        shared: int | None = None,
        projected: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        v1, v2 = _widths(n_targets, shared, projected)
        self.of_features = _linear(n_features, v1, generator)
        self.of_responses = _linear(n_targets, v1, generator)
        self.layers = nn.ModuleList(_linear(v1, v1, generator, bias=False) for _ in range(2))
        self.last = _linear(v1, v2, generator)
        self.norms = nn.ModuleList(_NormOfEach(v1) for _ in range(2))

    def forward(self, features: torch.Tensor, responses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (z of responses, z of images), (n_batch, v₂), of (n_batch, n_features), (n_batch, n_targets)."""
        return (
            self._head(self.of_responses(responses), _RESPONSES),
            self._head(self.of_features(features), _IMAGES),
        )

    def _head(self, h: torch.Tensor, modality: int) -> torch.Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = F.relu(norm(layer(h), modality))
        return self.last(h)


class _NormOfEach(nn.Module):
    """Batch norm with one scale and offset, and running statistics for each modality."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, width: int, *, momentum: float = 0.1) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(2, width))
        self.register_buffer("running_var", torch.ones(2, width))

    def forward(self, h: torch.Tensor, modality: int) -> torch.Tensor:
        mean, variance = self.running_mean[modality], self.running_var[modality]
        return F.batch_norm(h, mean, variance, self.weight, self.bias, self.training, self.momentum)


def _linear(n_in: int, n_out: int, generator: torch.Generator | None, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer whose weights come from a generator, as `torch.nn.Linear` draws them."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out, bias=bias)
    layer.weight = nn.Parameter(uniform((n_out, n_in), n_in, generator))
    if bias:
        layer.bias = nn.Parameter(uniform((n_out,), n_in, generator))
    return layer


def _widths(n_targets: int, shared: int | None, projected: int | None) -> tuple[int, int]:
    v1 = min(-(-n_targets // 4), _SHARED) if shared is None else shared
    v2 = min(v1, _PROJECTED) if projected is None else projected
    if all(isinstance(v, int) and not isinstance(v, bool) for v in (v1, v2)) and 1 <= v2 <= v1 <= n_targets:
        return v1, v2
    raise RequestError(
        f"The shared space has at most as many dimensions as there are targets, and the projected one at most as many "
        f"as that: got shared_size={shared!r} and projected_size={projected!r} for {n_targets} targets. Choose "
        f"1 <= projected_size <= shared_size <= {n_targets}."
    )
