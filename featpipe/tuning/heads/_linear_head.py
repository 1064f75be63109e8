"""`LinearHead`: one linear layer per ROI, trained with AdamW and stopped by itself."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from featpipe.tuning._training import one_of
from featpipe.tuning.heads._columns import Columns
from featpipe.tuning.heads._head import INITS, Head
from featpipe.tuning.heads._linear_module import LinearModule


class LinearHead(Head):
    """A linear layer trained with AdamW, each ROI and hemisphere with its own early stopping.

    Minimises, with batches of stimuli, ``Σ_roi mean_{i, t ∈ roi} w_i (y_it - b_t - c_t · x_i)²``. All ROIs are
    rows of one weight matrix, and an epoch is one pass for all of them. AdamW works element by element and
    each ROI has its own mean squared error, so the weights are those of training one ROI after another. A ROI
    whose held-out loss has not fallen for `patience` epochs is taken out of the matrix; the weights of its
    best epoch are kept.

    Parameters
    ----------
    rois : mapping of str to array, or "all", optional
        By name, such as ``lh.V1v``, positions of targets or a mask of bool (n_targets,). ROIs may overlap: the
        predictions of a target in several are averaged. Targets in none form a last ROI ``other``. "all" and
        None train all targets as one.
    learning_rate, decay, decay_every : float, float, int
        The rate is multiplied by `decay` every `decay_every` epochs. The report's rates for one ROI at a time
        are the default (`LINEAR_PER_ROI`), those for all targets at once `LINEAR_ALL_ROIS`.
    weight_decay, betas : float, (float, float)
        Of AdamW.
    batch_size : int
        Stimuli a step; an epoch is divided evenly.
    max_epochs : int
    patience : int, optional
        Epochs without a new lowest held-out loss after which a ROI stops; None never stops.
    min_epochs : int
        Epochs before which nothing stops.
    validation_fraction : float
        Share of the stimuli (of the groups, where `fit` is given groups) held out for early stopping, drawn by
        `seed`. 0 trains on all for `max_epochs`.
    schedule : {"step", "fixed", "one-cycle"}
    clip : float, optional
        Largest norm of each ROI's gradient.
    init : {"zeros", "uniform"}
        Weights at the start: 0, so that directions that the stimuli do not span stay 0; or as
        `torch.nn.Linear` draws them.
    standardise : bool
        Train on responses of mean 0 and standard deviation 1 over the stimuli that are fitted; predictions are
        in the units of the responses, losses in those of the deviation. Without it learning rates depend on
        those units.
    precision : {"fp32", "tf32", "bf16"}
    seed : int
        Of the held-out stimuli, the order of batches and the weights at the start.
    device : str
        "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".

    Attributes
    ----------
    coef_ : ndarray of shape (n_targets, n_features), or (n_features,) for a 1-D response
    intercept_ : ndarray of shape (n_targets,), or float
    best_epoch_ : dict of str to int
        By ROI, counted from 1.
    n_epochs_ : int
        Until the last ROI stopped.
    history_ : dict of ndarray
        ``epoch`` and ``learning_rate`` (n_epochs,), ``train_loss`` and ``validation_loss`` (n_epochs, n_rois), NaN
        once a ROI has stopped. These losses chose the epoch: never a result.
    roi_names_ : list of str
    validation_rows_ : ndarray of int
        Rows of X that early stopping watched.
    response_mean_, response_scale_ : ndarray of shape (n_targets,)
    n_features_in_ : int

    Notes
    -----
    A response of NaN is a missing trial and has no part in the losses, so that the responses of several
    subjects can stand side by side, with ROIs named ``subj01.lh.OFA``. Two fits with one seed give the same
    weights on the CPU, with equal threads.

    References
    ----------
    Chimisso et al. (2023), section 2.1 and the table of section 4; Loshchilov & Hutter (2019), Decoupled weight
    decay regularization.
    """

    def __init__(
        self,
        rois=None,
        *,
        learning_rate=1e-4,
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

    def predict(self, X):
        """Predict responses: ndarray of shape (n_stimuli, n_targets) or (n_stimuli,), float32."""
        check_is_fitted(self)
        predicted = self._check_features(X) @ self.coef_.T
        predicted += np.asarray(self.intercept_, dtype=predicted.dtype)
        return predicted

    def _architecture(self, X, columns: Columns):
        one_of("init", self.init, INITS)
        return {"n_features": X.shape[1]}

    def _build(self, columns: Columns, generator: torch.Generator | None) -> LinearModule:
        return LinearModule(columns, generator=generator, zeros=self.init == "zeros", **self.architecture_)

    def _check_batches(self, n_fitted: int) -> None:
        """Take batches of any size: nothing is normalised."""

    def _keep_weights(self, weights, columns: Columns) -> None:
        scale = self.response_scale_.astype(np.float32)
        coef = scale[:, None] * columns.mean_per_target(weights["weight"])
        intercept = self.response_mean_ + self.response_scale_ * columns.mean_per_target(weights["bias"])
        self.coef_ = coef[0] if self.single_ else coef
        self.intercept_ = float(intercept[0]) if self.single_ else intercept
