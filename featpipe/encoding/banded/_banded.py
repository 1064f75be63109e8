"""`BandedRidge`: ridge with a penalty per band of features, as a scikit-learn regressor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from featpipe.blocks import LayerBlocks
from featpipe.encoding._arrays import check_device
from featpipe.encoding._folds import check_enough, held_out_split, inner_splits, present_splits
from featpipe.encoding._layers import check_search, layer_matrix, layer_names, layer_widths
from featpipe.encoding._penalties import search_penalties
from featpipe.encoding.banded._bands import Bands, make_bands
from featpipe.encoding.banded._candidates import first_gammas
from featpipe.encoding.banded._folds import FoldSet, fold_sets
from featpipe.encoding.banded._ridge import band_coefficients, dual_solution
from featpipe.encoding.banded._search import PenaltySearch
from featpipe.encoding.ridge._encoder import ALPHAS, SCORINGS
from featpipe.encoding.ridge._ridge import missing_patterns
from featpipe.errors import RequestError

_CHOICES = {"scoring": SCORINGS, "mixture": ("target", "shared"), "search_precision": ("exact", "reduced")}
_SHARED_ROUNDS = 2  # before targets go their own way: a few mixtures bring all of them nearer
_FLOATS = [np.float64, np.float32]


class BandedRidge(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Ridge regression with a penalty per band of features and target.

    Minimises ``Σ_i w_i (Y[i, t] - b_t - Σ_l X_l[i] c_l)² + Σ_l (alpha[t] / gamma[l, t]) ||c_l||²`` for every
    target t, with gamma on the simplex over the bands l. Bands are layers, or any sets of features that may
    deserve different penalties: one that predicts nothing is shrunk away, where one common penalty would have
    to keep its noise. Penalties are chosen by cross-validation inside `fit`: mixtures gamma over a grid of alpha,
    then steps along the gradient of the held-out score. The solution at the chosen penalties is exact.

    Parameters
    ----------
    widths : sequence of int, optional
        Columns of a matrix X that each band takes, in order; one band by default. `LayerBlocks` have a band for
        each layer.
    alphas : array of shape (n_alphas,)
        Penalties to try with each mixture, > 0.
    mixture : {"target", "shared"}
        gamma for each target, or one for all targets of the fit with an alpha for each. Shared, it is chosen from
        much more data: better where targets are few, noisy and alike (neurons of an area, voxels of a region).
        Targets that miss other stimuli than the rest have a gamma of their own.
    n_iter : int, or array of shape (n_candidates, n_bands)
        Mixtures to try first. An int takes all bands alike, then with equal variance, single bands, pairs, and draws
        from Dirichlet distributions; after the first, only penalties that match what was good so far are tried.
        An array is tried with every penalty.
    refine : int
        Rounds of steps along the gradient, which costs less than random mixtures as good; 0 for none. For
        ``mixture="target"`` penalties then leave the grid of `alphas`, and as targets try what others near them
        propose, targets fitted together are not exactly those fitted alone.
    concentration : float or sequence of float
        Of the Dirichlet distributions, used in turn.
    deltas : array of shape (n_bands,) or (n_bands, n_targets), optional
        ``log(gamma / alpha)``. Given, nothing is searched; -inf leaves a band out.
    cv : int, splitter, iterable of (train, test) or "held-out"
        Folds of the search, as in `RidgeEncoder`; no stimulus twice in a fold.
    scoring : {"r2", "pearson_r"}
        What the search maximises: the mean over folds per target, weighted by `sample_weight` as the fit is.
    fit_intercept : bool
    random_state : int, RandomState or None
        Of the Dirichlet draws.
    target_batch : int
        Targets solved at a time; bounds memory.
    device : str
        "cpu", "cuda" or "cuda:N": where to factorise and score.
    search_precision : {"exact", "reduced"}
        "reduced" evaluates candidates in float32 where their penalties allow it.

    Attributes
    ----------
    coef_ : ndarray of shape (n_targets, n_features), or (n_features,) for a 1-D response
        Features in the order of the bands.
    intercept_ : ndarray of shape (n_targets,), or float
    deltas_ : ndarray of shape (n_bands, n_targets), or (n_bands,)
        ``log(gamma / alpha)``.
    gamma_ : ndarray of the same shape
        Share of each band; columns add up to 1. 0 for a band that is constant.
    alpha_ : ndarray of shape (n_targets,), or float
    best_score_ : ndarray of shape (n_targets,), or float
        Score of the chosen penalties in the search. Biased upwards by the choice: never a result. Absent when
        `deltas` were given.
    bands_ : tuple of (str, int)
        Name and width of each band.
    n_features_in_ : int

    Notes
    -----
    Bands are not rescaled: standardise features first (`LayerScaler`). Where bands have fewer features than half
    the stimuli all together, features are factorised, else products of stimuli, one matrix (n_stimuli,
    n_stimuli) of float64 for each band. All folds come from one factorisation of a candidate, however many there
    are. NaN in responses, constant features and targets are as in `RidgeEncoder`. Of two equal bands only the sum
    of their gamma has a meaning. With metadata routing enabled, `fit` asks for `sample_weight` and `groups`,
    `score` for `sample_weight`.

    References
    ----------
    Nunez-Elizalde, Huth & Gallant (2019), Voxelwise encoding models with non-spherical multivariate normal
    priors, NeuroImage 197, section 2. Dupré la Tour, Eickenberg, Nunez-Elizalde & Gallant (2022), Feature-space
    selection with banded ridge regression, NeuroImage 264, sections 2.3 and 2.4.
    """

    __metadata_request__fit = {"sample_weight": True, "groups": True}  # noqa: RUF012 (scikit-learn's form)
    __metadata_request__score = {"sample_weight": True}  # noqa: RUF012

    def __init__(
        self,
        widths=None,
        *,
        alphas=ALPHAS,
        mixture="target",
        n_iter=2,
        refine=6,
        concentration=(0.1, 1.0),
        deltas=None,
        cv=5,
        scoring="r2",
        fit_intercept=True,
        random_state=0,
        target_batch=1024,
        device="cpu",
        search_precision="exact",
    ):
        self.widths = widths
        self.alphas = alphas
        self.mixture = mixture
        self.n_iter = n_iter
        self.refine = refine
        self.concentration = concentration
        self.deltas = deltas
        self.cv = cv
        self.scoring = scoring
        self.fit_intercept = fit_intercept
        self.random_state = random_state
        self.target_batch = target_batch
        self.device = device
        self.search_precision = search_precision

    def fit(self, X, y, sample_weight=None, groups=None):
        """Choose the penalties and fit.

        Parameters
        ----------
        X : LayerBlocks, or array of shape (n_stimuli, n_features)
        y : array of shape (n_stimuli, n_targets) or (n_stimuli,)
            Responses; NaN where a trial is missing.
        sample_weight : float or array of shape (n_stimuli,), optional
            Weight of each stimulus, >= 0. A weight of 0 leaves it out.
        groups : array of shape (n_stimuli,), optional
            Stimuli of one group are never on both sides of an inner fold.

        Raises
        ------
        RequestError
            When parameters and data do not fit together, or a target has fewer than two responses.
        """
        self._check_parameters()
        tuned = held_out_split(X)
        X, y, weight = self._validate(X, y, sample_weight)
        Y = y.reshape(len(y), -1)
        self.bands_ = tuple(zip(layer_names(X, self.widths), layer_widths(X, self.widths), strict=True))
        splits = [] if self.deltas is not None else inner_splits(self.cv, X, y, groups, tuned)
        bands, origin = make_bands(
            self._layers(X), self._widths, weight, center=bool(self.fit_intercept), device=self.device
        )
        deltas, scores = np.empty((len(self.bands_), Y.shape[1])), np.empty(Y.shape[1])
        dual, offset = np.zeros(Y.shape), np.zeros(Y.shape[1])
        for targets, present in missing_patterns(Y):
            rows = present[weight[present] > 0]
            check_enough(rows, targets)
            part, chosen = self._taken(bands, rows), Y[np.ix_(rows, targets)]
            if self.deltas is None:
                sets = _positions(fold_sets(present_splits(splits, rows, targets)), rows)
                deltas[:, targets], scores[targets] = self._search(part, chosen, sets)
            else:
                deltas[:, targets] = _given_deltas(self.deltas, *deltas.shape)[:, targets]
            dual[np.ix_(rows, targets)], offset[targets] = dual_solution(
                part, chosen, deltas[:, targets], target_batch=self.target_batch, device=self.device
            )
        coef = np.concatenate(
            list(band_coefficients(self._layers(X), dual, deltas, target_batch=self.target_batch)), axis=1
        )
        self._keep(coef, offset - coef @ origin, deltas, scores, single=y.ndim == 1)
        return self

    def predict(self, X, by_band=False):
        """Predict responses.

        Parameters
        ----------
        X : LayerBlocks, or array of shape (n_stimuli, n_features)
        by_band : bool
            The part of each band, without the intercept, instead of their sum with it.

        Returns
        -------
        predicted : ndarray of shape (n_stimuli, n_targets), or (n_stimuli,)
            With `by_band`, of shape (n_bands, n_stimuli, n_targets) or (n_bands, n_stimuli).
        """
        check_is_fitted(self)
        X = self._checked(X, reset=False)
        parts = (layer @ coef.T for layer, coef in zip(self._layers(X), self._coefficients(), strict=True))
        if by_band:
            return np.stack(list(parts))
        predicted = next(parts)
        for part in parts:
            predicted += part
        predicted += np.asarray(self.intercept_, dtype=predicted.dtype)
        return predicted

    @property
    def _widths(self) -> tuple[int, ...]:
        return tuple(width for _, width in self.bands_)

    def _layers(self, X) -> Iterator[np.ndarray]:
        widths = None if isinstance(X, LayerBlocks) else self._widths
        return (layer_matrix(X, number, widths) for number in range(len(self.bands_)))

    def _coefficients(self) -> list[np.ndarray]:
        return np.split(self.coef_, np.cumsum(self._widths)[:-1], axis=-1)

    def _check_parameters(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise RequestError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        for name, least in (("target_batch", 1), ("refine", 0)):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < least:
                raise RequestError(f"{name} must be an int >= {least}, got {value!r}.")
        check_device(self.device)

    def _validate(self, X, y, sample_weight):
        check_search(self, X, searches=self.deltas is None)
        for_y = {"dtype": _FLOATS, "ensure_2d": False, "ensure_all_finite": "allow-nan", "estimator": self}
        if isinstance(X, LayerBlocks):
            X, y = self._checked(X, reset=True), check_array(y, input_name="y", **for_y)
        else:
            for_x = {"dtype": _FLOATS, "ensure_min_samples": 2, "estimator": self}
            X, y = validate_data(self, X, y, validate_separately=(for_x, for_y))
        check_consistent_length(X, y)
        weight = _check_sample_weight(sample_weight, y, dtype=np.float64)
        if np.any(weight < 0) or not weight.any():
            raise RequestError(
                f"sample_weight must be >= 0 and not all 0, got {weight.min()} to {weight.max()}."
            )
        return X, y, weight

    def _checked(self, X, *, reset: bool):
        if not isinstance(X, LayerBlocks):
            return validate_data(self, X, dtype=_FLOATS, reset=reset)
        found = tuple(zip(X.names, X.widths, strict=True))
        if not reset and found != self.bands_:
            raise RequestError(f"The model was fitted to bands {self.bands_}, but got {found}.")
        self.n_features_in_ = X.shape[1]
        return X

    def _taken(self, bands: Bands, rows: np.ndarray) -> Bands:
        return bands if len(rows) == len(bands.weight) else bands.take(rows)

    def _search(self, bands: Bands, Y: np.ndarray, sets: list[FoldSet]) -> tuple[np.ndarray, np.ndarray]:
        search = PenaltySearch(
            bands,
            Y,
            sets,
            scoring=self.scoring,
            target_batch=self.target_batch,
            reduced=self.search_precision == "reduced",
            device=self.device,
        )
        gammas, alphas = self._candidates(bands)
        search.grid(gammas, alphas, whole=not isinstance(self.n_iter, int | np.integer))
        shared = self.mixture == "shared"
        if np.count_nonzero(bands.traces > 0) > 1 and np.isfinite(search.score).all():
            search.share(alphas, self.refine if shared else min(self.refine, _SHARED_ROUNDS))
            search.refine(0 if shared else self.refine)
        if not np.isfinite(search.score).all():
            raise RequestError(
                "No penalty of alphas is large enough for features of this size: every candidate is singular in "
                "float64. Give larger alphas."
            )
        return (search.shared_delta, search.shared_score) if shared else (search.delta, search.score)

    def _candidates(self, bands: Bands) -> tuple[np.ndarray, np.ndarray]:
        gammas = first_gammas(self.n_iter, bands.traces, self.concentration, self.random_state)
        return gammas, search_penalties(self.alphas)

    def _keep(self, coef, intercept, deltas, scores, *, single: bool) -> None:
        self.coef_ = coef[0] if single else coef
        self.intercept_ = 0.0
        if self.fit_intercept:
            self.intercept_ = float(intercept[0]) if single else intercept
        alpha = 1 / np.exp(deltas).sum(axis=0)
        self.deltas_ = deltas[:, 0] if single else deltas
        self.alpha_ = float(alpha[0]) if single else alpha
        self.gamma_ = np.exp(self.deltas_) * self.alpha_
        if self.deltas is None:
            self.best_score_ = float(scores[0]) if single else scores
        elif hasattr(self, "best_score_"):
            del self.best_score_  # of an earlier fit


def _positions(sets: list[FoldSet], rows: np.ndarray) -> list[FoldSet]:
    """Return fold sets with stimuli counted among `rows`."""
    return [FoldSet(np.searchsorted(rows, one.rows), one.tests) for one in sets]


def _given_deltas(deltas, n_bands: int, n_targets: int) -> np.ndarray:
    given = np.asarray(deltas, dtype=np.float64)
    given = given[:, None] if given.ndim == 1 else given
    if given.ndim != 2 or len(given) != n_bands or given.shape[1] not in (1, n_targets):
        raise RequestError(
            f"deltas have shape {np.shape(deltas)}, but there are {n_bands} bands and {n_targets} targets; give one "
            "number for each band, or for each band and target."
        )
    if np.isnan(given).any() or np.isposinf(given).any() or np.isneginf(given).all(axis=0).any():
        raise RequestError(
            "deltas must be finite, or -inf to leave a band out, with a finite one for each target."
        )
    return np.broadcast_to(given, (n_bands, n_targets))
