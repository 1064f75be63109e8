"""What all tuners have in common: a scikit-learn transformer around one training of a network."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted
from torch import nn

from featpipe.datasets import is_data, load_stimuli
from featpipe.errors import RequestError
from featpipe.extraction._forward import choose_device, precision_of
from featpipe.features._cached import as_ids
from featpipe.models import Backbone, ModelRequest, Tap, load, match_layers, save_checkpoint
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.tuning._folds import dealt_out, held_out_of_each_set
from featpipe.tuning._loop import train
from featpipe.tuning._plan import Plan
from featpipe.tuning._training import Training
from featpipe.tuning.images import Images
from featpipe.tuning.network import Body

_TRAINING = (
    *("optimiser", "learning_rate", "momentum", "weight_decay", "schedule", "decay", "decay_every"),
    *("batch_size", "max_epochs", "patience", "clip", "precision", "seed", "device"),
)


class Tuner(TransformerMixin, BaseEstimator, ABC):
    """Change a network until what it computes of images fits measurements; see the subclasses.

    X is stimulus ids. A tuner says what it reads (`_taps`), what it trains (`_plan`), how the trained module is
    built again (`_module`), and how it predicts.

    Attributes
    ----------
    training_ids_, validation_ids_ : ndarray of str
        Stimuli that the fit has seen, and those of them that chose the epoch.
    best_epoch_ : int
        0 is the network as it came.
    n_epochs_ : int
    history_ : dict of str to ndarray
        ``epoch`` from 0 on, ``learning_rate``, ``train_loss``, ``validation_loss``.
    weights_digest_ : str
        Of the tuned network.
    n_trained_ : int
        Parameters that could change.
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
            Stimuli of one group all choose the epoch, or none.

        Returns
        -------
        self

        Raises
        ------
        RequestError
            Ids, images, layers, measurements and parameters do not fit together.
        WorkError
            The training diverged in its first epoch.
        """
        training = Training(**{name: getattr(self, name) for name in _TRAINING})
        ids = self._ids(X)
        rows, held_out = held_out_of_each_set(ids, self.validation_fraction, seed=self.seed, groups=groups)
        backbone = self._backbone()
        body = self._body(backbone, ids)
        plan = self._plan(body, ids, y, rows, held_out)
        history = train(
            plan.module,
            plan.objective,
            training,
            rows=plan.batches,
            held_out=plan.held_out,
            groups=plan.groups,
            from_start=True,
            on_epoch=self.callback,
        )
        self.training_ids_ = ids
        self.validation_ids_ = ids[:0] if held_out is None else ids[held_out]
        self.best_epoch_ = int(history.best_epoch[0])
        self.n_epochs_ = len(history.learning_rate) - 1
        self.history_ = history.table()
        self.n_trained_ = sum(p.numel() for p in plan.module.parameters() if p.requires_grad)
        self._keep(plan.module, body, backbone)
        return self

    def transform(self, X):
        """Return features of the tuned network: ndarray of shape (n_stimuli, n_features), float32."""
        check_is_fitted(self)
        body = self._load(self._ids(X), self._transform_taps).body
        return self._in_batches(body)

    def fit_transform(self, X, y=None, groups=None):
        """Fit, and return features of networks tuned on the other folds of stimuli.

        A penalty that is chosen behind a tuner would trust features that were made for these very responses.

        Returns
        -------
        ndarray of shape (n_stimuli, n_features), float32
        """
        ids = self._ids(X)
        features = None
        for train_rows, test in dealt_out(ids, self.cross_fit, seed=self.seed, groups=groups):
            own = None if groups is None else np.asarray(groups)[train_rows]
            part = clone(self).fit(ids[train_rows], y[train_rows, ...], groups=own).transform(ids[test])
            features = np.empty((len(ids), part.shape[1]), dtype=np.float32) if features is None else features
            features[test] = part
        self.fit(ids, y, groups=groups)
        return features

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tuned network as a checkpoint: ``featpipe extract --model local:PATH`` caches its layers."""
        check_is_fitted(self)
        save_checkpoint(path, self._tuned_backbone())

    # What a tuner says

    @property
    @abstractmethod
    def _taps(self) -> list[str]:
        """Layers that the training reads, as ``LAYER[:REDUCE]``."""

    @property
    def _transform_taps(self) -> list[str]:
        """Layers that `transform` gives."""
        return self._taps

    @abstractmethod
    def _plan(
        self, body: Body, ids: np.ndarray, y: Any, rows: np.ndarray, held_out: np.ndarray | None
    ) -> Plan:
        """Return what is trained on some rows of ids and stopped by others."""

    def _module(self, body: Body) -> nn.Module:
        """Return the module that a plan had, to be given its trained head; it has the body as ``body``."""
        return Bare(body)

    # The network

    def _request(self) -> ModelRequest:
        return ModelRequest(
            model=self.model,
            weights=self.weights,
            model_args=tuple((self.model_args or {}).items()),
            preprocess=self.preprocess,
            image_size=self.image_size,
            trust=self.trust,
        )

    def _backbone(self) -> Backbone:
        return load(self._request())

    def _tuned_backbone(self) -> Backbone:
        backbone = self._backbone()
        found, unknown = backbone.module.load_state_dict(
            {name: torch.as_tensor(value) for name, value in self.tuned_.items()}, strict=False
        )
        return backbone

    def _body(
        self, backbone: Backbone, ids: np.ndarray, layers: list[str] | None = None, **options: Any
    ) -> Body:
        stimuli = _open(self.stimuli)
        images = Images(stimuli, ids, backbone.card.preprocessing, device=choose_device(self.device))
        return Body(backbone, taps_of(layers or self._taps, backbone), images, frozen=self.frozen, **options)

    def _keep(self, module: nn.Module, body: Body, backbone: Backbone) -> None:
        """Keep what was trained as arrays."""
        self.tuned_ = {name: value.numpy() for name, value in body.tuned().items()}
        state = module.state_dict()
        self.head_ = {n: v.detach().cpu().numpy() for n, v in state.items() if not n.startswith("body.")}

    def _load(self, ids: np.ndarray, layers: list[str] | None = None) -> Any:
        """Return the trained module for some images, in evaluation mode."""
        body = self._body(self._tuned_backbone(), ids, layers)
        module = self._module(body).to(choose_device(self.device))
        head = {name: torch.as_tensor(value) for name, value in self.head_.items()}
        module.load_state_dict(head, strict=False)
        return module.eval()

    def _in_batches(self, body: Body) -> np.ndarray:
        """Return all taps of all images side by side."""
        device = choose_device(self.device)
        parts = []
        with torch.inference_mode(), precision_of("fp32", device):
            for rows in torch.arange(len(body.images)).split(32):
                parts.append(torch.cat([tap.flatten(1) for tap in body(rows)], dim=1).cpu().numpy())
        return np.concatenate(parts)

    @staticmethod
    def _ids(X) -> np.ndarray:
        return as_ids(X)


class Bare(nn.Module):
    """The network alone."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body


def taps_of(layers: list[str], backbone: Backbone) -> list[Tap]:
    """Return the layers of a network that texts ``PATTERN[:REDUCE]`` mean, in their order.

    Raises
    ------
    LayerNotFound
        With the closest names.
    """
    taps = []
    for text in layers:
        request = LayerRequest.parse(text)
        for name, call, element in match_layers(request, backbone.card.layers):
            taps.append(Tap(name, call, element, request.reduction))
    return list(dict.fromkeys(taps))


def _open(stimuli: Any) -> StimulusSet:
    """Return the images that `stimuli` names."""
    if isinstance(stimuli, StimulusSet):
        return stimuli
    if stimuli is None:
        raise RequestError(
            "The tuner does not know the images behind the ids. Set stimuli= to a StimulusSet, a folder of images or DATA."
        )
    return load_stimuli(str(stimuli)) if is_data(str(stimuli)) else StimulusSet.from_source(stimuli)
