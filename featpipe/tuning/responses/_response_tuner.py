"""`ResponseTuner`: a network with a linear read-out, regressed onto responses."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from featpipe.extraction._forward import choose_device, precision_of
from featpipe.tuning._plan import Plan
from featpipe.tuning._stimuli import as_ids
from featpipe.tuning._training import one_of
from featpipe.tuning.network import Body
from featpipe.tuning.responses._fits_responses import FitsResponses
from featpipe.tuning.responses._modules import Readout
from featpipe.tuning.responses._squared_errors import SquaredErrors
from featpipe.tuning.responses._start import solve_readout
from featpipe.tuning.responses._stopping import HeldOutRidge, features_of

STARTS = ("ridge", "zeros")
_BATCH = 32  # images of a prediction


class ResponseTuner(MultiOutputMixin, RegressorMixin, FitsResponses):
    """Tune a network by regressing it onto responses: the report's regression model.

    Minimises ``Σ_i Σ_t m_it (w_t · f(x_i) + b_t - y_it)² / Σ m`` over the network f and the read-out, m_it = 0 where a
    response is missing, y standardised by the moments of the stimuli that are trained on.

    Parameters
    ----------
    start : {"ridge", "zeros"}
        Where the read-out begins. Ridge on the untuned features, its penalties chosen on the training stimuli, gives
        the network gradients of what a linear map cannot do; a read-out that has to be learned from zero distorts
        features first (Kumar et al. 2022).
    stop_by : {"ridge", "loss"}
        What held-out stimuli choose the epoch by: r of a ridge fitted anew to the features, see `HeldOutRidge`, which
        is what counts where a ridge follows; or the squared error of the read-out, which is what `predict` uses.
    head_learning_rate : float, optional
        Of the read-out; that of the network by default.
    micro_batch : int, optional
        Images of which activations are held at a time; the gradient is that of the whole batch.

    See `Tuner` for the other parameters and the attributes.

    References
    ----------
    Mulrooney & Brockmeier (2023), "Linear encoding models". Kumar et al. (2022), Fine-tuning can distort pretrained
    features and underperform out-of-distribution, section 3.4: a linear probe first, then all.
    """

    def __init__(
        self,
        model,
        layer,
        *,
        start="ridge",
        stop_by="ridge",
        head_learning_rate=None,
        micro_batch=None,
        weights="default",
        model_args=None,
        preprocess="whole",
        image_size=None,
        mean=None,
        std=None,
        trust=False,
        stimuli=None,
        transform_layers=None,
        output="matrix",
        frozen=None,
        lora_rank=None,
        lora_scale=1.0,
        dropout=False,
        augmentation=None,
        views=0,
        optimiser="adam",
        learning_rate=1e-4,
        momentum=0.9,
        weight_decay=0.0,
        schedule="fixed",
        decay=0.1,
        decay_every=30,
        batch_size=128,
        max_epochs=100,
        patience=10,
        min_epochs=0,
        clip=None,
        precision="fp32",
        validation_fraction=0.1,
        validation_folds=None,
        cross_fit=5,
        checkpoints=None,
        callback=None,
        seed=0,
        device="auto",
    ):
        self.model = model
        self.layer = layer
        self.start = start
        self.stop_by = stop_by
        self.head_learning_rate = head_learning_rate
        self.micro_batch = micro_batch
        self.weights = weights
        self.model_args = model_args
        self.preprocess = preprocess
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.trust = trust
        self.stimuli = stimuli
        self.transform_layers = transform_layers
        self.output = output
        self.frozen = frozen
        self.lora_rank = lora_rank
        self.lora_scale = lora_scale
        self.dropout = dropout
        self.augmentation = augmentation
        self.views = views
        self.optimiser = optimiser
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.decay = decay
        self.decay_every = decay_every
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.min_epochs = min_epochs
        self.clip = clip
        self.precision = precision
        self.validation_fraction = validation_fraction
        self.validation_folds = validation_folds
        self.cross_fit = cross_fit
        self.checkpoints = checkpoints
        self.callback = callback
        self.seed = seed
        self.device = device

    def predict(self, X):
        """Predict responses by the trained read-out.

        Parameters
        ----------
        X : array of str, shape (n_stimuli,)

        Returns
        -------
        ndarray of shape (n_stimuli, n_targets) or (n_stimuli,), float32
            In the unit of the responses.
        """
        check_is_fitted(self)
        ids, device = as_ids(X), choose_device(self.device)
        module = self._load(ids)
        with torch.inference_mode(), precision_of("fp32", device):
            parts = [module.predict(rows) for rows in torch.arange(len(ids)).split(_BATCH)]
        predicted = torch.cat(parts).cpu().numpy()
        return predicted[:, 0] if self.single_ else predicted

    def _plan(
        self, body: Body, ids: np.ndarray, y: np.ndarray, rows: np.ndarray, held_out: np.ndarray | None
    ) -> Plan:
        one_of("start", self.start, STARTS)
        measured = self._measured(y, rows, held_out, 1)
        features = features_of(body, measured.rows).cpu().numpy()
        module = Readout(body, features.shape[1], y.shape[1])
        features = module.standardised.learn(features)
        if self.start == "ridge":
            solve_readout(module.linear, features, measured.filled[measured.rows])
        module.mean.copy_(torch.as_tensor(measured.mean))
        module.scale.copy_(torch.as_tensor(measured.scale))
        module.to(body.images.device)
        objective = SquaredErrors(module, measured)
        stop: Any = measured.held_out
        if stop is not None and self.stop_by == "ridge":
            stop = HeldOutRidge(body, measured)
        return Plan(module, objective, measured.rows, stop, self._groups(module))

    def _module(self, body: Body) -> Readout:
        n_targets, n_features = self.head_["linear.weight"].shape
        return Readout(body, n_features, n_targets)
