"""What all tuners have in common: a scikit-learn transformer around one training of a network."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.models import Backbone, load, save_checkpoint
from featpipe.tuning._features import Layers, as_blocks, as_matrix
from featpipe.tuning._folds import dealt_out, held_out_of_each_set
from featpipe.tuning._loop import train
from featpipe.tuning._network_on_images import NetworkOnImages, head_of
from featpipe.tuning._plan import Plan
from featpipe.tuning._range_test import range_test
from featpipe.tuning._stimuli import as_ids
from featpipe.tuning._training import Training, one_of, whole
from featpipe.tuning._tuned import Keeping, fingerprint, network_request
from featpipe.tuning.network import Body

_TRAINING = (
    *("optimiser", "learning_rate", "momentum", "weight_decay", "schedule", "decay", "decay_every"),
    *("batch_size", "max_epochs", "patience", "min_epochs", "clip", "precision", "seed", "device"),
)
OUTPUTS = ("matrix", "blocks")
_OF_SOME_FITS = {"fold_losses_", "range_test_"}  # attributes that depend on how it is fitted


class Tuner(TransformerMixin, NetworkOnImages, ABC):
    """Change a network until what it computes of images fits measurements; see the subclasses.

    X is stimulus ids, and `stimuli` says where their images are. A tuner says which layers it reads (`_taps`),
    what it trains (`_plan`), how the trained module is built again (`_module`), and how it predicts.

    Parameters
    ----------
    model : str
        ``ZOO:NAME``, as in ``featpipe extract --model``.
    layer : str
        Layer that the training reads, ``LAYER[:REDUCE]``.
    weights, model_args, preprocess, image_size, mean, std, trust
        As in ``featpipe extract``; see `featpipe.models.ModelRequest`. The whole image is the default here.
    stimuli : StimulusSet or str
        The images behind the ids: a SOURCE of images or DATA.
    transform_layers : sequence of str, optional
        Layers that `transform` gives, ``LAYER[:REDUCE]``; `layer` by default.
    frozen : str or sequence of str, optional
        Layers that stay as they are: names, globs, or ranges in network order, ``"..conv5"`` (up to and with),
        ``"conv5.."`` (from there on) or ``"conv2..conv4"``.
    lora_rank : int, optional
        Train changes of this rank of linear layers and 1×1 convolutions, and nothing else of the network.
    lora_scale : float
    dropout : bool
        Let the network's own dropout drop in training. Batch norm stays as in evaluation.
    augmentation : str, optional
        ``crop:FRACTION[:flip]``: what training sees instead of the whole images.
    views : int
        0 draws a crop anew each time. Otherwise so many crops of each image are drawn once, those of
        ``featpipe extract --views``, and what the frozen part of the network makes of them is kept.
    optimiser, momentum, weight_decay, schedule, decay, decay_every, clip, precision
        See `Training`.
    learning_rate : float or "auto"
        "auto" takes what the range test of Smith (2015) suggests, on the training stimuli; what has a rate of its own
        stays as it is in the test. Where no rate makes the loss fall, as on noise, that is an error.
    batch_size, max_epochs : int
        0 epochs leave the network untuned.
    patience, min_epochs : int
        Epochs without a new best after which training stops.
    validation_fraction : float
        Share of the stimuli of each set that chooses the epoch, never the same as are scored. 0 does all epochs.
    validation_folds : int, optional
        Instead: train once per fold, and then on all stimuli for the number of epochs that is best on average over
        the held-out folds. Better than one share where stimuli are few, and so many times as long.
    output : {"matrix", "blocks"}
        What `transform` gives: layers side by side, or `LayerBlocks`.
    cross_fit : int or None
        Folds of `fit_transform`; each stimulus gets features of a network that was not tuned to it, which is so many
        times the work and gives the next step rows of several networks. None gives features of the one network, with
        which stimuli it held out, for ``cv="held-out"`` of `RidgeEncoder` and `BandedRidge`; needs ``output="blocks"``.
    checkpoints : str or Path, optional
        Folder for the state of each training, from which one that was killed goes on, and for tuned weights, which
        a saved or pickled tuner then refers to instead of holding them.
    callback : callable (Epoch), optional
        Called after each epoch.
    seed : int
        Of everything that is drawn.
    device : str

    Attributes
    ----------
    training_ids_, validation_ids_ : ndarray of str
        Stimuli that the fit has seen, and those of them that chose the epoch.
    training_images_ : list of str
        Digests of their images, where there was a training.
    best_epoch_ : int
        0 is the network as it came.
    n_epochs_ : int
        Epochs done.
    learning_rate_ : float
        0 where nothing was trained.
    fold_losses_ : ndarray of shape (n_folds, 1 + n_epochs)
        With `validation_folds`: what is to be lowest, by epoch from 0 on; NaN after a fold's training diverged.
    range_test_ : dict of str to ndarray
        ``learning_rate``, ``loss`` and ``smoothed_loss`` of the range test, where there was one.
    history_ : dict of str to ndarray
        ``epoch`` from 0 on, ``learning_rate``, ``train_loss``, ``validation_loss``; a `pandas.DataFrame` can be made
        of it.
    n_trained_ : int
        Parameters that could change.
    weights_digest_ : str
        Of the tuned network, as ``featpipe cache`` shows it.
    """

    takes_images = True  # X is ids whose images the estimator itself needs: how a runner tells it from others
    __metadata_request__fit = {"groups": True}  # noqa: RUF012 (scikit-learn's form)

    def fit(self, X, y, groups=None):
        """Train on most stimuli, and keep the epoch that is best for the others.

        Parameters
        ----------
        X : array of str, shape (n_stimuli,)
            Ids.
        y : RDMs, or array of shape (n_stimuli, n_targets)
        groups : array of shape (n_stimuli,), optional
            Stimuli of one group all choose the epoch, or none; so do those that show one image.

        Returns
        -------
        self

        Raises
        ------
        RequestError
            Ids, images, layers, measurements and parameters do not fit together.
        WeightsUnavailable
            There are no weights; the message names the ways out.
        WorkError
            The training diverged in its first epoch.
        """
        for name in _OF_SOME_FITS & vars(self).keys():
            delattr(self, name)
        self._check_values()
        ids = as_ids(X)
        y = self._check_y(y, ids)
        splits = self._splits(ids, self._undivided(ids, groups))
        if len(splits) == 1:
            self._fit(ids, y, *splits[0], self.max_epochs)
        else:
            self._fit_like_folds(ids, y, splits)
        held_out = [rows for _, rows in splits if rows is not None]
        self.training_ids_ = ids
        self.training_images_ = self._images_of(ids) if self.max_epochs else []
        self.validation_ids_ = ids[np.unique(np.concatenate(held_out))] if held_out else ids[:0]
        return self

    def transform(self, X):
        """Return features of the tuned network.

        Returns
        -------
        ndarray of shape (n_stimuli, n_features), float32, or LayerBlocks
        """
        check_is_fitted(self)
        ids = as_ids(X)
        return self._given(ids, self._features(ids))

    def fit_transform(self, X, y=None, groups=None):
        """Fit, and return features on which something may be chosen by the same measurements.

        A penalty that is chosen behind a tuner would trust features that were made for these very measurements. So
        features are of networks that were tuned on the other folds (`cross_fit`), or know what this one held out.

        Returns
        -------
        ndarray of shape (n_stimuli, n_features), float32, or LayerBlocks
        """
        one_of("output", self.output, OUTPUTS)
        self._check_values()
        ids = as_ids(X)
        if self.cross_fit is None:
            return self._fit_transform_once(ids, y, groups)
        if self.max_epochs == 0:  # nothing was made for anything
            return self.fit(ids, y, groups=groups).transform(ids)
        measured, groups = self._check_y(y, ids), self._undivided(ids, groups)
        folds = dealt_out(ids, self.cross_fit, seed=self.seed, groups=groups)
        parts = []
        for others, own in folds:
            of_others = None if groups is None else groups[others]
            parts.append(clone(self).fit(ids[others], measured[others, ...], of_others)._features(ids[own]))
        order = np.argsort(np.concatenate([own for _, own in folds]))
        layers = zip(*parts, strict=True)  # each: (name, rows) of every fold
        crossed = [(part[0][0], np.concatenate([rows for _, rows in part])[order]) for part in layers]
        self.fit(ids, y, groups)
        return self._given(ids, crossed)

    def _fit_transform_once(self, ids: np.ndarray, y: Any, groups: Any) -> LayerBlocks:
        if self.output != "blocks":
            raise RequestError(
                "cross_fit=None gives features of the one network, and only LayerBlocks say which stimuli it was not "
                "fitted to: set output='blocks' here and in the scaler, and cv='held-out' in what chooses penalties."
            )
        self.fit(ids, y, groups=groups)
        return as_blocks(ids, self._features(ids), self.validation_ids_)

    def _given(self, ids: np.ndarray, layers: Layers) -> Any:
        return as_blocks(ids, layers) if self.output == "blocks" else as_matrix(layers)

    def _features(self, ids: np.ndarray) -> Layers:
        """Return what `transform` gives, by name."""
        return self._read(ids, self._transform_taps)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tuned network as a checkpoint: ``featpipe extract --model local:PATH`` caches its layers.

        Raises
        ------
        ModelError
            A network of a user's own Python file, which a checkpoint cannot name.
        """
        check_is_fitted(self)
        save_checkpoint(path, self._tuned_backbone(), tuned_on=self.training_images_)

    @abstractmethod
    def _plan(
        self, body: Body, ids: np.ndarray, y: Any, rows: np.ndarray, held_out: np.ndarray | None
    ) -> Plan:
        """Return what is trained on some rows of ids and stopped by others."""

    def _check_values(self) -> None:
        """Refuse what is used before `Training`, which has the rest, is made."""
        whole("seed", self.seed, 0)
        whole("batch_size", self.batch_size, 1)
        if not (self.callback is None or callable(self.callback)):
            raise RequestError(f"callback must be a function or None, got {self.callback!r}.")

    def _check_y(self, y: Any, ids: np.ndarray) -> Any:
        """Return what is fitted to; raises `RequestError` where it does not belong to these ids."""
        return y

    def _judge(self, plan: Plan, y: Any, held_out: np.ndarray | None) -> np.ndarray | None:
        """Return what else held-out stimuli say of the trained module, to be lowest, for `_choose`."""
        return None

    def _choose(self, judged: np.ndarray | None) -> None:
        """Choose by what `_judge` said, or by its mean over folds."""

    def _splits(self, ids: np.ndarray, groups: Any) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Return (rows to fit, rows to choose the epoch by): once, or for each fold."""
        if self.validation_folds is None:
            return [held_out_of_each_set(ids, self.validation_fraction, seed=self.seed, groups=groups)]
        name = "validation_folds"
        return [*dealt_out(ids, self.validation_folds, seed=self.seed, groups=groups, name=name)]

    def _fit(
        self, ids: np.ndarray, y: Any, rows: np.ndarray, held_out: np.ndarray | None, n_epochs: int
    ) -> None:
        """Train once and keep the result."""
        plan, keeping, backbone, judged = self._run(ids, y, rows, held_out, n_epochs)
        self._choose(judged)
        self.tuned_ = keeping.keep(plan.module.body, backbone)
        self.weights_digest_ = self.tuned_.digest
        self.head_ = head_of(plan.module)

    def _run(
        self, ids: np.ndarray, y: Any, rows: np.ndarray, held_out: np.ndarray | None, n_epochs: int
    ) -> tuple[Plan, Keeping, Backbone, np.ndarray | None]:
        """Train once; return what was trained, and what `_judge` says of it."""
        backbone = load(network_request(self))
        body = self._body(backbone, ids, self._taps)
        plan = self._plan(body, ids, y, rows, held_out)
        keeping = Keeping(self.checkpoints, fingerprint(self, body, backbone, ids, y, rows))
        self._note(self._train(plan, keeping, n_epochs), plan)
        return plan, keeping, backbone, self._judge(plan, y, held_out)

    def _fit_like_folds(
        self, ids: np.ndarray, y: Any, folds: list[tuple[np.ndarray, np.ndarray | None]]
    ) -> None:
        """Train on all stimuli for as many epochs as are best on average for the held-out part of each fold."""
        losses, judged = [], []
        for rows, held_out in folds:
            fold = clone(self).set_params(patience=None)
            judged.append(fold._run(ids, y, rows, held_out, self.max_epochs)[-1])
            losses.append(fold.history_["validation_loss"])
        self.fold_losses_ = side_by_side(losses)  # (n_folds, 1 + n_epochs)
        curve = self.fold_losses_.mean(axis=0)  # NaN from where the first fold has diverged
        self._fit(ids, y, np.arange(len(ids)), None, int(np.nanargmin(curve)))
        self.history_["validation_loss"] = curve[: len(self.history_["epoch"])]
        self._choose(None if judged[0] is None else np.mean(judged, axis=0))

    def _train(self, plan: Plan, keeping: Keeping, n_epochs: int) -> Any:
        training = self._training(plan, n_epochs)
        self.learning_rate_ = training.learning_rate if n_epochs else 0.0
        return train(
            plan.module,
            plan.objective,
            training,
            rows=plan.batches,
            held_out=plan.held_out,
            groups=plan.groups,
            from_start=True,
            on_epoch=self.callback,
            saved=keeping.state,
            fingerprint=keeping.name,
            final=True,
        )

    def _training(self, plan: Plan, n_epochs: int) -> Training:
        """Return how to train for some epochs, of which `max_epochs` would have been the whole of a schedule."""
        values = {name: getattr(self, name) for name in _TRAINING}
        if self.learning_rate == "auto":
            values["learning_rate"] = self._tested_rate(plan, values) if n_epochs else 1.0
        training = Training(**values)
        cycle = training.max_epochs if 0 < n_epochs < training.max_epochs else None
        return replace(training, max_epochs=n_epochs, cycle_epochs=cycle)

    def _tested_rate(self, plan: Plan, values: dict[str, Any]) -> float:
        trial = Training(**values | {"learning_rate": 1.0})
        groups = None if plan.groups is None else [group for group in plan.groups if "lr" not in group]
        found = range_test(plan.module, plan.objective, trial, rows=plan.batches, groups=groups)
        self.range_test_ = found.table()
        return found.suggestion

    def _note(self, history: Any, plan: Plan) -> None:
        self.best_epoch_ = int(history.best_epoch[0])
        self.history_ = {
            name: values.reshape(len(values), -1)[:, 0] for name, values in history.table().items()
        }
        self.n_epochs_ = len(history.learning_rate)
        self.n_trained_ = sum(p.numel() for p in plan.module.parameters() if p.requires_grad)


def side_by_side(curves: Sequence[np.ndarray]) -> np.ndarray:
    """Return losses by epoch as (n_curves, n_epochs), NaN behind those that ended early."""
    longest = max(map(len, curves))
    return np.stack([np.pad(curve, (0, longest - len(curve)), constant_values=np.nan) for curve in curves])
