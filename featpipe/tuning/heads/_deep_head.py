"""`DeepHead`: linear blocks and a linear layer per ROI, all ROIs in one batched pass."""

from __future__ import annotations

import torch

from featpipe.tuning._training import number, one_of, whole
from featpipe.tuning.heads._columns import Columns
from featpipe.tuning.heads._deep_module import DeepModule
from featpipe.tuning.heads._head import INITS, Head

SHARES = ("roi", "all")


class DeepHead(Head):
    """The deep model of Chimisso et al.: four linear blocks and a linear layer for each ROI and hemisphere.

    A block is Linear (without a bias, which the next would take away), BatchNorm1d and LeakyReLU. With
    `residual`, every second block adds its output to its input and keeps its width; the others widen by
    `widening` and drop a share `dropout` of their units. (The report names these ingredients and not their
    order, which is ours.) The trunks of all ROIs are one stack
    of weights, (n_rois, n_out, n_in), and one batched product a block; the last layers are one matrix. Every
    ROI has the weights, batches and dropped units that it would have alone, and its own early stopping.

    Parameters
    ----------
    rois : mapping of str to array, or "all", optional
        As in `LinearHead`.
    share : {"roi", "all"}
        A trunk per ROI, or one for all ROIs, with a linear layer of its own each. Networks that share a trunk
        stop together, by the mean of the ROIs' held-out losses. With ROIs of several subjects it is shared
        across subjects.
    n_blocks : int
    widening : float
    residual : bool
    dropout : float
    learning_rate, decay, decay_every : float, float, int
        The report's.
    weight_decay, betas, batch_size, max_epochs, patience, min_epochs, validation_fraction, schedule, clip
        As in `LinearHead`; a batch has at least three stimuli.
    init : {"zeros", "uniform"}
        Last layers at the start: 0, so that the untrained network predicts the mean and held-out losses fall from
        there; or as `torch.nn.Linear` draws them. All other weights are drawn.
    standardise, precision, seed, device
        As in `LinearHead`.

    Attributes
    ----------
    weights_ : dict of str to ndarray
        Parameters and buffers of the module, which is built from them when something is to be predicted.
    architecture_ : dict
        What else it is built from.
    best_epoch_, n_epochs_, history_, roi_names_, validation_rows_, response_mean_, response_scale_
        As in `LinearHead`.
    n_features_in_ : int

    References
    ----------
    Chimisso et al. (2023), section 2.2 and the table of section 4.
    """

    def __init__(
        self,
        rois=None,
        *,
        share="roi",
        n_blocks=4,
        widening=1.25,
        residual=True,
        dropout=0.05,
        learning_rate=5e-6,
        decay=0.75,
        decay_every=10,
        weight_decay=1e-2,
        betas=(0.9, 0.999),
        batch_size=128,
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
        self.share = share
        self.n_blocks = n_blocks
        self.widening = widening
        self.residual = residual
        self.dropout = dropout
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
        one_of("share", self.share, SHARES)
        one_of("init", self.init, INITS)
        whole("n_blocks", self.n_blocks, 0)
        number("widening", self.widening, above=0.0)
        number("dropout", self.dropout, least=0.0, below=1.0)
        return {
            "n_features": X.shape[1],
            "shared": self.share == "all",
            "n_blocks": int(self.n_blocks),
            "widening": float(self.widening),
            "residual": bool(self.residual),
            "dropout": float(self.dropout),
            "zeros": self.init == "zeros",
        }

    def _build(self, columns: Columns, generator: torch.Generator | None) -> DeepModule:
        return DeepModule(columns, generator=generator, **self.architecture_)
