"""Losses of predicted dissimilarities, and correlations of features that may be constant."""

from __future__ import annotations

import torch

_FEWEST = 3  # two pairs always correlate perfectly


def squared_loss(
    predicted: torch.Tensor, measured: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ``Σ w (p - m)² / Σ w`` over pairs.

    Parameters
    ----------
    predicted : tensor of shape (n_pairs,)
    measured : tensor of shape (n_pairs,) or (n_rdms, n_pairs)
        NaN where a pair was not measured; it is left out.
    weights : tensor of the shape of `measured`, optional

    References
    ----------
    Agrawal (2019), Methods.
    """
    error, weight = _errors(predicted, measured, weights)
    return (weight * error.square()).sum() / weight.sum().clamp(min=1e-12)


def absolute_loss(
    predicted: torch.Tensor, measured: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ``Σ w |p - m| / Σ w`` over pairs; parameters as in `squared_loss`.

    References
    ----------
    Gaziv (2019), equation 1.
    """
    error, weight = _errors(predicted, measured, weights)
    return (weight * error.abs()).sum() / weight.sum().clamp(min=1e-12)


def correlation_loss(
    predicted: torch.Tensor, measured: torch.Tensor, sets: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean over stimulus sets and RDMs of one minus Pearson's r of predicted and measured pairs.

    A set of which an RDM has fewer than three pairs is left out there. Where either side is constant r is 0,
    and so is the gradient.

    Parameters
    ----------
    predicted : tensor of shape (n_pairs,)
    measured : tensor of shape (n_pairs,) or (n_rdms, n_pairs)
        NaN where a pair was not measured.
    sets : int64 tensor of shape (n_pairs,), optional
        Number of each pair's stimulus set; all pairs are of one set by default.
    """
    measured = torch.atleast_2d(measured)
    predicted = predicted.to(
        torch.promote_types(predicted.dtype, measured.dtype)
    )  # sums of bfloat16 stop at 256
    sets = torch.zeros_like(predicted, dtype=torch.long) if sets is None else sets
    known = ~measured.isnan() & (sets == sets.unique()[:, None])[:, None]  # (n_sets, n_rdms, n_pairs)
    enough = known.sum(-1) >= _FEWEST
    r = _standardised(predicted.expand_as(known), known) * _standardised(
        measured.nan_to_num().expand_as(known), known
    )
    return ((1 - r.sum(-1)) * enough).sum() / enough.sum().clamp(min=1)


def pair_correlations(rows: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return Pearson's r of pairs of rows, without a copy of the features for every pair.

    Parameters
    ----------
    rows : tensor of shape (n_images, n_features) or (n_images, …)
    first, second : int64 tensor of shape (n_pairs,)
        Positions among the rows.

    Returns
    -------
    r : tensor of shape (n_pairs,), of the dtype of `rows` also where products are autocast
    """
    unit = standardise(rows.flatten(1))
    with torch.autocast(rows.device.type, enabled=False):  # 1 - r in bfloat16 would have two digits
        return (unit @ unit.T)[first, second]


def standardise(rows: torch.Tensor) -> torch.Tensor:
    """Centre rows and scale them to length 1, so that inner products are correlations.

    A constant row becomes 0 and has no gradient.
    """
    return _standardised(rows, None)


def _standardised(rows: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
    """Standardise the last axis over its known entries; the others become 0."""
    known = torch.ones_like(rows, dtype=torch.bool) if known is None else known
    count = known.sum(-1, keepdim=True).clamp(min=1)
    kept = torch.where(known, rows, 0)
    centred = torch.where(known, rows - kept.sum(-1, keepdim=True) / count, 0)
    square = centred.square().sum(-1, keepdim=True)
    rounding = 8 * torch.finfo(rows.dtype).eps * kept.detach().abs().amax(-1, keepdim=True)
    varies = square > count * rounding.square()
    # chosen before the root: its gradient at 0 would be NaN, and times 0 still is
    return centred * torch.where(varies, torch.where(varies, square, 1).rsqrt(), 0)


def _errors(
    predicted: torch.Tensor, measured: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return errors and weights of pairs, both 0 where nothing was measured."""
    known = ~measured.isnan()
    weight = known.to(measured.dtype) if weights is None else torch.where(known, weights, 0)
    return torch.where(known, predicted - measured.nan_to_num(), 0), weight
