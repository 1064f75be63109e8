"""A pass on a few images, with its gradients: what they reach, and whether two ways of computing agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from featpipe.models import Tap

_AGREE = 1e-5  # of the largest value
_GRADIENTS_AGREE = 1e-3  # of the largest of a parameter; a backward pass adds up in another order
_NOTHING = 1e-5  # of the largest gradient of all: what a gradient of zero comes to in this arithmetic


@dataclass(frozen=True)
class Trial:
    """What a pass gave.

    Parameters
    ----------
    rows : dict of Tap to tensor of shape (n_images, *row)
    gradients : dict of nn.Parameter to tensor
        Of all rows, weighted at random; those that nothing reaches are left out.
    """

    rows: Mapping[Tap, torch.Tensor]
    gradients: Mapping[nn.Parameter, torch.Tensor]

    def agrees(self, other: Trial) -> bool:
        """Say whether another way of computing gave the same, but for rounding."""
        return (
            self.gradients.keys() == other.gradients.keys()
            and all(_close(other.rows[tap], rows, _AGREE) for tap, rows in self.rows.items())
            and self._same_gradients(other)
        )

    def _same_gradients(self, other: Trial) -> bool:
        nothing = _NOTHING * max(map(_largest, self.gradients.values()), default=0.0)
        return all(
            _close(other.gradients[parameter], gradient, _GRADIENTS_AGREE, nothing)
            for parameter, gradient in self.gradients.items()
        )


def trial(compute: Callable[[], Mapping[Tap, torch.Tensor]], trained: Sequence[nn.Parameter]) -> Trial:
    """Run a pass and the gradient of its rows with respect to some parameters.

    Weights of the sum are drawn: after a normalisation the plain sum has no gradient.
    """
    with torch.enable_grad():
        rows = compute()
        ends = [value for value in rows.values() if value.requires_grad]
        if not ends or not trained:
            return Trial(_plain(rows), {})
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(end.shape, generator=generator).to(end.device) for end in ends]
        found = torch.autograd.grad(ends, trained, weights, allow_unused=True)
    return Trial(_plain(rows), {p: g for p, g in zip(trained, found, strict=True) if g is not None})


def _plain(rows: Mapping[Tap, torch.Tensor]) -> dict[Tap, torch.Tensor]:
    return {tap: value.detach() for tap, value in rows.items()}


def _close(found: torch.Tensor, wanted: torch.Tensor, share: float, nothing: float = 0.0) -> bool:
    if found.shape != wanted.shape:
        return False
    return _largest(found - wanted) <= max(share * _largest(wanted), nothing)


def _largest(value: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(value, torch.inf))
