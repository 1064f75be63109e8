"""`LayerScaler`: z-scoring that nearly dead channels cannot blow up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import (
    _check_feature_names_in,
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.spec import digest_of

_FLOATS = [np.float64, np.float32]
_CHUNK_VALUES = 1 << 22  # values turned to float64 at a time: 32 MiB


class LayerScaler(TransformerMixin, BaseEstimator):
    """Standardise features with standard deviations floored relative to their layer.

    ``(x - mean) / max(std, floor · rms)``, with rms the root mean square of the standard deviations of the
    layer, which is the spread that an average unit of its variance has. A feature that hardly varies over
    the training stimuli (a nearly dead channel) is then not divided by almost nothing, and a held-out
    stimulus that wakes it up does not dominate the prediction. The median would be no floor at all for a
    rectified layer in which more than half of the units are silent; the root mean square is.

    Parameters
    ----------
    with_mean : bool
        Subtract the mean.
    with_std : bool
        Divide by the floored standard deviation.
    floor : float
        Fraction of the layer's root-mean-square standard deviation, >= 0; 0 is plain z-scoring.
    output : {"matrix", "blocks"}
        A matrix, layers side by side, or `LayerBlocks` that scale a layer whenever it is read, for estimators that
        tell layers apart.

    Attributes
    ----------
    mean_ : ndarray of shape (n_features,), float64
    std_ : ndarray of shape (n_features,), float64
        Before the floor.
    scale_ : ndarray of shape (n_features,), float64
        What features are divided by; 1 where it would be 0.
    floored_ : ndarray of bool, shape (n_features,)
        Features that the floor holds.
    n_features_in_ : int

    Notes
    -----
    A matrix is one layer; `featpipe.LayerBlocks` have a floor for each layer. As blocks, layers keep ids, shapes
    and augmented views, which are scaled alike; the digest of a layer then covers what it is scaled by.
    """

    __metadata_request__fit = {"sample_weight": True}  # noqa: RUF012 (scikit-learn's form)

    def __init__(self, with_mean=True, with_std=True, floor=0.1, output="matrix"):
        self.with_mean = with_mean
        self.with_std = with_std
        self.floor = floor
        self.output = output

    def fit(self, X, y=None, sample_weight=None):
        """Measure means and standard deviations.

        Parameters
        ----------
        X : array of shape (n_stimuli, n_features), or LayerBlocks
        y : ignored
        sample_weight : float or array of shape (n_stimuli,), optional
            Weight of each stimulus, >= 0.
        """
        if not self.floor >= 0:
            raise RequestError(
                f"floor must be >= 0, a fraction of the layer's standard deviation; got {self.floor!r}."
            )
        self._check_output(X)
        X = self._validate(X, reset=True)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        if np.any(weight < 0) or not weight.sum() > 0:
            raise RequestError(
                f"sample_weight must be >= 0 and not all 0, got {weight.min()} to {weight.max()}."
            )
        layers = [_layer_statistics(block, weight, self.floor) for block in _layers(X)]
        self.mean_, self.std_, self.scale_, self.floored_ = (
            np.concatenate(part) for part in zip(*layers, strict=True)
        )
        return self

    def transform(self, X):
        """Standardise.

        Returns
        -------
        ndarray of shape (n_stimuli, n_features), float32 if the features are, or LayerBlocks
        """
        check_is_fitted(self)
        self._check_output(X)
        X = self._validate(X, reset=False)
        if self.output == "blocks":
            return scaled_blocks(X, *self._by_layer(X))
        out = np.empty(X.shape, dtype=getattr(X, "dtype", np.float32))
        start = 0
        for block in _layers(X):
            columns = slice(start, start + block.shape[1])
            self._scale(block, columns, out[:, columns])
            start = columns.stop
        return out

    def get_feature_names_out(self, input_features=None):
        """Return the names of the features: those that came in, or ``LAYER_0``, ``LAYER_1``, …"""
        check_is_fitted(self, "n_features_in_")
        if self.layers_ is None or input_features is not None:
            return _check_feature_names_in(self, input_features)
        names = [f"{name}_{unit}" for name, width in self.layers_ for unit in range(width)]
        return np.asarray(names, dtype=object)

    def _check_output(self, X) -> None:
        if self.output not in ("matrix", "blocks"):
            raise RequestError(f"output is {self.output!r}; it must be 'matrix' or 'blocks'.")
        if self.output == "blocks" and not isinstance(X, LayerBlocks):
            raise RequestError(
                f"The scaler gives blocks only for LayerBlocks, and got {type(X).__name__}. Set output='matrix' here, "
                "or output='blocks' in the features as well."
            )
        if self.output == "matrix" and isinstance(X, LayerBlocks) and X.held_out is not None:
            raise RequestError(
                "These layers were tuned to the responses, and a matrix would not say to which stimuli. Set "
                "output='blocks' in the scaler, and cv='held-out' in what chooses penalties."
            )

    def _by_layer(self, X: LayerBlocks) -> list[list[np.ndarray | None]]:
        """Return what to subtract from each layer, and what to divide it by, in the shape of its rows."""
        given = (self.mean_ if self.with_mean else None, self.scale_ if self.with_std else None)
        parts = list(zip(X.shapes, X.slices.values(), strict=True))
        return [
            [
                None if values is None else values[part].astype(np.float32).reshape(shape)
                for shape, part in parts
            ]
            for values in given
        ]

    def _validate(self, X, *, reset: bool):
        if not isinstance(X, LayerBlocks):
            X = validate_data(self, X, dtype=_FLOATS, reset=reset)
            self._check_layers(None, reset=reset)
            return X
        if reset:
            self.n_features_in_ = X.shape[1]
        self._check_layers(tuple(zip(X.names, X.widths, strict=True)), reset=reset)
        return X

    def _check_layers(self, layers, *, reset: bool) -> None:
        if reset:
            self.layers_ = layers
        elif layers != self.layers_ and layers is not None:
            raise RequestError(f"The scaler was fitted to layers {self.layers_}, but got {layers}.")

    def _scale(self, block: np.ndarray, columns: slice, out: np.ndarray) -> None:
        np.copyto(out, block)
        if self.with_mean:
            out -= self.mean_[columns].astype(out.dtype)
        if self.with_std:
            out /= self.scale_[columns].astype(out.dtype)


def scaled_blocks(
    blocks: LayerBlocks, means: Sequence[np.ndarray | None], scales: Sequence[np.ndarray | None]
) -> LayerBlocks:
    """Return the same layers, less a mean and divided by a scale, whenever one is read.

    Parameters
    ----------
    blocks : LayerBlocks
    means, scales : sequence of ndarray, one per layer of the shape of its rows, or None to leave that out

    Returns
    -------
    LayerBlocks
        With the views scaled alike. Digests are made of those of the layers and of the numbers given.
    """

    return LayerBlocks(
        blocks.ids,
        names=blocks.names,
        shapes=blocks.shapes,
        dims=blocks.dims,
        digests=[
            digest_of(["scaled", digest, _digest_of_array(mean), _digest_of_array(scale)])
            for digest, mean, scale in zip(blocks.digests, means, scales, strict=True)
        ],
        read=_ScaledRows(blocks._read, True, means, scales).read,
        stream=_ScaledRows(blocks._stream, False, means, scales).read,
        views=[scaled_blocks(view, means, scales) for view in blocks.views],
        images=blocks.images,
        held_out=blocks.held_out,
    )


@dataclass(frozen=True, eq=False)
class _ScaledRows:
    """What reads layers scaled; of a class, so that it travels to workers and into files.

    Parameters
    ----------
    rows : callable (layer position, ids) -> ndarray
    held : bool
        Whether others may hold what is read, so that a copy has to be scaled.
    means, scales : sequence of ndarray or None, by layer
    """

    rows: Callable[[int, np.ndarray], np.ndarray]
    held: bool
    means: Sequence[np.ndarray | None]
    scales: Sequence[np.ndarray | None]

    def read(self, layer: int, ids: np.ndarray) -> np.ndarray:
        values = np.array(self.rows(layer, ids)) if self.held else self.rows(layer, ids)
        if (mean := self.means[layer]) is not None:
            values -= mean
        if (scale := self.scales[layer]) is not None:
            values /= scale
        return values


def _digest_of_array(values: np.ndarray | None) -> str | None:
    return None if values is None else hashlib.sha256(values.tobytes()).hexdigest()


def _layers(X) -> Iterator[np.ndarray]:
    """Yield each layer as a matrix (n_stimuli, width)."""
    if not isinstance(X, LayerBlocks):
        yield X
        return
    for name, block in X:
        if not np.all(np.isfinite(block)):
            raise RequestError(
                f"Layer {name!r} contains NaN or infinity; the scaler needs finite features. Extract it anew."
            )
        yield block.reshape(len(block), -1)


def _layer_statistics(block: np.ndarray, weight: np.ndarray, floor: float):
    """Return mean, std, scale and which are floored, each (width,), of one layer."""
    mean, variance = np.empty(block.shape[1]), np.empty(block.shape[1])
    share = weight / weight.sum()
    step = max(1, _CHUNK_VALUES // len(block))
    for start in range(0, block.shape[1], step):
        part = slice(start, start + step)
        values = block[:, part].astype(np.float64)
        mean[part] = share @ values
        values -= mean[part]
        residue = share @ values  # the mean's own rounding
        variance[part] = np.maximum(share @ values**2 - residue**2, 0.0)
        variance[part][variance[part] <= (8 * np.finfo(block.dtype).eps * mean[part]) ** 2] = 0.0
    std = np.sqrt(variance)
    lowest = floor * float(np.sqrt(variance.mean()))
    scale = np.maximum(std, lowest)
    return mean, std, np.where(scale > 0, scale, 1.0), std < lowest
