"""Layers as matrices, from whatever stands for several layers: `LayerBlocks`, or one matrix and the widths in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.encoding._folds import HELD_OUT
from featpipe.errors import RequestError


def layer_names(X, widths: Sequence[int] | None = None) -> tuple[str, ...]:
    """Return the labels of the layers: those of `LayerBlocks`, or ``"0"``, ``"1"``, … of a matrix."""
    if isinstance(X, LayerBlocks):
        return X.names
    return tuple(str(number) for number in range(1 if widths is None else len(widths)))


def layer_widths(X, widths: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the number of features per layer.

    Raises
    ------
    RequestError
        The widths given do not add up to the features of the matrix, or are given for `LayerBlocks`.
    """
    if isinstance(X, LayerBlocks):
        if widths is not None:
            raise RequestError(
                "widths say where the layers of a matrix lie; LayerBlocks know it. Leave widths out."
            )
        return X.widths
    if widths is None:
        return (int(X.shape[1]),)
    given = list(widths) if np.iterable(widths) else [widths]
    if not all(isinstance(width, int | np.integer) and width > 0 for width in given):
        raise RequestError(f"widths must be numbers of columns, at least 1 a layer, got {widths!r}.")
    if sum(given) != X.shape[1]:
        raise RequestError(
            f"widths {given} add up to {sum(given)} features, but X has {X.shape[1]}; give the number of columns "
            "of each layer, in order."
        )
    return tuple(int(width) for width in given)


def check_layers(estimator, X, *, reset: bool) -> None:
    """Note the layers that an estimator is fitted to as ``layers_`` (None of a matrix), or check those that come later.

    Raises
    ------
    RequestError
        Other layers than those fitted, or the same in another order; or, at `reset`, layers that were tuned to the
        responses before an estimator that would choose on them.
    """
    layers = tuple(zip(X.names, X.widths, strict=True)) if isinstance(X, LayerBlocks) else None
    if reset:
        check_search(estimator, X, searches=getattr(estimator, "alpha", None) is None)
        estimator.layers_ = layers
    elif layers is not None and estimator.layers_ is not None and layers != estimator.layers_:
        raise RequestError(
            f"{type(estimator).__name__} was fitted to layers {estimator.layers_}, but got {layers}."
        )


def check_search(estimator, X, *, searches: bool = True) -> None:
    """Refuse a choice on features that were tuned to these very responses; raises `RequestError`."""
    if searches and getattr(X, "held_out", None) is not None and getattr(estimator, "cv", None) != HELD_OUT:
        raise RequestError(
            f"{type(estimator).__name__} would choose on features that were tuned to these very responses. Set "
            "cv='held-out' in RidgeEncoder or BandedRidge, which chooses on the stimuli that the tuner held out, or a "
            "number of folds as cross_fit in the tuner."
        )


def layer_matrix(X, position: int, widths: Sequence[int] | None = None) -> np.ndarray:
    """Return one layer of all stimuli, flattened: ndarray of shape (n_stimuli, width).

    Raises
    ------
    RequestError
        The layer holds NaN or infinity.
    """
    if isinstance(X, LayerBlocks):
        matrix = X.block(position).reshape(len(X), -1)
        if not np.isfinite(matrix).all():
            raise RequestError(
                f"Layer {X.names[position]!r} contains NaN or infinity; finite features are needed. Extract it anew."
            )
        return matrix
    stops = np.cumsum(layer_widths(X, widths))
    return X[:, stops[position] - layer_widths(X, widths)[position] : stops[position]]
