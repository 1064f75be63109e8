"""Use a mask: masked features, and the RDM of the masked embedding."""

from __future__ import annotations

import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.rsa._rdms import RDMs, stimulus_sets
from featpipe.rsa._streamed import feature_rdms
from featpipe.rsa.mask._terms import pair_terms
from featpipe.rsa.statistics._held import STATISTICS
from featpipe.rsa.statistics._statistics import channel_statistics

RESOLUTIONS = ("channel", "stage", "feature")


def channel_axis(shape: tuple[int, ...], dims: tuple[str, ...]) -> int | None:
    """Return the axis of a row that holds channels; None where every value is a channel."""
    return dims.index("channel") if "channel" in dims else None


def coefficient_layers(blocks: LayerBlocks, resolution: str) -> np.ndarray:
    """Return the position of each coefficient's layer: ndarray of int."""
    if resolution == "stage":
        return np.arange(len(blocks.names))
    counts = blocks.widths if resolution == "feature" else channel_counts(blocks)
    return np.repeat(np.arange(len(blocks.names)), counts)


def channel_counts(blocks: LayerBlocks) -> list[int]:
    """Return the number of channels of each layer."""
    counts = []
    for shape, dims, width in zip(blocks.shapes, blocks.dims, blocks.widths, strict=True):
        axis = channel_axis(shape, dims)
        counts.append(width if axis is None else shape[axis])
    return counts


def layer_masks(coef: np.ndarray, blocks: LayerBlocks, resolution: str) -> list[np.ndarray]:
    """Return one array per layer that multiplies its rows, float32."""
    layers = coefficient_layers(blocks, resolution)
    masks = []
    for position, (shape, dims) in enumerate(zip(blocks.shapes, blocks.dims, strict=True)):
        own = coef[layers == position].astype(np.float32)
        axis = channel_axis(shape, dims)
        if resolution == "channel" and axis is not None:
            own = own.reshape([-1 if number == axis else 1 for number in range(len(shape))])
        elif resolution != "stage":
            own = own.reshape(shape)
        masks.append(own)
    return masks


def masked_blocks(blocks: LayerBlocks, coef: np.ndarray, resolution: str) -> LayerBlocks:
    """Return the same layers with every value multiplied by its coefficient, read when asked for."""
    masks = layer_masks(coef, blocks, resolution)
    return LayerBlocks(
        blocks.ids,
        names=blocks.names,
        shapes=blocks.shapes,
        dims=blocks.dims,
        digests=[f"{digest}*mask" for digest in blocks.digests],
        read=lambda layer, ids: blocks.read(layer, ids) * masks[layer],
        stream=lambda layer, ids: blocks._stream(layer, ids) * masks[layer],
    )


def mean_square(coef: np.ndarray, blocks: LayerBlocks, resolution: str) -> float:
    """Return the mean over all features of their squared coefficients."""
    masks = layer_masks(coef, blocks, resolution)
    total = sum(
        float(np.mean(mask.astype(np.float64) ** 2)) * width
        for mask, width in zip(masks, blocks.widths, strict=True)
    )
    return total / sum(blocks.widths)


def predict_rdm(blocks: LayerBlocks, coef: np.ndarray, resolution: str) -> RDMs:
    """Return 1 - r of masked embeddings for all pairs, also across stimulus sets.

    Statistics are used where they are held for all stimuli, which then are of one set; features are read
    otherwise. A stimulus whose masked embedding is constant has r = 0 with all others.
    """
    names = blocks.ids.astype(str)
    sets = np.unique(stimulus_sets(names))
    if len(names) < 2:
        return RDMs(np.zeros((1, len(names), len(names))), names, subjects=["model"])
    if resolution != "feature" and len(sets) == 1 and _held(blocks, str(sets[0])):
        return predict_within_sets(blocks, coef, resolution)
    found = feature_rdms(masked_blocks(blocks, coef, resolution), joint=True)
    return RDMs(np.where(np.isnan(found.values), 1.0, found.values), names, subjects=["model"])


def predict_within_sets(blocks: LayerBlocks, coef: np.ndarray, resolution: str) -> RDMs:
    """Return 1 - r of masked embeddings within stimulus sets, from statistics; NaN across sets."""
    names = blocks.ids.astype(str)
    sets = stimulus_sets(names)
    values = np.full((len(names), len(names)), np.nan)
    beta = coef[coefficient_layers(blocks, "channel")] if resolution == "stage" else coef
    for name in np.unique(sets):
        rows = np.flatnonzero(sets == name)
        pairs = np.triu_indices(len(rows), 1)
        r, _ = pair_terms([channel_statistics(blocks, names[rows])], [pairs]).correlate(beta)
        first, second = rows[pairs[0]], rows[pairs[1]]
        values[first, second] = values[second, first] = 1 - r
    return RDMs(values, names, subjects=["model"])


def _held(blocks: LayerBlocks, stimulus_set: str) -> bool:
    ids = blocks.ids.astype(str).tolist()
    return all(STATISTICS.holds(blocks, layer, stimulus_set, ids) for layer in range(len(blocks.names)))
