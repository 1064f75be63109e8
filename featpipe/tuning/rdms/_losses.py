"""Losses of predicted dissimilarities."""

from __future__ import annotations

import torch


def correlation_loss(predicted: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    """Return one minus Pearson's r of predicted and measured pairs, each of shape (n_pairs,)."""
    p, m = predicted - predicted.mean(), measured - measured.mean()
    return 1 - (p * m).sum() / (p.norm() * m.norm()).clamp(min=1e-12)


def correlations(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return Pearson's r of the rows of two matrices (n_pairs, n_features): (n_pairs,)."""
    return (standardise(first) * standardise(second)).sum(1)


def standardise(rows: torch.Tensor) -> torch.Tensor:
    """Centre rows and scale them to length 1, so that inner products are correlations."""
    centred = rows - rows.mean(dim=1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-12)
