"""`ContrastiveTuner`: a network whose images and measured responses meet in one space."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from featpipe.errors import RequestError
from featpipe.tuning._plan import Plan
from featpipe.tuning._training import number, one_of
from featpipe.tuning.network import Body
from featpipe.tuning.responses._fits_responses import FitsResponses
from featpipe.tuning.responses._losses import contrastive_loss
from featpipe.tuning.responses._measured import Measured
from featpipe.tuning.responses._modules import ContrastiveModule
from featpipe.tuning.responses._projection import SharedProjection
from featpipe.tuning.responses._start import solve_projection
from featpipe.tuning.responses._stopping import HeldOutRidge, features_of

STARTS = ("ridge", "random")


class ContrastiveTuner(FitsResponses):
    """Tune a network until each image is told apart by the responses to it.

    Features a of the layer and responses y of a stimulus are mapped linearly into a shared space of v₁ dimensions and
    on by one projection head (`SharedProjection`), and the whole is trained by `contrastive_loss`: by default the
    report's equation 1. What is kept of it is the network: ``transform`` gives its features, and a ridge behind it
    predicts responses, ``Pipeline([("tuner", …), ("scale", LayerScaler()), ("ridge", RidgeEncoder())])``.

    Parameters
    ----------
    temperature : float
        τ of the loss.
    shared_size, projected_size : int, optional
        v₁ and v₂ of `SharedProjection`.
    include_positive, symmetric : bool
        Which contrastive loss, see `contrastive_loss`; both True is CLIP's.
    start : {"ridge", "random"}
        Where the linear maps begin, which the report leaves open: at responses and what ridge predicts of them from the
        untuned features, see `solve_projection`; or at random, from where few stimuli teach the network nothing.
    micro_batch : int, optional
        Images of which activations are held at a time. Loss and gradient are those of the whole batch, as linear
        maps and head see all of it.
    stop_by : {"ridge", "loss"}
        What held-out stimuli choose the epoch by: r of a ridge from the features to their responses, see
        `HeldOutRidge`; or the contrastive loss of all of them as one batch, by which the network as it came, with a
        head that nothing has trained, is never chosen.
    head_learning_rate : float, optional
        Of linear maps and head; that of the network by default. From a random start it should be higher.

    See `Tuner` for the other parameters and the attributes.

    Notes
    -----
    All targets of y are fitted at once. A network per region of interest is
    ``PerROI(Pipeline([("tuner", …), …]), rois)``. Responses are standardised by the moments of the stimuli that are
    trained on; a missing one counts as the mean, and stimuli without any are left out. A batch has at most
    `batch_size` stimuli, and an epoch is divided evenly. Batch norm of the head sees the whole batch.

    References
    ----------
    Mulrooney & Brockmeier (2023), fMRI encoding of visual cortex with contrastive learning. Gao et al. (2021),
    Scaling deep contrastive learning batch size under memory limited setup, section 3 (`micro_batch`).
    """

    def __init__(
        self,
        model,
        layer,
        *,
        temperature=0.1,
        shared_size=None,
        projected_size=None,
        include_positive=False,
        symmetric=False,
        start="ridge",
        micro_batch=None,
        stop_by="ridge",
        head_learning_rate=None,
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
        batch_size=1024,
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
        self.temperature = temperature
        self.shared_size = shared_size
        self.projected_size = projected_size
        self.include_positive = include_positive
        self.symmetric = symmetric
        self.start = start
        self.micro_batch = micro_batch
        self.stop_by = stop_by
        self.head_learning_rate = head_learning_rate
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

    def _plan(
        self, body: Body, ids: np.ndarray, y: np.ndarray, rows: np.ndarray, held_out: np.ndarray | None
    ) -> Plan:
        number("temperature", self.temperature, above=0.0)
        one_of("start", self.start, STARTS)
        measured = self._measured(y, rows, held_out, 2)
        if self.max_epochs and not any(p.requires_grad for p in body.parameters()):
            raise RequestError(
                "There is nothing to train: the whole network is frozen, and only its layers are given. Free a layer, "
                "or set max_epochs=0."
            )
        features = features_of(body, measured.rows).cpu().numpy()
        generator = torch.Generator().manual_seed(self.seed)
        sizes = (features.shape[1], y.shape[1], self.shared_size, self.projected_size)
        module = ContrastiveModule(body, features.shape[1], SharedProjection(*sizes, generator))
        features = module.standardised.learn(features)
        if self.start == "ridge":
            solve_projection(module.projection, features, measured.filled[measured.rows], generator)
        module.to(body.images.device)
        objective = Contrast(module, measured, self._loss)
        return Plan(module, objective, measured.rows, self._held_out(objective), self._groups(module))

    def _loss(self, z_responses: torch.Tensor, z_images: torch.Tensor) -> torch.Tensor:
        chosen = {"include_positive": self.include_positive, "symmetric": self.symmetric}
        return contrastive_loss(z_responses, z_images, temperature=self.temperature, **chosen)

    def _held_out(self, objective: Contrast) -> Any:
        if objective.measured.held_out is None:
            return None
        if self.stop_by == "ridge":
            return HeldOutRidge(objective.module.body, objective.measured)
        return objective.held_out

    def _module(self, body: Body) -> ContrastiveModule:
        n_features = len(self.head_["standardised.origin"])
        v2, v1 = self.head_["projection.last.weight"].shape
        n_targets = self.head_["projection.of_responses.weight"].shape[1]
        return ContrastiveModule(body, n_features, SharedProjection(n_features, n_targets, v1, v2))


class Contrast:
    """The contrastive objective of batches of rows.

    Parameters
    ----------
    module : ContrastiveModule
    measured : Measured
    loss : callable (z of responses, z of images) -> losses of shape (n_batch,)
    """

    def __init__(self, module: ContrastiveModule, measured: Measured, loss: Any) -> None:
        self.module, self.measured, self._loss = module, measured, loss
        self.Y = torch.as_tensor(measured.filled, device=module.body.images.device)

    def __call__(
        self, rows: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of the losses and their number, each of shape (1,)."""
        losses = self._loss(*self.module(rows, self.Y[rows], generator))
        return losses.sum()[None], losses.new_full((1,), len(losses))

    def held_out(self) -> np.ndarray:
        """Return the mean loss of all held-out stimuli as one batch, (1,): as many negatives in every epoch."""
        rows = torch.as_tensor(self.measured.held_out, device=self.Y.device)
        return self._loss(*self.module(rows, self.Y[rows], None)).mean().cpu().numpy()[None]
