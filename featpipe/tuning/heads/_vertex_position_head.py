"""`VertexPositionHead`: one convolution over the vertices of a ROI that is told where each of them lies."""

from __future__ import annotations

import torch
from sklearn.utils.validation import check_array

from featpipe.blocks import LayerBlocks
from featpipe.encoding._layers import check_layers
from featpipe.errors import RequestError
from featpipe.tuning._training import number, one_of, whole
from featpipe.tuning.heads._columns import Columns
from featpipe.tuning.heads._head import _FOR_Y, INITS, Head
from featpipe.tuning.heads._maps import map_shape, maps_of
from featpipe.tuning.heads._positions import check_positions, encode_positions
from featpipe.tuning.heads._vertex_module import VertexModule

SHARES = ("roi", "all")


class VertexPositionHead(Head):
    """The vertex-position model of Chimisso et al.: one small network per ROI, told where each vertex lies.

    A trunk turns the features of a stimulus into a vector: the identity for vectors such as CLIP's embedding;
    for maps (`LayerBlocks` of one layer of (channel, height, width), such as SAM's) convolutions of stride 2
    down to 8×8. Then every vertex of the ROI has the trunk's vector and the code of its position, sines and
    cosines relative to the ROI, through `n_convolutions` of Conv1d over vertices, BatchNorm1d and LeakyReLU,
    each told the position again, and one linear map to the response. The kernel is 1: vertices have no order
    that a wider kernel could use, so all vertices of a ROI share one network and differ by position alone, and
    the number of weights does not depend on the number of vertices. All ROIs are one stack, trained in one
    batched pass.

    Parameters
    ----------
    rois : mapping of str to array, or "all", optional
        As in `LinearHead`.
    positions : array of shape (n_targets, 3)
        Of every target, in one unit of length.
    share : {"roi", "all"}
        Whether each ROI has a trunk of its own where there is one to train; convolutions over vertices are each
        ROI's own. ROIs that share a trunk stop together.
    channels, n_convolutions : int
        Of the convolutions over vertices.
    n_frequencies : int
        Sines and cosines per dimension of a position.
    trunk_channels : int
        Of the convolutions that compress maps.
    residual : bool
        Every pair of convolutions but the first adds its input to its output.
    dropout : float
        Share of values set to 0 after every second convolution.
    vertices_per_step : int
        Vertices drawn from each ROI a step, in training; ROIs with fewer are repeated. Predictions and held-out
        losses are of all vertices, as many at a time. Memory grows with ``n_rois · channels · batch_size ·
        vertices_per_step``.
    learning_rate, decay, decay_every : float, float, int
        The report's without residual blocks; with them it took 1.5e-5 (`VERTEX_POSITION_RESIDUAL`).
    weight_decay, betas, batch_size, max_epochs, patience, min_epochs, validation_fraction, schedule, clip
        As in `LinearHead`; a batch has at least three stimuli.
    init : {"zeros", "uniform"}
        Of the last map, as in `DeepHead`.
    standardise, precision, seed, device
        As in `LinearHead`.

    Attributes
    ----------
    weights_, architecture_ : dict
        As in `DeepHead`.
    best_epoch_, n_epochs_, history_, roi_names_, validation_rows_, response_mean_, response_scale_
        As in `LinearHead`.
    validation_ids_ : ndarray of str
        Of `LayerBlocks`.
    n_features_in_ : int

    References
    ----------
    Chimisso et al. (2023), section 2.3 and the table of section 4; Vaswani et al. (2017), section 3.5.
    """

    def __init__(
        self,
        rois=None,
        positions=None,
        *,
        share="roi",
        channels=64,
        n_convolutions=6,
        n_frequencies=6,
        trunk_channels=32,
        residual=False,
        dropout=0.2,
        vertices_per_step=128,
        learning_rate=7.5e-6,
        decay=0.75,
        decay_every=5,
        weight_decay=1e-2,
        betas=(0.9, 0.999),
        batch_size=64,
        max_epochs=100,
        patience=10,
        min_epochs=0,
        validation_fraction=0.1,
        schedule="step",
        clip=None,
        init="zeros",
        standardise=True,
        precision="fp32",
        seed=0,
        device="auto",
    ):
        self.rois = rois
        self.positions = positions
        self.share = share
        self.channels = channels
        self.n_convolutions = n_convolutions
        self.n_frequencies = n_frequencies
        self.trunk_channels = trunk_channels
        self.residual = residual
        self.dropout = dropout
        self.vertices_per_step = vertices_per_step
        self.learning_rate = learning_rate
        self.decay = decay
        self.decay_every = decay_every
        self.weight_decay = weight_decay
        self.betas = betas
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.min_epochs = min_epochs
        self.validation_fraction = validation_fraction
        self.schedule = schedule
        self.clip = clip
        self.init = init
        self.standardise = standardise
        self.precision = precision
        self.seed = seed
        self.device = device

    def _architecture(self, X, columns: Columns):
        self._check_parameters()
        check_positions(self.positions, columns.n_targets)
        shape = map_shape(X) if isinstance(X, LayerBlocks) else None
        return {
            "shape": list(X.shape[1:] if shape is None else shape),
            "trunk_channels": None if shape is None else int(self.trunk_channels),
            "shared_trunk": self.share == "all",
            "channels": int(self.channels),
            "n_convolutions": int(self.n_convolutions),
            "residual": bool(self.residual),
            "dropout": float(self.dropout),
            "zeros": self.init == "zeros",
            "vertices_per_step": int(self.vertices_per_step),
        }

    def _check_parameters(self) -> None:
        one_of("share", self.share, SHARES)
        one_of("init", self.init, INITS)
        for name in ("channels", "n_convolutions", "n_frequencies", "trunk_channels", "vertices_per_step"):
            whole(name, getattr(self, name), 1)
        number("dropout", self.dropout, least=0.0, below=1.0)

    def _build(self, columns: Columns, generator: torch.Generator | None) -> VertexModule:
        if generator is None:
            return VertexModule(columns, self.weights_["code"].shape[1], **self.architecture_)
        places = check_positions(self.positions, columns.n_targets)
        code = torch.as_tensor(encode_positions(places, columns, self.n_frequencies))
        return VertexModule(columns, code, generator=generator, **self.architecture_)

    def _validate(self, X, y, sample_weight):
        if not isinstance(X, LayerBlocks) or map_shape(X) is None:
            return super()._validate(X, y, sample_weight)
        check_layers(self, X, reset=True)
        y = check_array(y, estimator=self, input_name="y", **_FOR_Y)
        self.n_features_in_ = X.shape[1]
        return X, y, self._check_weight(X, y, sample_weight)

    def _check_features(self, X):
        shape = map_shape(X) if isinstance(X, LayerBlocks) else None
        if shape is None:
            return super()._check_features(X)
        if list(shape) != self.architecture_["shape"]:
            raise RequestError(
                f"The head was fitted to maps of shape {tuple(self.architecture_['shape'])}, but got {shape}; give the "
                "layer that it was fitted to."
            )
        check_layers(self, X, reset=False)
        return X

    def _features(self, X, device: torch.device):
        return maps_of(X, device) if isinstance(X, LayerBlocks) else super()._features(X, device)
