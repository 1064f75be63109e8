"""A full metric on channel means: squared distances along learned directions, as a predictor of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.rsa.statistics._gram import as_channels, channel_sums


def channel_means(blocks: LayerBlocks) -> list[np.ndarray]:
    """Return the mean over positions of each channel: ndarray of shape (n_stimuli, n_channels) per layer."""
    means = []
    for layer in range(len(blocks.names)):
        rows = as_channels(blocks.block(layer), blocks.dims[layer])
        means.append(channel_sums(rows) / rows.shape[2])
    return means


@dataclass(frozen=True, eq=False)
class Embedding:
    """Channel means of one layer, standardised as training stimuli were and scaled to length one.

    Parameters
    ----------
    mean, deviation : ndarray of shape (n_channels,)
        Of the training stimuli; deviations are at least `floor` times the layer's root mean square deviation.
    size : float
        Root mean square over training pairs of the squared distance of embeddings.
    """

    mean: np.ndarray
    deviation: np.ndarray
    size: float

    @classmethod
    def fit(cls, means: np.ndarray, floor: float) -> Embedding:
        """Standardise channel means of shape (n_stimuli, n_channels)."""
        deviation = floored(means.std(axis=0), floor)
        standard = cls(means.mean(axis=0), deviation, 1.0)
        rows = standard.transform(means)
        products = rows @ rows.T
        own = np.diagonal(products)
        distances = (own[:, None] + own - 2 * products)[np.triu_indices(len(rows), 1)]
        size = float(np.sqrt(np.mean(distances**2))) if len(distances) else 1.0
        return cls(standard.mean, deviation, size or 1.0)

    def transform(self, means: np.ndarray) -> np.ndarray:
        """Return embeddings whose squared distances between training stimuli have root mean square one."""
        rows = (means - self.mean) / self.deviation
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.divide(rows, length * np.sqrt(self.size), out=np.zeros_like(rows), where=length > 0)


def squared_distances(
    embeddings: Sequence[np.ndarray], directions: Sequence[np.ndarray], weights: np.ndarray
) -> np.ndarray:
    """Return ``sum_l sum_k w_k (d_lk' (f_i - f_j))²``: ndarray of shape (n_stimuli, n_stimuli)."""
    n_stimuli = len(embeddings[0])
    total = np.zeros((n_stimuli, n_stimuli))
    for rows, own in zip(embeddings, directions, strict=True):
        along = rows @ own.T  # (n_stimuli, n_directions)
        products = (along * weights) @ along.T
        length = np.diagonal(products)
        total += length[:, None] + length - 2 * products
    return (total + total.T) / 2


def floored(deviation: np.ndarray, floor: float) -> np.ndarray:
    """Return deviations not below a share of their root mean square: nearly dead channels stay small."""
    typical = np.sqrt(np.mean(deviation**2))
    return np.maximum(deviation, floor * typical) if typical > 0 else np.ones_like(deviation)


def laplacian(dual: np.ndarray, first: np.ndarray, second: np.ndarray, n_stimuli: int) -> np.ndarray:
    """Return ``sum_p a_p (e_i - e_j)(e_i - e_j)'`` over pairs p = (i, j): shape (n_stimuli, n_stimuli)."""
    matrix = np.zeros((n_stimuli, n_stimuli))
    np.add.at(matrix, (first, second), -dual)
    matrix = matrix + matrix.T
    matrix[np.diag_indices(n_stimuli)] -= matrix.sum(axis=1)
    return matrix


def quadratic(products: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return ``sum_l Q_l A Q_l'`` as dissimilarities of the rows of Q_l: shape (n_rows, n_rows).

    Parameters
    ----------
    products : ndarray of shape (n_layers, n_rows, n_stimuli)
        Inner products of embeddings with those of the training stimuli.
    weights : ndarray of shape (n_stimuli, n_stimuli)
        A, from `laplacian`.
    """
    total = sum(layer @ weights @ layer.T for layer in products)
    own = np.diagonal(total)
    return own[:, None] + own - 2 * total
