"""What the heads have in common: a scikit-learn regressor around one run of the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from featpipe.blocks import LayerBlocks
from featpipe.encoding._layers import check_layers
from featpipe.errors import RequestError
from featpipe.extraction._forward import choose_device
from featpipe.tuning._held_out import hold_out
from featpipe.tuning._history import History
from featpipe.tuning._loop import train
from featpipe.tuning._training import Training
from featpipe.tuning.heads._columns import Columns, columns_of
from featpipe.tuning.heads._objective import SquaredError
from featpipe.tuning.heads._responses import check_present, moments, standardised

_TRAINING = (
    *("learning_rate", "decay", "decay_every", "schedule", "weight_decay", "betas", "batch_size"),
    *("max_epochs", "patience", "min_epochs", "clip", "precision", "seed", "device"),
)
INITS = ("zeros", "uniform")
_FOR_X = {"dtype": np.float32, "ensure_min_samples": 2}
_FOR_Y = {"dtype": [np.float64, np.float32], "ensure_2d": False, "ensure_all_finite": "allow-nan"}


class Head(MultiOutputMixin, RegressorMixin, BaseEstimator, ABC):
    """A torch module on cached features, trained by the loop and kept as NumPy arrays.

    A head says what its module is built from (`_architecture`), builds it (`_build`), keeps what it learned
    (`_keep_weights`) and, where features are no matrix, takes them (`_check_features`, `_features`).
    """

    __metadata_request__fit = {"sample_weight": True, "groups": True}  # noqa: RUF012 (scikit-learn's form)
    __metadata_request__score = {"sample_weight": True}  # noqa: RUF012

    def fit(self, X, y, sample_weight=None, groups=None):
        """Train on most stimuli and stop by the others.

        Parameters
        ----------
        X : array of shape (n_stimuli, n_features), or LayerBlocks
            Features, best standardised; used as float32.
        y : array of shape (n_stimuli, n_targets) or (n_stimuli,)
            Responses; NaN where a trial is missing.
        sample_weight : float or array of shape (n_stimuli,), optional
            Weight of each stimulus in the losses, >= 0. A weight of 0 leaves it out.
        groups : array of shape (n_stimuli,), optional
            Stimuli of one group are all held out from training, or none.

        Raises
        ------
        RequestError
            When parameters and data do not fit together, or a target has no response to fit.
        WorkError
            The training diverged in its first epoch.
        """
        training = Training(**{name: getattr(self, name) for name in _TRAINING})
        ids = X.ids if isinstance(X, LayerBlocks) else None
        X, y, weight = self._validate(X, y, sample_weight)
        Y = y.reshape(len(y), -1)
        columns = columns_of(self.rois, Y.shape[1])
        rows, held_out = self._split(weight, groups)
        check_present(Y, columns, rows, held_out)
        self._check_batches(len(rows))
        history, module = self._train(training, X, Y, weight, columns, rows, held_out)
        self.single_ = y.ndim == 1
        self._keep_history(history)
        self.validation_rows_ = np.empty(0, dtype=np.intp) if held_out is None else held_out
        if ids is not None:
            self.validation_ids_ = ids[self.validation_rows_]
        elif hasattr(self, "validation_ids_"):
            del self.validation_ids_  # of an earlier fit
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self._keep_weights({name: value.detach().cpu().numpy() for name, value in state.items()}, columns)
        return self

    def predict(self, X):
        """Predict responses: ndarray of shape (n_stimuli, n_targets) or (n_stimuli,), float32."""
        check_is_fitted(self)
        X = self._check_features(X)
        device = choose_device(self.device)
        module = self._load().to(device)
        features = self._features(X, device)
        times = np.bincount(self.weights_["column"], minlength=len(self.response_mean_))
        scale = torch.as_tensor(self.response_scale_ / times, dtype=torch.float32, device=device)
        mean = torch.as_tensor(self.response_mean_, dtype=torch.float32, device=device)
        predicted = np.empty((len(X), len(mean)), dtype=np.float32)
        with torch.inference_mode():
            for rows in torch.arange(len(X), device=device).split(self.batch_size):
                total = torch.zeros(len(rows), len(mean), device=device)
                for values, targets, _ in module(features[rows], None):
                    total.index_add_(1, targets, values)
                predicted[rows.cpu().numpy()] = (total * scale + mean).cpu().numpy()
        return predicted[:, 0] if self.single_ else predicted

    @abstractmethod
    def _architecture(self, X, columns: Columns) -> dict[str, Any]:
        """Return what the module is built from, as files can hold it."""

    @abstractmethod
    def _build(self, columns: Columns, generator: torch.Generator | None) -> Any:
        """Return the module; without a generator its weights are about to be loaded."""

    def _check_batches(self, n_fitted: int) -> None:
        """Raise `RequestError` where a batch would have one stimulus, which batch norm cannot take."""
        if self.batch_size < 3 or n_fitted < 2:
            raise RequestError(
                f"{type(self).__name__} normalises over batches and needs at least two stimuli in each: batch_size is "
                f"{self.batch_size} and {n_fitted} stimuli are fitted. Set batch_size >= 3 and give more stimuli."
            )

    def _keep_weights(self, weights: dict[str, np.ndarray], columns: Columns) -> None:
        self.weights_ = weights

    def _load(self) -> Any:
        """Return the module as it was trained, in evaluation mode."""
        kept = self.weights_
        columns = Columns(tuple(self.roi_names_), kept["column"], kept["part"], len(self.response_mean_))
        module = self._build(columns, None)
        module.load_state_dict({name: as_tensor(value) for name, value in kept.items()})
        return module.eval()

    def _check_features(self, X):
        """Return features as a float32 matrix; layers are put side by side."""
        check_layers(self, X, reset=False)
        X = X.to_matrix() if isinstance(X, LayerBlocks) else X
        return validate_data(self, X, dtype=np.float32, reset=False)

    def _features(self, X, device: torch.device):
        """Return what gives the module its batches by ``[rows]``: by default a tensor on the device."""
        return as_tensor(X).to(device)

    def _validate(self, X, y, sample_weight):
        check_layers(self, X, reset=True)
        X = X.to_matrix() if isinstance(X, LayerBlocks) else X
        for_x, for_y = ({**checks, "estimator": self} for checks in (_FOR_X, _FOR_Y))
        X, y = validate_data(self, X, y, validate_separately=(for_x, for_y))
        return X, y, self._check_weight(X, y, sample_weight)

    def _check_weight(self, X, y, sample_weight) -> np.ndarray:
        check_consistent_length(X, y)
        weight = _check_sample_weight(sample_weight, np.empty((len(X), 1)), dtype=np.float64)
        if np.any(weight < 0) or not weight.any():
            raise RequestError(
                f"sample_weight must be >= 0 and not all 0, got {weight.min()} to {weight.max()}."
            )
        return weight

    def _split(self, weight: np.ndarray, groups) -> tuple[np.ndarray, np.ndarray | None]:
        if groups is not None:
            groups = check_array(groups, ensure_2d=False, dtype=None, ensure_min_samples=1)
            check_consistent_length(weight, groups)
        counted = np.flatnonzero(weight > 0)
        groups = None if groups is None else groups[counted]
        return hold_out(counted, self.validation_fraction, seed=self.seed, groups=groups)

    def _train(
        self, training: Training, X, Y, weight, columns: Columns, rows, held_out
    ) -> tuple[History, Any]:
        n_targets = Y.shape[1]
        mean, scale = np.zeros(n_targets), np.ones(n_targets)
        if self.standardise:
            mean, scale = moments(Y[rows], weight[rows])
        self.response_mean_, self.response_scale_ = mean, scale
        self.architecture_ = self._architecture(X, columns)
        device = choose_device(training.device)
        module = self._build(columns, torch.Generator().manual_seed(training.seed)).to(device)
        uniform = bool((weight[weight > 0] == 1).all())
        objective = SquaredError(
            module,
            self._features(X, device),
            torch.as_tensor(standardised(Y, mean, scale), device=device),
            weight=None if uniform else torch.as_tensor(weight, dtype=torch.float32, device=device),
            n_parts=len(columns.names),
        )
        chosen = {"rows": rows, "held_out": held_out, "names": columns.names, "owners": module.owners()}
        return train(module, objective, training, **chosen), module

    def _keep_history(self, history: History) -> None:
        self.roi_names_ = list(history.names)
        self.n_epochs_ = len(history.learning_rate)
        self.best_epoch_ = dict(zip(history.names, history.best_epoch.tolist(), strict=True))
        self.history_ = {
            "epoch": np.arange(1, self.n_epochs_ + 1),
            "learning_rate": np.array(history.learning_rate),
            "train_loss": np.stack(history.train_loss),
            "validation_loss": np.stack(history.held_out_loss),
        }

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # the reports' learning rates are made for thousands of stimuli
        return tags


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor; a copy where it is read-only or unaligned, as memory maps may be."""
    return torch.from_numpy(np.require(array, requirements=["C", "A", "W"]))
