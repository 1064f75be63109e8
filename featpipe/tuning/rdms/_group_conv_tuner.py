"""`SiameseGroupConvTuner`: dissimilarity learned by a head over the maps of two images, then by the network."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from featpipe.extraction._forward import precision_of
from featpipe.rsa import RDMs
from featpipe.tuning._plan import Plan
from featpipe.tuning._training import Training, number, one_of, whole
from featpipe.tuning.images import RowMemory, RowStore
from featpipe.tuning.network import Body
from featpipe.tuning.rdms._interleaved import InterleavedHead
from featpipe.tuning.rdms._losses import squared_loss
from featpipe.tuning.rdms._pairs import PairBatches, StimulusBatches, held_out_rho, pairs_of
from featpipe.tuning.rdms._rdm_tuner import RDMTuner
from featpipe.tuning.rdms._targets import RangeMap, mean_dissimilarities, to_range

SAMPLINGS = ("pairs", "stimuli")
_BATCH = 32  # images, where no gradient is needed


class SiameseGroupConvTuner(RDMTuner):
    """Tune a network below a head that predicts the dissimilarity of two images from their interleaved maps.

    Minimises ``mean_ij (g(A_i, A_j) - d_ij)²`` over the pairs within stimulus sets: ``A`` are the maps of `layer`,
    ``g`` is `InterleavedHead`, and ``d`` the mean over subjects of their RDMs, brought to the range [0, 1] by one
    line that the training pairs set. The head is drawn at random, and sees maps in units of their root mean square
    over the training images, so that outputs begin near that range whatever the layer (ours). It is trained alone for
    `frozen_epochs`; then the network is trained with it. After each epoch the signed Spearman correlation with held-out
    stimuli is taken, and the best epoch is kept (`best_epoch_`); the report runs about 1 000.

    Parameters
    ----------
    model, layer, and all after `validate_on`
        See `Tuner`. The layer must give maps, as ``features`` of ``torchvision:alexnet``. A `learning_rate` of
        "auto" is tested, as in the report, before anything is trained and on the head alone. `patience` begins to
        count when the network is trained.
    channels, groups : int
        Of the head's convolution; both the layer's channels and these must be divisible by the groups.
    symmetric : bool
        Average both orders of a pair in training; False draws one. Predictions average both.
    frozen_epochs : int
        Epochs of the head alone, of `max_epochs` in all. What the network makes of whole images is then computed once.
    body_rate : float
        Learning rate of the network as a share of the head's; a tenth is fast.ai's habit, the report has no figure.
    normalise : {None, "zscore"}
        Standardise each subject's training pairs per set before the mean over subjects. Predictions are then in these
        units.
    sampling : {"pairs", "stimuli"}
        What a batch is made of: pairs from all sets, or stimuli of one set with all pairs between them, which sends
        each image through the network once an epoch.
    train_on : str or sequence of str, optional
        Targets of y to fit to, averaged; all by default.
    validate_on : str or sequence of str, optional
        Those of them that choose the epoch by their held-out stimuli; all by default.

    Attributes
    ----------
    range_ : (float, float)
        Dissimilarities that were 0 and 1 in training.

    References
    ----------
    Jacob & Katti (2019), Predicting population neural activity in the Algonauts challenge using end-to-end trained
    Siamese networks and group convolutions. The optimiser is not in it; ours is that of fast.ai, which it used.
    """

    def __init__(
        self,
        model="torchvision:alexnet",
        layer="features",
        *,
        channels=32,
        groups=16,
        symmetric=True,
        frozen_epochs=15,
        body_rate=0.1,
        normalise=None,
        sampling="pairs",
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
        optimiser="adamw",
        learning_rate="auto",
        momentum=0.9,
        weight_decay=0.01,
        schedule="fixed",
        decay=0.1,
        decay_every=30,
        batch_size=64,
        max_epochs=1000,
        patience=20,
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
        self.channels = channels
        self.groups = groups
        self.symmetric = symmetric
        self.frozen_epochs = frozen_epochs
        self.body_rate = body_rate
        self.normalise = normalise
        self.sampling = sampling
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

    def _module(self, body: Body) -> PairModule:
        head = InterleavedHead(
            body.shapes[0],
            channels=self.channels,
            groups=self.groups,
            symmetric=self.symmetric,
            generator=torch.Generator().manual_seed(self.seed),
        )
        return PairModule(body, head, repeats=self.augmentation is None and not self.dropout)

    def _plan(
        self, body: Body, ids: np.ndarray, y: RDMs, rows: np.ndarray, held_out: np.ndarray | None
    ) -> Plan:
        one_of("sampling", self.sampling, SAMPLINGS)
        whole("frozen_epochs", self.frozen_epochs, 0)
        number("body_rate", self.body_rate, above=0.0)
        targets, inverse = to_range(mean_dissimilarities(y, rows, normalise=self.normalise), rows)
        self.range_ = (float(inverse(np.array(0.0))), float(inverse(np.array(1.0))))
        if self.sampling == "pairs":
            batches: Any = PairBatches(y.sets, rows, self.batch_size, ~np.isnan(targets))
        else:
            batches = StimulusBatches(y.sets, rows, self.batch_size)
        module = self._module(body).to(body.images.device)
        module.scale_to(rows)
        score = (
            None if held_out is None else held_out_rho(self._validated(y), held_out, module.dissimilarities)
        )
        groups: list[dict[str, Any]] = [{"params": list(module.head.parameters())}]
        if trained := [p for p in body.parameters() if p.requires_grad]:
            # a share of 1, the rate that a range test is given; `_training` knows the rate
            groups.append({"params": trained, "from_epoch": self.frozen_epochs + 1, "lr": self.body_rate})
        return Plan(module, PairError(module, targets), batches, score, groups)

    def _training(self, plan: Plan, n_epochs: int) -> Training:
        training = super()._training(plan, n_epochs)
        groups: Any = plan.groups
        for group in groups[1:]:
            group["lr"] = self.body_rate * training.learning_rate
        return replace(training, min_epochs=max(self.min_epochs, self.frozen_epochs + (self.patience or 0)))

    def _tested_rate(self, plan: Plan, values: dict[str, Any]) -> float:
        groups: Any = plan.groups
        now, later = (groups[:1], groups[1:]) if self.frozen_epochs else (groups, [])
        _let_train(later, False)  # the test repeats epochs, and would come to those that train the network
        rate = super()._tested_rate(replace(plan, groups=now), values)
        _let_train(later, True)
        return rate

    def _dissimilarities(self, ids: np.ndarray) -> np.ndarray:
        module = self._load(ids)
        with precision_of("fp32", module.body.images.device):
            return RangeMap(*self.range_).inverse(module.dissimilarities(np.arange(len(ids))))


class PairModule(nn.Module):
    """A network and the head that compares what it makes of two images.

    Parameters
    ----------
    body : Body
    head : InterleavedHead
    repeats : bool
        The body gives the same maps of an image each time in training.
    """

    def __init__(self, body: Body, head: InterleavedHead, *, repeats: bool) -> None:
        super().__init__()
        self.body, self.head = body, head
        self._repeats = repeats
        self._weights = tuple(body.parameters())
        self._kept: RowStore | None = None

    def maps(self, rows: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Return the maps of some images, (n_images, channels, height, width)."""
        if any(p.requires_grad for p in self._weights):
            self._kept = None  # it changes from here on
            return self.body(rows, generator)[0]
        if generator is not None and not self._repeats:
            return self.body(rows, generator)[0]
        if self._kept is None:
            self._kept = RowMemory().of("maps", expected=len(self.body.images))
        device = self.body.images.device
        return self._kept.take_or(rows.tolist(), partial(self._computed, rows), device=device)[0]

    @torch.no_grad()
    def scale_to(self, rows: np.ndarray) -> None:
        """Let the head see maps in units of their root mean square over some whole images."""
        parts = torch.as_tensor(rows).split(_BATCH)
        squares = [self.maps(part, None).square().mean((1, 2, 3)) for part in parts]
        self.head.scale_to(torch.cat(squares).mean())

    def dissimilarities(self, rows: np.ndarray) -> np.ndarray:
        """Return what is predicted of all pairs of some images: ndarray (n_rows, n_rows), float64, symmetric."""
        with torch.no_grad():
            maps = [self.maps(part, None) for part in torch.as_tensor(rows).split(_BATCH)]
            values = self.head.all_pairs(torch.cat(maps)).double().cpu().numpy()
        np.fill_diagonal(values, 0)
        return (values + values.T) / 2

    def _computed(self, rows: torch.Tensor, places: np.ndarray) -> tuple[torch.Tensor]:
        with torch.no_grad():
            wanted = rows[torch.as_tensor(places, device=rows.device)]
            return (torch.cat([self.body(part)[0] for part in wanted.split(_BATCH)]),)


class PairError:
    """The squared error of a batch of pairs, or of all pairs of a batch of stimuli.

    Parameters
    ----------
    module : PairModule
    targets : ndarray of shape (n_stimuli, n_stimuli)
        NaN where there is nothing to fit to.
    """

    def __init__(self, module: PairModule, targets: np.ndarray) -> None:
        self.module = module
        self.targets = torch.as_tensor(targets, dtype=torch.float32, device=module.body.images.device)

    def __call__(
        self, batch: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of squared errors and the number of pairs, each (1,)."""
        rows, first, second = pairs_of(batch)
        if generator is not None and not self.module.head.symmetric:
            swap = torch.rand(len(first), generator=generator, device=first.device) < 0.5
            first, second = torch.where(swap, second, first), torch.where(swap, first, second)
        predicted = self.module.head.of_pairs(self.module.maps(rows, generator), first, second)
        measured = self.targets[rows[first], rows[second]]
        count = (~measured.isnan()).sum()[None].float()
        return squared_loss(predicted, measured) * count, count


def _let_train(groups: Any, free: bool) -> None:
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_(free)
