"""`ChannelMask`: a coefficient per channel, learned from RDMs."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.rsa._folds import stimulus_folds
from featpipe.rsa._inputs import check_blocks, check_input
from featpipe.rsa._rdms import RDMs
from featpipe.rsa._scores import rdm_rho
from featpipe.rsa._threads import one_blas_thread
from featpipe.rsa.mask._apply import (
    coefficient_layers,
    masked_blocks,
    mean_square,
    predict_rdm,
    predict_within_sets,
)
from featpipe.rsa.mask._objective import Lines
from featpipe.rsa.mask._parameters import check_parameters
from featpipe.rsa.mask._problem import (
    assemble,
    held_out_score,
    hold_out_stimuli,
    pairs_within_sets,
    response_rdms,
)
from featpipe.rsa.mask._solvers import Problem, Watch, adam, lbfgs
from featpipe.rsa.mask._stage_tuning import stage_tuning
from featpipe.rsa.mask._views import chosen_view_pairs

Pairs = tuple[np.ndarray, np.ndarray]  # rows of the two stimuli


class ChannelMask(TransformerMixin, BaseEstimator):
    """Scale every channel so that correlations of the embedding match measured dissimilarities.

    Learns ``beta`` from ones, minimising ::

        mean_{ij, rdm} w_ij loss(1 - r_ij(beta), y_ij) + shrinkage mean((beta - 1)²)

    where ``r_ij`` is Pearson's r over all features of all layers, each multiplied by its channel's beta, and
    the mean is over the pairs within stimulus sets and the RDMs of all subjects (targets, times) at once.
    Products of stimuli per channel are computed once per process and shared by all folds, targets and
    parameters; no step of the fit reads features. X is `LayerBlocks`, as `CachedFeatures(output="blocks")`
    gives them, y is `RDMs` of the same ids.

    Parameters
    ----------
    resolution : {"channel", "stage", "feature"}
        What has a coefficient. "feature" has no such short cut: it reads the features of each batch of
        pairs anew, a layer at a time, is fitted by Adam only, and takes as many times longer.
    loss : {"l1", "squared", "correlation"}
        "correlation" is one minus the mean over stimulus sets and RDMs of Pearson's r of predicted and
        measured pairs.
    solver : {"adam", "lbfgs"}
        Adam on batches of pairs as in the report, or L-BFGS-B on all pairs at once.
    reliability : bool
        Weigh pairs by ``(1 / (N + alpha mean N))**beta``, N the standard deviation over subjects.
    alpha, beta : float
        Of the weights, not of the mask.
    line : bool
        Fit an offset and a scale >= 0 between 1 - r and y, per target and stimulus set, beside the mask.
        Predictions stay 1 - r. The correlation loss needs none.
    non_negative : bool
    shrinkage : float
        Weight of the mask's mean squared distance to one.
    learning_rate, batch_size, epochs : Adam's
    max_iter, tol : L-BFGS-B's
    validation : {None, "stimuli", "pairs"}
        What is held out to stop early: stimuli, the same share of each set, or pairs as in the report, which
        share their stimuli with those fitted. The mask with the largest mean signed Spearman correlation with
        the held-out pairs is kept.
    validation_fraction : float
    patience : int
        Epochs, or iterations of L-BFGS-B, without a new best.
    time_sampling : {None, "mean", "gaussian"}
        For RDMs with times: all alike; their mean; or one drawn per pair and batch, the middle most often
        (L-BFGS-B takes the expectation).
    train_on : str or sequence of str, optional
        Targets of y to fit to; all by default.
    target : {"rdms", "responses"}
        "responses" takes y of shape (n_stimuli, n_targets) and fits to 1 - r over the targets of its rows;
        `fit_transform` then gives cross-fitted rows, so that a penalty chosen behind it sees none in-sample,
        and masks are scaled to mean square 1 so that rows of different folds compare.
    view_pairs : "same" or int
        With augmented views: pair each view with itself, or so many drawn pairs of views.
    cross_fit : int
        Folds of `fit_transform` for responses.
    random_state : int, RandomState or None

    Attributes
    ----------
    coef_ : ndarray of shape (n_channels,), (n_layers,) or (n_features,)
    coef_layer_ : ndarray of int
        Position of each coefficient's layer in `layers_`.
    layers_ : list of str
    offset_, scale_ : ndarray of shape (n_targets, n_sets)
        Of the lines, for `training_targets_` and `training_sets_`; 0 and 1 without.
    history_ : dict of str to ndarray
        ``iteration`` from 0 (ones) on, ``loss`` on the pairs fitted, ``rho`` on those held out (NaN
        without); a `pandas.DataFrame` can be made of it.
    n_iter_ : int
        Iteration or epoch of the mask that was kept.
    converged_ : bool
        Whether L-BFGS-B ended by its tolerance; True for Adam.
    training_ids_, validation_ids_ : ndarray of str
        Stimuli that the fit has seen, and those of them that stopped it.
    training_targets_, training_sets_ : list of str

    References
    ----------
    Gaziv (2019), Learning to aggregate feature representations.
    """

    def __init__(
        self,
        resolution="channel",
        loss="l1",
        solver="adam",
        *,
        reliability=True,
        alpha=0.25,
        beta=1.0,
        line=False,
        non_negative=False,
        shrinkage=0.0,
        learning_rate=0.01,
        batch_size=40,
        epochs=15,
        max_iter=100,
        tol=1e-6,
        validation=None,
        validation_fraction=0.1,
        patience=5,
        time_sampling=None,
        train_on=None,
        target="rdms",
        view_pairs="same",
        cross_fit=5,
        random_state=None,
    ):
        self.resolution = resolution
        self.loss = loss
        self.solver = solver
        self.reliability = reliability
        self.alpha = alpha
        self.beta = beta
        self.line = line
        self.non_negative = non_negative
        self.shrinkage = shrinkage
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.max_iter = max_iter
        self.tol = tol
        self.validation = validation
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.time_sampling = time_sampling
        self.train_on = train_on
        self.target = target
        self.view_pairs = view_pairs
        self.cross_fit = cross_fit
        self.random_state = random_state

    def fit(self, X, y):
        """Learn the mask.

        Parameters
        ----------
        X : LayerBlocks
        y : RDMs, or array of shape (n_stimuli, n_targets) for ``target="responses"``

        Returns
        -------
        self

        Raises
        ------
        RequestError
            Parameters that do not exist, ids of X and y that differ, no measured pair within a set, or
            statistics larger than memory.
        """
        check_parameters(self)
        rdms = self._rdms(X, y)
        order = np.argsort(rdms.ids, kind="stable")  # so that the order of rows says nothing
        self._fit_sorted(X[order], rdms[order])
        self.training_ids_ = rdms.ids
        return self

    def transform(self, X):
        """Return the masked embedding: ndarray of shape (n_stimuli, n_features), float32."""
        check_is_fitted(self, "coef_")
        return masked_blocks(self._known_layers(X), self.coef_, self.resolution).to_matrix()

    def fit_transform(self, X, y=None, **fit_params):
        """Fit, and return masked embeddings; for responses those of masks fitted to the other folds.

        Returns
        -------
        ndarray of shape (n_stimuli, n_features), float32
        """
        if self.target != "responses":
            return self.fit(X, y, **fit_params).transform(X)
        self.fit(X, y, **fit_params)
        responses, rows = np.asarray(y), np.empty(X.shape, dtype=np.float32)
        for test in stimulus_folds(self.training_ids_, self.cross_fit, self._rng()):
            train = np.setdiff1d(np.arange(len(X)), test)
            rows[test] = clone(self).fit(X[train], responses[train]).transform(X[test])
        return rows

    def predict(self, X) -> RDMs:
        """Return 1 - r of the masked embeddings of all pairs, also across stimulus sets, as one RDM."""
        check_is_fitted(self, "coef_")
        return predict_rdm(self._known_layers(X), self.coef_, self.resolution)

    def score(self, X, y) -> float:
        """Return the mean over subjects of the signed Spearman correlation within stimulus sets."""
        check_is_fitted(self, "coef_")
        measured = self._rdms(X, y)
        predict = self.predict if self.resolution == "feature" else self._predict_within_sets
        return float(np.nanmean(rdm_rho(measured, predict(X))))

    @property
    def stage_tuning_(self):
        """Mean coefficient of each stage, its 95 % interval and n, as `stage_tuning` has it."""
        check_is_fitted(self, "coef_")
        return stage_tuning(self.coef_, self.coef_layer_, self.layers_)

    def _predict_within_sets(self, X) -> RDMs:
        return predict_within_sets(self._known_layers(X), self.coef_, self.resolution)

    def _fit_sorted(self, blocks: LayerBlocks, rdms: RDMs) -> None:
        rng = self._rng()
        pairs, held = self._split(rdms, rng)
        views = chosen_view_pairs(1 + len(blocks.views), self.view_pairs, rng)
        problem = Problem(
            *assemble(blocks, rdms, pairs, views, self.resolution, **self._measuring()),
            loss=self.loss,
            line=self.line and self.loss != "correlation",
            shrinkage=self.shrinkage,
            non_negative=self.non_negative,
        )
        watch = Watch(self._stopping_score(blocks, rdms, held), self.patience)
        with one_blas_thread():  # vectors times matrices wait for memory; and bits agree for any number
            self.converged_ = self._solve(problem, watch, rng)
        self._keep(blocks, rdms, watch, problem.lines(watch.best))
        self.validation_ids_ = self._held_ids(rdms, held)

    def _split(self, rdms: RDMs, rng: np.random.Generator) -> tuple[Pairs, Pairs | None]:
        """Return the pairs to fit to and those to stop on."""
        if self.validation == "stimuli":
            train, test = hold_out_stimuli(rdms.ids, self.validation_fraction, rng)
            return pairs_within_sets(rdms, train), pairs_within_sets(rdms, test)
        pairs = pairs_within_sets(rdms)
        if self.validation is None:
            return pairs, None
        n_pairs = len(pairs[0])
        out = np.isin(
            np.arange(n_pairs), rng.permutation(n_pairs)[: round(self.validation_fraction * n_pairs)]
        )
        return (pairs[0][~out], pairs[1][~out]), (pairs[0][out], pairs[1][out])

    def _stopping_score(self, blocks, rdms, held):
        if held is None:
            return None
        terms, _ = assemble(blocks, rdms, held, [(0, 0)], self.resolution)
        return held_out_score(terms, rdms, held)

    def _solve(self, problem: Problem, watch: Watch, rng: np.random.Generator) -> bool:
        if self.solver == "lbfgs":
            return lbfgs(problem, watch, max_iter=self.max_iter, tol=self.tol)
        sizes = {"batch_size": self.batch_size, "epochs": self.epochs}
        adam(problem, watch, learning_rate=self.learning_rate, rng=rng, **sizes)
        return True

    def _keep(self, blocks: LayerBlocks, rdms: RDMs, watch: Watch, lines: Lines | None) -> None:
        size = np.sqrt(mean_square(watch.best, blocks, self.resolution))
        self.coef_ = watch.best / ((size or 1.0) if self.target == "responses" else 1.0)
        self.layers_ = list(blocks.names)
        self.coef_layer_ = coefficient_layers(blocks, self.resolution)
        self.training_targets_ = list(rdms.target_names)
        self.training_sets_ = list(dict.fromkeys(rdms.sets.tolist()))
        shape = len(self.training_targets_), len(self.training_sets_)
        self.offset_ = np.zeros(shape) if lines is None else lines.offset
        self.scale_ = np.ones(shape) if lines is None else lines.scale
        self.n_iter_ = watch.best_iteration
        self.history_ = watch.table()

    def _held_ids(self, rdms: RDMs, held: Pairs | None) -> np.ndarray:
        """Return the stimuli of held-out pairs, none where they were fitted to as well."""
        if held is None or self.validation != "stimuli":
            return rdms.ids[:0]
        return np.unique(rdms.ids[np.concatenate(held)])

    def _measuring(self) -> dict[str, Any]:
        reliability = (self.alpha, self.beta) if self.reliability else None
        return {"reliability": reliability, "time_sampling": self.time_sampling}

    def _rng(self) -> np.random.Generator:
        try:
            state = check_random_state(self.random_state)
        except ValueError as error:
            raise RequestError(
                f"random_state is {self.random_state!r}; it must be a number or None."
            ) from error
        return np.random.default_rng(state.randint(np.iinfo(np.int32).max))

    def _rdms(self, X, y) -> RDMs:
        """Return the RDMs to fit to or to be scored with."""
        if self.target == "responses":
            check_blocks(X, "ChannelMask")
            if isinstance(y, RDMs):
                raise RequestError("target is 'responses', and y are RDMs; set target='rdms'.")
            return response_rdms(X.ids, y)
        check_input(X, y, "ChannelMask", hint="for responses set target='responses'")
        wanted = [self.train_on] if isinstance(self.train_on, str) else self.train_on
        return y if wanted is None else y.select(targets=wanted)

    def _known_layers(self, X: LayerBlocks) -> LayerBlocks:
        counts = np.bincount(coefficient_layers(X, self.resolution)).tolist()
        if list(X.names) != self.layers_ or counts != np.bincount(self.coef_layer_).tolist():
            raise RequestError(
                f"The mask was fitted to layers {', '.join(self.layers_)}, and these features are "
                f"{', '.join(X.names)}, or differ in size. Use the features that it was fitted to."
            )
        return X

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags
