"""Scores of held-out stimuli under every penalty, from a decomposition of the stimuli that were fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.encoding._arrays import array_namespace, column_dots, double, take
from featpipe.encoding.ridge._gram import Subset
from featpipe.encoding.ridge._scaled import ScaledResponses, scatter_about_mean


@dataclass(frozen=True)
class HeldOutTargets:
    """A batch of targets before a fold.

    Parameters
    ----------
    latent : array of shape (rank, n_batch)
        Fitted responses in the directions of the decomposition.
    target : array of shape (n_test or rank, n_batch)
        Held-out responses about their mean, weighted, rotated as predictions are.
    bias : array of shape (n_batch,)
        Mean of the held-out responses less that of the fitted ones.
    scatter : array of shape (n_batch,), float64
        Sum of squares of the held-out responses about their mean.
    lost : array of shape (n_batch,), float64
        What of it rotation leaves out.
    """

    latent: Any
    target: Any
    bias: Any
    scatter: Any
    lost: Any


class HeldOut:
    """The held-out stimuli of one fold: predictions of every penalty, scored without being kept.

    Deviations of the predictions from their mean enter scores only through inner products, so where there
    are more held-out stimuli than directions these rows are rotated to as many rows as directions.

    Parameters
    ----------
    subset : Subset
        The stimuli that were fitted. Only its factors in the dtype of the features are kept.
    test : ndarray of int
        Rows to score.
    alphas : ndarray of shape (n_alphas,)
    """

    def __init__(self, subset: Subset, test: np.ndarray, alphas: np.ndarray) -> None:
        gram = subset.gram
        self.train, self.test = subset.rows, test
        self.weight = take(gram.weight, test)
        self.total = float(self.weight.sum())
        self.center = gram.center
        self.left = subset.left(gram.dtype)
        xp = array_namespace(self.left)
        dtype = self.left.dtype
        projected = subset.project(test)
        mean = self.weight @ projected / self.total
        projected = (self.weight**0.5)[:, None] * (projected - mean)
        self.rotation = None
        if projected.shape[0] > projected.shape[1]:
            rotation, projected = xp.linalg.qr(projected)
            self.rotation = xp.astype(rotation, dtype, copy=False)
        shrink = subset.decomposition.shrink(alphas).T  # (n_alphas, rank)
        self.mean = xp.astype(mean * shrink, dtype)
        self.shrink = xp.astype(shrink, dtype)
        self.projected = xp.astype(projected, dtype, copy=False)
        self.share = xp.astype(subset.weight / subset.total, dtype)

    def prepare(self, responses: ScaledResponses, columns: Any) -> HeldOutTargets:
        """Bring a batch of targets into the directions of the decomposition."""
        fitted = responses.values(self.train, columns)
        latent = self.left.T @ fitted  # the left factor has no constant part: the mean needs no subtraction
        target, mean, scatter = scatter_about_mean(responses.values(self.test, columns), self.weight)
        bias = mean - self.share @ fitted if self.center else mean
        if self.rotation is None:
            return HeldOutTargets(latent, target, bias, scatter, 0.0 * scatter)
        target = self.rotation.T @ target
        lost = array_namespace(target).clip(scatter - column_dots(target, target), 0.0, None)
        return HeldOutTargets(latent, target, bias, scatter, lost)

    def score(self, targets: HeldOutTargets, position: int, scoring: str) -> Any:
        """Return the scores of the penalty at a position: array of shape (n_batch,), float64."""
        predicted = (self.projected * self.shrink[position]) @ targets.latent
        if scoring == "pearson_r":
            cross = column_dots(predicted, targets.target)
            return safe_ratio(cross, (column_dots(predicted, predicted) * targets.scatter) ** 0.5)
        predicted -= targets.target
        misfit = double(targets.bias - self.mean[position] @ targets.latent)
        error = column_dots(predicted, predicted) + targets.lost + self.total * misfit**2
        return r2_of(error, targets.scatter)


def r2_of(error: Any, scatter: Any) -> Any:
    """Return ``1 - error / scatter``, and 0 where responses do not vary."""
    xp = array_namespace(scatter)
    return xp.where(scatter > 0, 1 - safe_ratio(error, scatter), xp.zeros_like(scatter))


def safe_ratio(numerator: Any, denominator: Any) -> Any:
    """Return a ratio, and 0 where the denominator is."""
    xp = array_namespace(denominator)
    some = denominator > 0
    return xp.where(
        some, numerator / xp.where(some, denominator, xp.ones_like(denominator)), 0.0 * denominator
    )
