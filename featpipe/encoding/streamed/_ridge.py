"""Ridge of layers that do not fit in memory: in coefficients of features where these fit, of stimuli where not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.encoding._arrays import on_device, to_numpy
from featpipe.encoding.ridge._gram import GramStatistics
from featpipe.encoding.ridge._ridge import batches
from featpipe.encoding.streamed._products import cross_products, feature_columns, stimulus_gram
from featpipe.encoding.streamed._rows import spans
from featpipe.memory import available_memory, memory_sharers

_SHARE = 0.5  # of the memory that is available, for features or for coefficients
_IDENTITY_COLUMNS = 256


def fits_in_memory(blocks: LayerBlocks) -> bool:
    """Whether all layers side by side take at most half of the memory that is available."""
    return 4 * blocks.shape[0] * blocks.shape[1] <= _room()


@dataclass(frozen=True, eq=False)
class StreamedFeatures:
    """Layers that a ridge is fitted to, read again when it needs them.

    With `dual` the solvers see the stimuli in place of the features: what they take for coefficients are the weights
    a of the stimuli in ``c_t = Σ_i (x_i - o) a_it``, which are few where features are many. A prediction is then
    ``Σ_i (x - o)·(x_i - o) a_it + b_t``.

    Parameters
    ----------
    blocks : LayerBlocks
    gram : GramStatistics
        For the solvers; its `n_features` is that of the stimuli with `dual`.
    origin : ndarray of shape (n_features,), float64
    dual : bool
    """

    blocks: LayerBlocks
    gram: GramStatistics
    origin: np.ndarray
    dual: bool

    @classmethod
    def of(
        cls,
        blocks: LayerBlocks,
        n_targets: int,
        *,
        weight: np.ndarray | None = None,
        center: bool = True,
        dual: bool | None = None,
        memory: int | None = None,
        device: str = "cpu",
    ) -> StreamedFeatures:
        """Accumulate the Gram matrix of the stimuli.

        Parameters
        ----------
        blocks : LayerBlocks
        n_targets : int
        weight : ndarray of shape (n_stimuli,), optional
        center : bool
            Whether the model has an intercept.
        dual : bool, optional
            By default where coefficients of all features take more than half of the memory that is available, and
            more than those of the stimuli.
        memory : int, optional
            Bytes of features to hold.
        device : {"cpu", "cuda", "cuda:N"}
            Where the solvers have the matrix; it is accumulated on the processor.
        """
        if dual is None:
            dual = 4 * blocks.shape[1] * n_targets > _room() and blocks.shape[1] > len(blocks)
        products, origin = stimulus_gram(blocks, center=center, memory=memory)
        gram = GramStatistics.from_stimulus_products(
            on_device(products, device),
            (lambda: _identity(len(blocks))) if dual else feature_columns(blocks, memory=memory),
            n_features=len(blocks) if dual else blocks.shape[1],
            weight=weight,
            center=center,
        )
        return cls(blocks, gram, origin, dual)

    def intercepts(self, Y: np.ndarray, weights: np.ndarray, *, target_batch: int = 1024) -> np.ndarray:
        """Return the intercept of each target for weights of the stimuli.

        Parameters
        ----------
        Y : ndarray of shape (n_stimuli, n_targets)
            NaN where a response is missing.
        weights : ndarray of shape (n_targets, n_stimuli)

        Returns
        -------
        intercept : ndarray of shape (n_targets,)
            The mean of what is left of the responses; 0 without centring.
        """
        intercept = np.zeros(Y.shape[1])
        products, weight = to_numpy(self.gram.matrix), to_numpy(self.gram.weight)
        for part in batches(Y.shape[1] if self.gram.center else 0, target_batch):
            left = Y[:, part] - products @ weights[part].T.astype(np.float64)
            counts = weight[:, None] * ~np.isnan(left)
            intercept[part] = (counts * np.nan_to_num(left)).sum(axis=0) / counts.sum(axis=0)
        return intercept


def predictions_from_stimuli(
    new: LayerBlocks,
    fitted: LayerBlocks,
    origin: np.ndarray,
    weights: np.ndarray,
    intercept,
    *,
    memory: int | None = None,
) -> np.ndarray:
    """Predict from weights of the stimuli that were fitted to, which are read again.

    Parameters
    ----------
    new, fitted : LayerBlocks
    origin : ndarray of shape (n_features,)
    weights : ndarray of shape (n_targets, n_fitted)
    intercept : float or ndarray of shape (n_targets,)
    memory : int, optional
        Bytes of features to hold.

    Returns
    -------
    predictions : ndarray of shape (n_new, n_targets), in the dtype of `weights`
    """
    products = cross_products(new, fitted, origin, memory=memory).astype(weights.dtype, copy=False)
    return products @ weights.T + np.asarray(intercept, dtype=weights.dtype)


def _identity(n_stimuli: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the columns of an identity matrix, in blocks."""
    for part in spans(0, n_stimuli, _IDENTITY_COLUMNS):
        block = np.zeros((n_stimuli, part.stop - part.start), dtype=np.float32)
        np.fill_diagonal(block[part], 1)
        yield part, block


def _room() -> int:
    return int(available_memory() * _SHARE) // memory_sharers()
