"""`SiameseTuner`: a network whose correlation distance at a layer fits measured dissimilarities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from featpipe.models import Backbone
from featpipe.rsa import RDMs
from featpipe.tuning._network_on_images import Bare, texts
from featpipe.tuning._plan import Plan
from featpipe.tuning._training import one_of
from featpipe.tuning._tuned import network_request
from featpipe.tuning.network import Body, slide_classifier
from featpipe.tuning.rdms._losses import correlation_loss, pair_correlations, squared_loss
from featpipe.tuning.rdms._pairs import (
    PairBatches,
    StimulusBatches,
    held_out_rho,
    pairs_of,
    rdm_of_rows,
)
from featpipe.tuning.rdms._rdm_tuner import RDMTuner, correlation_distances
from featpipe.tuning.rdms._targets import mean_dissimilarities

LOSSES = ("squared", "correlation")
SAMPLINGS = ("pairs", "stimuli")
_BATCH = 32  # images, where no gradient is needed


class SiameseTuner(RDMTuner):
    """Tune a network so that 1 - Pearson's r of a layer's features matches measured dissimilarities.

    Minimises over the pairs within stimulus sets, with d_ij the mean over subjects of their RDMs, ::

        mean_ij (1 - r_ij - d_ij)²                  loss="squared", as in the report
        mean over sets of 1 - corr_ij(1 - r_ij, d_ij)     loss="correlation"

    The second ignores mean and scale of each set, which the first mostly learns. After each epoch the signed Spearman
    correlation with held-out stimuli is taken, and the best epoch is kept; among `read_layers` the best layer too.
    Both are chosen by stimuli that are fitted to here, and not, as in the report, by those that are scored.

    Parameters
    ----------
    model, layer, and all after `validate_on`
        See `Tuner`. The defaults are the report's: SGD at .005, batches of 32 pairs.
    loss : {"squared", "correlation"}
    sampling : {"pairs", "stimuli"}
        What a batch is made of: pairs from all sets, or stimuli of one set with all pairs between them, which
        sends each image through the network once an epoch.
    normalise : {None, "zscore"}
        Standardise each subject's training pairs per set before the mean over subjects.
    rescale : (offset, divisor), optional
        Turns the mean x into ``(x + offset) / divisor``; the report has (2, 5) for MEG.
    read_layers : sequence of str, optional
        Layers that may give the prediction; `layer` by default.
    predict_size : int, optional
        Size of the images in pixels in `predict` and `transform`; that of the training by default.
    fully_convolutional : bool
        At `predict_size`, slide the first fully connected layer over the larger map (AlexNet and VGG), as MatConvNet
        does, instead of averaging the map down to the trained size, as torchvision does.
    train_on : str or sequence of str, optional
        Targets of y to fit to; all by default.
    validate_on : str or sequence of str, optional
        Those of them that choose the epoch by their held-out stimuli; all by default.

    Attributes
    ----------
    layer_ : str
        The one of `read_layers` that predicts.

    References
    ----------
    Agrawal (2019), Dissimilarity learning via Siamese network predicts brain imaging data, Methods.
    """

    def __init__(
        self,
        model,
        layer,
        *,
        loss="squared",
        sampling="pairs",
        normalise="zscore",
        rescale=None,
        read_layers=None,
        predict_size=None,
        fully_convolutional=False,
        train_on=None,
        validate_on=None,
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
        optimiser="sgd",
        learning_rate=0.005,
        momentum=0.9,
        weight_decay=0.0,
        schedule="fixed",
        decay=0.1,
        decay_every=30,
        batch_size=32,
        max_epochs=50,
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
        self.loss = loss
        self.sampling = sampling
        self.normalise = normalise
        self.rescale = rescale
        self.read_layers = read_layers
        self.predict_size = predict_size
        self.fully_convolutional = fully_convolutional
        self.train_on = train_on
        self.validate_on = validate_on
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

    @property
    def _taps(self) -> list[str]:
        return list(dict.fromkeys([*texts(self.layer), *texts(self.read_layers or [])]))

    @property
    def _candidates(self) -> list[str]:
        return texts(self.layer if self.read_layers is None else self.read_layers)

    @property
    def _transform_taps(self) -> list[str]:
        return [self.layer_] if self.transform_layers is None else texts(self.transform_layers)

    def _dissimilarities(self, ids: np.ndarray) -> np.ndarray:
        _, features = self._read(ids, [self.layer_])[0]  # whatever layers `transform` is asked for
        return correlation_distances(features)

    def _backbone_to_read(self) -> Backbone:
        request = network_request(self)
        if self.predict_size is not None:
            request = replace(request, image_size=self.predict_size)
        backbone = self.tuned_.backbone(request, self.checkpoints)
        if not self.fully_convolutional:
            return backbone
        slide_classifier(backbone)
        args = (
            *backbone.card.model_args,
            ("fully_convolutional", True),
        )  # what is kept of images must say so
        return replace(backbone, card=replace(backbone.card, model_args=args))

    def _plan(
        self, body: Body, ids: np.ndarray, y: RDMs, rows: np.ndarray, held_out: np.ndarray | None
    ) -> Plan:
        one_of("loss", self.loss, LOSSES)
        one_of("sampling", self.sampling, SAMPLINGS)
        targets = mean_dissimilarities(y, rows, normalise=self.normalise, rescale=self.rescale)
        if self.sampling == "pairs":
            batches: PairBatches | StimulusBatches = PairBatches(
                y.sets, rows, self.batch_size, ~np.isnan(targets)
            )
        else:
            batches = StimulusBatches(y.sets, rows, self.batch_size)
        module = Bare(body)
        score = (
            None if held_out is None else held_out_rho(self._validated(y), held_out, _Predicted(module, 0))
        )
        return Plan(module, PairLoss(module, targets, y.sets, self.loss), batches, score)

    def _judge(self, plan: Plan, y: RDMs, held_out: np.ndarray | None) -> np.ndarray | None:
        if held_out is None or len(self._candidates) == 1:
            return None
        places = [self._taps.index(name) for name in self._candidates]
        watched = self._validated(y)
        losses = [held_out_rho(watched, held_out, _Predicted(plan.module, place))() for place in places]
        return np.concatenate(losses)

    def _choose(self, judged: np.ndarray | None) -> None:
        self.layer_ = self._candidates[0 if judged is None else int(np.argmin(judged))]


class PairLoss:
    """The loss of a batch of pairs, or of all pairs of a batch of stimuli.

    Parameters
    ----------
    module : nn.Module
        Whose body's first tap is compared.
    targets : ndarray of shape (n_stimuli, n_stimuli)
        NaN where there is nothing to fit to.
    sets : ndarray of str, shape (n_stimuli,)
    loss : {"squared", "correlation"}
    """

    def __init__(self, module: torch.nn.Module, targets: np.ndarray, sets: np.ndarray, loss: str) -> None:
        self.module, self.loss = module, loss
        self.device = module.body.images.device
        self.targets = torch.as_tensor(targets, dtype=torch.float32, device=self.device)
        self.sets = torch.as_tensor(np.unique(sets, return_inverse=True)[1], device=self.device)

    def __call__(
        self, batch: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of losses and its weight, each (1,)."""
        rows, first, second = pairs_of(batch)
        features = self.module.body(rows, generator)[0]
        predicted = 1 - pair_correlations(features, first, second)
        measured = self.targets[rows[first], rows[second]]
        if self.loss == "squared":
            loss = squared_loss(predicted, measured)
        else:
            loss = correlation_loss(predicted, measured, self.sets[rows[first]])
        weight = torch.full((1,), float(len(first)), device=self.device)
        return loss * weight, weight


class _Predicted:
    """Dissimilarities of some rows by one layer of a network as it stands."""

    def __init__(self, module: torch.nn.Module, tap: int) -> None:
        self._body, self._tap = module.body, tap

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            parts = [self._body(part)[self._tap].flatten(1) for part in torch.as_tensor(rows).split(_BATCH)]
            return rdm_of_rows(torch.cat(parts))
