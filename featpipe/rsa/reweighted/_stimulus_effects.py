"""What a single stimulus's embedding says about its dissimilarity to all others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EFFECTS = ("norm", "entropy", "distance to mean")


def effect_names(layers: Sequence[str]) -> list[str]:
    """Return the names of the columns of `stimulus_effects`."""
    return [f"{layer} {effect}" for layer in layers for effect in EFFECTS]


def stimulus_effects(embeddings: Sequence[np.ndarray], training: np.ndarray | Sequence[np.ndarray]):
    """Describe each stimulus, in each layer, by its norm, entropy and distance to the mean of those trained on.

    Each is a function of one stimulus and of the training mean, so that it is there for new stimuli too. With
    ``p_c = |f_c| / sum |f|`` the entropy is ``-sum_c p_c log p_c``.

    Parameters
    ----------
    embeddings : sequence of ndarray of shape (n_stimuli, n_channels)
        One per layer.
    training : ndarray of int, or sequence of ndarray of shape (n_channels,)
        Rows whose mean is meant, or the means of an earlier fit.

    Returns
    -------
    effects : ndarray of shape (n_stimuli, 3 n_layers), float64
        In the order of `effect_names`.
    means : list of ndarray of shape (n_channels,)
    """
    means = [
        embedding[training].mean(axis=0) if isinstance(training, np.ndarray) else training[position]
        for position, embedding in enumerate(embeddings)
    ]
    columns = []
    for embedding, mean in zip(embeddings, means, strict=True):
        columns += [
            np.linalg.norm(embedding, axis=1),
            entropy(embedding),
            np.linalg.norm(embedding - mean, axis=1),
        ]
    return np.stack(columns, axis=1), means


def entropy(embedding: np.ndarray) -> np.ndarray:
    """Return the entropy of the absolute values of each row as shares of their sum: shape (n_stimuli,)."""
    size = np.abs(embedding).astype(np.float64)
    total = size.sum(axis=1, keepdims=True)
    share = np.divide(size, total, out=np.zeros_like(size), where=total > 0)
    return -(share * np.log(np.where(share > 0, share, 1))).sum(axis=1)
