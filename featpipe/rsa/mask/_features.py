"""A coefficient per feature: no products to keep, so features are read for every batch of pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.rsa.mask._terms import pearson

_COLUMNS = 1 << 16  # features at a time, beside one layer's rows of a batch


@dataclass(frozen=True, eq=False)
class FeatureTerms:
    """Pairs of stimuli whose features are read when they are correlated.

    Parameters
    ----------
    blocks : tuple of LayerBlocks
        One per view, of the same stimuli.
    first, second : ndarray of int, shape (n_pairs,)
        Rows of the two stimuli, ``view * n_stimuli + row``.
    """

    blocks: tuple[LayerBlocks, ...]
    first: np.ndarray
    second: np.ndarray

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return len(self.first)

    @property
    def n_channels(self) -> int:
        """Number of coefficients: of features."""
        return int(self.blocks[0].shape[1])

    def take(self, pairs: np.ndarray) -> FeatureTerms:
        """Select pairs."""
        return replace(self, first=self.first[pairs], second=self.second[pairs])

    def correlate(self, beta: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """Return Pearson's r of masked embeddings and its pullback, as `PairTerms.correlate` does.

        With masked features z and their means M, the gradient in beta is ``sum_i f_i (W (z - M))_i`` for
        the gradient W in the covariances.
        """
        rows, place = np.unique(np.concatenate([self.first, self.second]), return_inverse=True)
        first, second = place[: self.n_pairs], place[self.n_pairs :]
        covariance, mean = self._covariance(rows, beta)
        r, pull = pearson(covariance[first, second], np.diagonal(covariance), first, second)

        def pullback(gradient: np.ndarray) -> np.ndarray:
            of_pair, of_self = pull(gradient)
            weights = np.zeros_like(covariance)
            np.add.at(weights, (first, second), of_pair)
            weights = (weights + weights.T + np.diag(2 * of_self)).astype(np.float32)
            change = np.empty(self.n_channels)
            for columns, features in self._pieces(rows):
                z = features * beta[columns].astype(np.float32) - mean.astype(np.float32)[:, None]
                change[columns] = np.einsum("ij,ij->j", features, weights @ z)
            return change

        return r, pullback

    def _covariance(self, rows: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return covariances (n_rows, n_rows) times n_features, and means (n_rows,), of masked features."""
        covariance, total = np.zeros((len(rows), len(rows))), np.zeros(len(rows))
        for columns, features in self._pieces(rows):
            z = features * beta[columns].astype(np.float32)
            mean = z.mean(axis=1, dtype=np.float64)
            z -= mean.astype(np.float32)[:, None]  # so that float32 products keep their digits
            rounded = mean.astype(np.float32).astype(np.float64)
            rest = z.sum(axis=1, dtype=np.float64)
            part = np.outer(rounded, rest)
            covariance += (z @ z.T).astype(np.float64) + part + part.T
            covariance += z.shape[1] * np.outer(rounded, rounded)
            total += z.shape[1] * rounded + rest
        return covariance - np.outer(total, total) / self.n_channels, total / self.n_channels

    def _pieces(self, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield columns of the embedding and the features there, (n_rows, n_columns)."""
        for layer, columns in enumerate(self.blocks[0].slices.values()):
            values = self._read(layer, rows)
            for start in range(0, values.shape[1], _COLUMNS):
                piece = values[:, start : start + _COLUMNS]
                at = columns.start + start
                yield slice(at, at + piece.shape[1]), piece

    def _read(self, layer: int, rows: np.ndarray) -> np.ndarray:
        view, row = np.divmod(rows, len(self.blocks[0]))
        values = np.empty((len(rows), self.blocks[0].widths[layer]), dtype=np.float32)
        for number in np.unique(view):
            own = view == number
            values[own] = self.blocks[number][row[own]].block(layer).reshape(own.sum(), -1)
        return values


def feature_terms(
    blocks: LayerBlocks, pairs: tuple[np.ndarray, np.ndarray], view_pairs: list[tuple[int, int]]
) -> FeatureTerms:
    """Return the terms of pairs of stimuli, once for every pair of views."""
    first = [pairs[0] + one * len(blocks) for one, _ in view_pairs]
    second = [pairs[1] + other * len(blocks) for _, other in view_pairs]
    return FeatureTerms((blocks, *blocks.views), np.concatenate(first), np.concatenate(second))
