"""`FeatureReweightedRSA`: predicts dissimilarities as a weighted sum of those of channels, layers or directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.rsa._inputs import check_input
from featpipe.rsa._joining import concat
from featpipe.rsa._rdms import RDMs, stimulus_sets
from featpipe.rsa._scores import rdm_rho
from featpipe.rsa.mask._apply import channel_counts
from featpipe.rsa.reweighted._columns import FORMS
from featpipe.rsa.reweighted._layout import Layout
from featpipe.rsa.reweighted._metric import Embedding, channel_means, squared_distances
from featpipe.rsa.reweighted._problem import Ridge, Solution
from featpipe.rsa.reweighted._search import best_of, candidates_of, fitted_pairs, search
from featpipe.rsa.reweighted._target import as_names, inner_folds, target_weights

PREDICTORS = ("channel", "layer", "metric")
ALPHAS = tuple(float(f"{alpha:.3g}") for alpha in np.logspace(-1.5, 3, 10))

_PRECISE = 1e-7  # residual of the final fit; that of a search is `Ridge.tol`


class FeatureReweightedRSA(BaseEstimator):
    """Predict dissimilarities as a weighted sum of the dissimilarities of single channels.

    Minimises, over all pairs within stimulus sets, ::

        sum_ij (d_ij - b_set - sum_k w_k x_k(i, j))² + alpha sum_k w_k²

    where d is the mean over subjects of their normalised RDMs, x_k the standardised predictors of a pair, and
    b an offset per stimulus set. Penalties are chosen on stimuli, never pairs, that the inner fit has not
    seen. X is `LayerBlocks`, as `CachedFeatures(output="blocks")` gives them, y is `RDMs` of the same ids.

    Parameters
    ----------
    predictors : {"channel", "layer", "metric"} or sequence of them
        "channel": an RDM per channel. "layer": an RDM per layer. "metric": all products of two channels of a
        layer, ``sum_cd M_cd (f_ic - f_jc)(f_id - f_jd)`` for channel means f over positions, standardised and of
        length one per stimulus, with a symmetric M per layer; solved through inner products of stimuli, never
        by products of channels.
    form : {"squared", "correlation"}
        Of the RDMs of channels and layers: squared differences summed over positions, or what each channel
        adds to 1 - r of its layer.
    signed : bool
        Weights of either sign; False keeps those of channels and layers >= 0, and takes much longer.
    main_effects : {None, "features"}
        "features" adds predictors u(i) + u(j), with u the norm, the entropy and the distance to the training
        mean of a stimulus's channel means in each layer.
    shares : sequence of tuple of float, optional
        With several predictors: candidates of how much variance each has before it is weighted. By
        default each alone and all alike are tried.
    layers : str or sequence of str, optional
        Labels or globs of the layers of RDMs of channels and layers; all by default.
    metric_layers : str or sequence of str, optional
        Those of the metric; all by default.
    normalisation : {"rank", "zscore"}
        Of the measured dissimilarities, per subject, target and stimulus set.
    alphas : float or sequence of float
        Penalties to choose from, as multiples of the mean squared length of a pair's predictors; one needs no
        search, unless `shares` leave something to choose.
    cv : int, "set", splitter or iterable of (train, test)
        Inner folds over stimuli. An int deals out the same share of every stimulus set to each; "set" leaves
        one set out.
    repeats : int
        How often an int deals anew; a search over few stimuli is noisy.
    train_on : str, sequence of str or mapping of str to float, optional
        Targets to fit to, such as ``["EVC", "MEG-early"]``, or with weights; all by default. Subjects of a
        target are averaged first, so reliable targets count for more.
    select_on : str or sequence of str, optional
        Targets whose held-out stimuli choose the penalty; those of `train_on` by default.
    balance : bool
        Give every layer the same variance; otherwise every channel.
    floor : float
        Least standard deviation of a predictor, as a share of its layer's: nearly dead channels would explode.
    random_state : int
        Of the inner folds.

    Attributes
    ----------
    coef_ : ndarray of shape (n_predictors,)
        Weights in units of the predictors; of the metric, see `directions_`.
    intercept_ : float
        Mean over stimulus sets.
    feature_names_ : list of str
        ``LAYER:CHANNEL``, the layer, or the layer's effect.
    coef_layer_ : ndarray of int
        Position of each weight's layer in `layers_`.
    layers_, metric_layers_ : list of str
    direction_weights_ : ndarray of shape (n_directions,)
    directions_ : list of ndarray of shape (n_directions, n_channels)
        Per layer of the metric, in standardised channels: ``M = directions' diag(direction_weights) directions``.
    alpha_ : float
    shares_ : dict of str to float
    cv_scores_ : ndarray of shape (n_shares, n_alphas)
        Mean signed rho on inner held-out stimuli; NaN without a search. Biased by the choice: never a result.
    training_ids_ : ndarray of str

    Notes
    -----
    Predictions have the order and the differences of normalised dissimilarities, not their units.

    References
    ----------
    Kaniuth & Hebart (2022), Feature-reweighted representational similarity analysis, NeuroImage 257, 119294.
    """

    def __init__(
        self,
        predictors="channel",
        form="squared",
        *,
        signed=True,
        main_effects=None,
        shares=None,
        layers=None,
        metric_layers=None,
        normalisation="rank",
        alphas=ALPHAS,
        cv=4,
        repeats=3,
        train_on=None,
        select_on=None,
        balance=True,
        floor=0.1,
        random_state=0,
    ):
        self.predictors = predictors
        self.form = form
        self.signed = signed
        self.main_effects = main_effects
        self.shares = shares
        self.layers = layers
        self.metric_layers = metric_layers
        self.normalisation = normalisation
        self.alphas = alphas
        self.cv = cv
        self.repeats = repeats
        self.train_on = train_on
        self.select_on = select_on
        self.balance = balance
        self.floor = floor
        self.random_state = random_state

    def fit(self, X, y):
        """Choose the penalty on held-out stimuli, and fit.

        Parameters
        ----------
        X : LayerBlocks
        y : RDMs

        Returns
        -------
        self

        Raises
        ------
        RequestError
            Parameters that do not exist, ids of X and y that differ, no measured pair within a set, or
            predictors larger than memory.
        """
        self._check()
        check_input(X, y, type(self).__name__)
        weights = target_weights(y, self.train_on)
        select_on = tuple(weights if self.select_on is None else target_weights(y, self.select_on))
        order = np.argsort(y.ids, kind="stable")  # so that the order of rows says nothing
        self._fit_sorted(X[order], y[order], weights, select_on)
        self.training_ids_ = y.ids
        return self

    def predict(self, X) -> RDMs:
        """Predict the dissimilarities of all pairs, also across stimulus sets, as one RDM in arbitrary units."""
        check_is_fitted(self, "coef_")
        layout = self._layout(X)
        if _n_channels(X, layout) != self.n_channels_:
            raise RequestError(
                f"Weights were fitted to layers {', '.join(self.n_channels_)}, and these features are "
                f"{', '.join(X.names)}, or differ in size. Use the features that they were fitted to."
            )
        effects, _ = layout.effects(X, self.effect_means_)
        values = self.intercept_ + layout.weighted_sum(X, self.coef_, effects)
        if layout.metric_layers:
            values += self._metric(channel_means(X.select(layout.metric_layers)))
        return RDMs(values, X.ids, subjects=["model"])

    def score(self, X, y) -> float:
        """Return the mean signed Spearman correlation within stimulus sets, over the RDMs selected on."""
        check_is_fitted(self, "coef_")
        check_input(X, y, type(self).__name__)
        wanted = self.train_on if self.select_on is None else self.select_on
        measured = y.select(targets=list(target_weights(y, wanted)))
        sets = stimulus_sets(X.ids)
        predicted = concat([self.predict(X[sets == name]) for name in np.unique(sets)])
        return float(np.nanmean(rdm_rho(measured, predicted)))

    def _fit_sorted(
        self, X: LayerBlocks, y: RDMs, weights: dict[str, float], select_on: tuple[str, ...]
    ) -> None:
        layout = self._layout(X)
        effects, self.effect_means_ = layout.effects(X, None)
        pairs = layout.pairs(X, effects)
        alphas = np.atleast_1d(np.asarray(self.alphas, dtype=np.float64))
        candidates = self._candidates(layout)
        scores = np.full((len(candidates), len(alphas)), np.nan)
        if scores.size > 1:
            folds = inner_folds(y.ids, self.cv, self.repeats, self.random_state)
            how = {"train_on": weights, "select_on": select_on, "normalisation": self.normalisation}
            scores = search(y, pairs, folds, candidates, alphas, **how)
        place, chosen = best_of(scores, alphas)
        final = replace(candidates[place], tol=_PRECISE, precise=True)
        target, known = fitted_pairs(y, pairs, np.arange(len(pairs.first)), weights, self.normalisation)
        if not len(known):
            raise RequestError(
                "There is no pair within a stimulus set that somebody measured. Check the targets, and that ids are "
                "written SET/NAME."
            )
        solution = final.fit(pairs, known, target, alphas[[chosen]])
        self.cv_scores_, self.alpha_, self.shares_ = scores, float(alphas[chosen]), dict(final.shares)
        self._keep(X, layout, solution)
        self.intercept_ = float(np.mean(target - solution.predict(pairs, known)[:, 0]))

    def _keep(self, X: LayerBlocks, layout: Layout, solution: Solution) -> None:
        _, self.coef_layer_, self.feature_names_ = layout.columns(X)
        self.layers_, self.metric_layers_ = list(layout.layers), list(layout.metric_layers)
        self.n_channels_ = _n_channels(X, layout)
        self.coef_ = solution.coef[:, 0]
        self.direction_weights_, self.directions_, embeddings = solution.directions(0)
        self.metric_mean_ = [embedding.mean for embedding in embeddings]
        self.metric_scale_ = [embedding.deviation for embedding in embeddings]

    def _metric(self, means: list[np.ndarray]) -> np.ndarray:
        """Return the metric's dissimilarities of all pairs: (n_stimuli, n_stimuli)."""
        if not self.directions_:
            return np.zeros((len(means[0]), len(means[0])))
        embeddings = [
            Embedding(mean, deviation, 1.0).transform(own)
            for own, mean, deviation in zip(means, self.metric_mean_, self.metric_scale_, strict=True)
        ]
        return squared_distances(embeddings, self.directions_, self.direction_weights_)

    def _layout(self, X: LayerBlocks) -> Layout:
        kinds = as_names(self.predictors)
        own = set(kinds) != {"metric"} or self.main_effects is not None
        return Layout(
            kinds,
            self.form,
            _selected(X, self.layers) if own else (),
            _selected(X, self.metric_layers) if "metric" in kinds else (),
            self.main_effects is not None,
        )

    def _candidates(self, layout: Layout) -> list[Ridge]:
        extra = {"main effect": 1.0} if layout.main_effects else {}
        return candidates_of(
            Ridge(extra, signed=self.signed, floor=self.floor, balance=self.balance),
            layout.kinds,
            self.shares,
        )

    def _check(self) -> None:
        kinds = as_names(self.predictors)
        if not kinds or len(set(kinds)) < len(kinds) or set(kinds) - set(PREDICTORS):
            raise RequestError(
                f"predictors is {self.predictors!r}; it must be one or several of {', '.join(PREDICTORS)}."
            )
        for name, allowed in (
            ("form", FORMS),
            ("normalisation", ("rank", "zscore")),
            ("main_effects", (None, "features")),
        ):
            if getattr(self, name) not in allowed:
                raise RequestError(f"{name} is {getattr(self, name)!r}; it must be one of {allowed}.")
        if not self.signed and (self.main_effects or "metric" in kinds):
            raise RequestError(
                "signed=False keeps weights of channels or layers from going below 0; a metric and main effects "
                "need signed=True."
            )
        alphas = np.atleast_1d(np.asarray(self.alphas, dtype=np.float64))
        if not alphas.size or not (alphas > 0).all() or self.floor < 0 or self.repeats < 1:
            raise RequestError(
                f"alphas must be > 0, floor >= 0 and repeats >= 1, got {self.alphas!r}, {self.floor!r} and "
                f"{self.repeats!r}."
            )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def _selected(X: LayerBlocks, wanted: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return the layers that labels or globs name; all by default."""
    return X.names if wanted is None else X.select(wanted).names


def _n_channels(X: LayerBlocks, layout: Layout) -> dict[str, int]:
    used = {*layout.layers, *layout.metric_layers}
    return {name: n for name, n in zip(X.names, channel_counts(X), strict=True) if name in used}
