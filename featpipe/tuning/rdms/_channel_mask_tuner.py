"""`ChannelMaskTuner`: a coefficient per channel and the network itself, learned together from RDMs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from featpipe.extraction._forward import choose_device, precision_of
from featpipe.models import Tap
from featpipe.rsa import RDMs
from featpipe.rsa.mask._measured import measured_pairs
from featpipe.rsa.mask._objective import LOSSES, Lines
from featpipe.rsa.mask._problem import pairs_within_sets
from featpipe.rsa.mask._stage_tuning import stage_tuning
from featpipe.tuning._features import Layers
from featpipe.tuning._plan import Plan
from featpipe.tuning._training import number, one_of
from featpipe.tuning.network import Body
from featpipe.tuning.rdms._mask_module import EVALUATED, MaskedNetwork, MaskObjective
from featpipe.tuning.rdms._pairs import PairBatches, StimulusBatches, held_out_rho
from featpipe.tuning.rdms._rdm_tuner import RDMTuner, correlation_distances

Pairs = tuple[np.ndarray, np.ndarray]  # rows of the two stimuli

_CHOICES: dict[str, Any] = {
    "loss": LOSSES,
    "reliability": (True, False),
    "line": (True, False),
    "time_sampling": (None, "mean", "gaussian"),
    "validation": ("stimuli", "pairs"),
    "sampling": ("pairs", "stimuli"),
}


class ChannelMaskTuner(RDMTuner):
    """Scale every channel of some stages, and tune the network, so that correlations match dissimilarities.

    Learns ``beta``, from ones, and the network's weights, from those it came with, minimising ::

        mean_{ij, rdm} w_ij loss(1 - r_ij, y_ij)

    where ``r_ij`` is Pearson's r over all features of all layers, each multiplied by its channel's beta, and
    the mean is over the pairs within stimulus sets and the RDMs of all subjects (targets, times) at once.
    As a function of beta it is the objective of `ChannelMask`, which fits beta alone and much faster; with
    ``frozen="**"`` this does as well.

    Parameters
    ----------
    model : str
    layer : str or sequence of str
        The stages, ``LAYER[:REDUCE]``; without a reduction each layer as it is.
    loss : {"l1", "squared", "correlation"}
        "correlation" is one minus the mean over stimulus sets and RDMs of Pearson's r of predicted and
        measured pairs.
    reliability : bool
        Weigh pairs by ``(1 / (N + alpha mean N))**beta``, N the standard deviation over subjects.
    alpha, beta : float
        Of the weights, not of the mask.
    line : bool
        An offset and a scale >= 0 between 1 - r and y, per target and stimulus set, in closed form before each
        epoch. Predictions stay 1 - r. The correlation loss needs none.
    time_sampling : {None, "mean", "gaussian"}
        For RDMs with times: all alike; their mean; or one drawn per pair and batch, the middle most often.
    train_on : str or sequence of str, optional
        Targets of y to fit to; all by default.
    validate_on : str or sequence of str, optional
        Those of them that choose the epoch by their held-out stimuli; all by default.
    body_learning_rate : float
        Of the network's weights; `learning_rate` is the mask's.
    validation : {"stimuli", "pairs"}
        What is held out to choose the epoch: stimuli, the same share of each set, or pairs as in the report,
        which share their stimuli with those fitted (`validation_folds` then has no part).
    sampling : {"pairs", "stimuli"}
        A batch is so many pairs, as in the report; or so many stimuli with all their pairs, which makes more
        of each pass through the network.

    Attributes
    ----------
    coef_ : ndarray of shape (n_channels,)
    coef_layer_ : ndarray of int
        Position of each coefficient's layer in `layers_`.
    layers_ : list of str
    offset_, scale_ : ndarray of shape (n_targets, n_sets)
        Of the lines, for `training_targets_` and `training_sets_`; 0 and 1 without.
    training_targets_, training_sets_ : list of str

    See Also
    --------
    featpipe.tuning._tuner.Tuner : The parameters and attributes that all tuners have.

    Notes
    -----
    The epoch with the largest mean signed Spearman correlation with held-out pairs is kept. All images of a
    batch are seen once, also where they are part of several pairs, so that pairs share the crop.

    References
    ----------
    Gaziv (2019), Learning to aggregate feature representations, sections 2.2 and 2.3.
    """

    def __init__(
        self,
        model,
        layer,
        *,
        loss="l1",
        reliability=True,
        alpha=0.25,
        beta=1.0,
        line=False,
        time_sampling=None,
        train_on=None,
        validate_on=None,
        body_learning_rate=1e-4,
        validation="stimuli",
        sampling="pairs",
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
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=0.0,
        schedule="fixed",
        decay=0.1,
        decay_every=30,
        batch_size=40,
        max_epochs=15,
        patience=5,
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
        self.reliability = reliability
        self.alpha = alpha
        self.beta = beta
        self.line = line
        self.time_sampling = time_sampling
        self.train_on = train_on
        self.validate_on = validate_on
        self.body_learning_rate = body_learning_rate
        self.validation = validation
        self.sampling = sampling
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

    def _features(self, ids: np.ndarray) -> Layers:
        """Return the masked embedding, or `transform_layers` of the tuned network without a mask."""
        masked = self.transform_layers is None
        return [("masked", self._masked(ids))] if masked else super()._features(ids)

    @property
    def stage_tuning_(self):
        """Mean coefficient of each stage, its 95 % interval and n, as `stage_tuning` has it."""
        check_is_fitted(self)
        return stage_tuning(self.coef_, self.coef_layer_, self.layers_)

    def _dissimilarities(self, ids: np.ndarray) -> np.ndarray:
        return correlation_distances(self._masked(ids))

    def _masked(self, ids: np.ndarray) -> np.ndarray:
        module = self._load(ids)
        with torch.inference_mode(), precision_of("fp32", choose_device(self.device)):
            parts = [module(rows).cpu().numpy() for rows in torch.arange(len(ids)).split(EVALUATED)]
        return np.concatenate(parts)

    def _plan(
        self, body: Body, ids: np.ndarray, y: RDMs, rows: np.ndarray, held_out: np.ndarray | None
    ) -> Plan:
        self._check_parameters()
        self.training_targets_ = list(y.target_names)
        self.training_sets_ = list(dict.fromkeys(y.sets.tolist()))
        pairs, watched = self._split(y, rows, held_out)
        reliability = (self.alpha, self.beta) if self.reliability else None
        measured = measured_pairs(y, *pairs, reliability=reliability, time_sampling=self.time_sampling)
        module = MaskedNetwork(body)
        line = self.line and self.loss != "correlation"
        objective = MaskObjective(module, measured, pairs, kind=self.loss, line=line)
        batches = self._batches(y.sets, pairs)

        def epoch(seed: int) -> Sequence[torch.Tensor]:
            objective.fit_lines()
            return batches(seed)

        stopping = None if watched is None else held_out_rho(*watched, module.rdm)
        return Plan(module, objective, epoch, stopping, self._groups(module))

    def _split(
        self, y: RDMs, rows: np.ndarray, held_out: np.ndarray | None
    ) -> tuple[Pairs, tuple[RDMs, np.ndarray] | None]:
        """Return the pairs to fit to, and the RDMs and rows that choose the epoch."""
        first, second = pairs_within_sets(y, rows)
        if self.validation == "stimuli" or self.validation_fraction == 0:
            return (first, second), None if held_out is None else (self._validated(y), held_out)
        n_pairs = len(first)
        drawn = np.random.default_rng(self.seed).permutation(n_pairs)
        out = np.isin(np.arange(n_pairs), drawn[: round(self.validation_fraction * n_pairs)])
        held = square((first[out], second[out]), len(y))
        own = self._validated(y)
        watched = own.with_upper(np.where(held, own.values, np.nan)[:, *np.triu_indices(len(y), 1)])
        return (first[~out], second[~out]), (watched, np.arange(len(y)))

    def _batches(self, sets: np.ndarray, pairs: Pairs) -> PairBatches | StimulusBatches:
        rows = np.unique(pairs)
        if self.sampling == "stimuli":
            return StimulusBatches(sets, rows, self.batch_size)
        return PairBatches(sets, rows, self.batch_size, square(pairs, len(sets)))

    def _groups(self, module: MaskedNetwork) -> list[dict[str, Any]]:
        body = [p for p in module.body.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": [module.coef]}]
        return [*groups, {"params": body, "lr": self.body_learning_rate}] if body else groups

    def _module(self, body: Body) -> torch.nn.Module:
        return MaskedNetwork(body)

    def _splits(self, ids: np.ndarray, groups: Any) -> list[tuple[np.ndarray, np.ndarray | None]]:
        if self.validation != "pairs":
            return super()._splits(ids, groups)
        return [(np.arange(len(ids)), None)]  # pairs are held out later

    def _note(self, history: Any, plan: Plan) -> None:
        super()._note(history, plan)
        module: Any = plan.module
        self.coef_ = module.coef.detach().cpu().numpy().astype(np.float64)
        self.coef_layer_ = np.repeat(np.arange(len(module.counts)), module.counts)
        self.layers_ = [label(tap) for tap in module.body.taps]
        objective: Any = plan.objective
        objective.fit_lines()  # those of the weights that are kept
        shape = len(self.training_targets_), len(self.training_sets_)
        lines = objective.loss.lines or Lines(np.zeros(shape), np.ones(shape))
        self.offset_, self.scale_ = lines.offset, lines.scale

    def _check_parameters(self) -> None:
        for name, choices in _CHOICES.items():
            one_of(name, getattr(self, name), choices)
        if self.validation == "pairs":
            number("validation_fraction", self.validation_fraction, least=0.0, below=1.0)
        number("alpha", self.alpha, least=0.0)
        number("beta", self.beta, least=0.0)
        number("body_learning_rate", self.body_learning_rate, above=0.0)


def square(pairs: Pairs, n_stimuli: int) -> np.ndarray:
    """Return which pairs there are: ndarray of bool, (n_stimuli, n_stimuli), symmetric."""
    there = np.zeros((n_stimuli, n_stimuli), dtype=bool)
    there[pairs] = there[pairs[::-1]] = True
    return there


def label(tap: Tap) -> str:
    """Return a layer as a request names it, without its reduction."""
    call = f"@{tap.call}" if tap.call else ""
    return tap.layer + call + (f"/{tap.element}" if tap.element else "")
