"""`RidgeEncoder`: the ridge solvers as a scikit-learn regressor."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils import check_array
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from featpipe.blocks import LayerBlocks
from featpipe.encoding._arrays import check_device, moved_if_it_fits, on_device, take_columns
from featpipe.encoding._folds import CLOSED_FORMS, check_enough, check_single, held_out_split, inner_splits
from featpipe.encoding._layers import check_layers
from featpipe.encoding._penalties import given_penalties, penalty_groups, search_penalties, shared_penalties
from featpipe.encoding.ridge._gram import GramStatistics
from featpipe.encoding.ridge._ridge import missing_patterns, ridge
from featpipe.encoding.ridge._search import Search
from featpipe.encoding.streamed._products import linear_predictions
from featpipe.encoding.streamed._ridge import StreamedFeatures, fits_in_memory, predictions_from_stimuli
from featpipe.errors import RequestError

SCORINGS = ("r2", "pearson_r")
PRECISIONS = ("exact", "reduced")
ALPHAS = tuple(
    float(f"{alpha:.6g}") for alpha in np.logspace(-1, 8, 13)
)  # standardised features need 1e1 to 1e6
_FLOATS = [np.float64, np.float32]
_GPU_BATCH = 8192  # targets: every step has a cost of its own there


class RidgeEncoder(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Ridge regression of many responses, each with the penalty that predicts it best.

    Minimises ``Σ_i w_i (Y[i, t] - b_t - X[i] c_t)² + alpha[t] ||c_t||²`` for every target t. The penalty is
    chosen per target inside `fit`, by K-fold cross-validation, leave-one-out or generalised cross-validation; the
    solution at the chosen penalties is exact. Features are read once, whatever the number of folds, penalties and
    targets.

    Parameters
    ----------
    alpha : float or array of shape (n_targets,), optional
        Penalty in squared units of the features, >= 0. Given, nothing is searched.
    alphas : array of shape (n_alphas,)
        Penalties to choose from, > 0; by default 13 from 0.1 to 1e8. Of equally good ones the largest
        is taken.
    cv : int, splitter, iterable of (train, test), "loo", "gcv" or "held-out"
        Folds of the search. An int shuffles with a fixed seed, ``KFold(cv, shuffle=True,
        random_state=0)``, because stimuli often lie in the order of their categories; with `groups` it is
        ``GroupKFold(cv)``. A fold with fewer than two held-out stimuli has no score and is left out. "loo" leaves
        out every stimulus once and scores the predictions of all together; "gcv" is its rotation-invariant form.
        Both have a closed form and cost hardly more than the solution. "held-out" is for layers of a tuner
        (``cross_fit=None``): one fold, whose held-out stimuli are those that the tuner was not fitted to.
    scoring : {"r2", "pearson_r"}
        What the search maximises: the mean over folds per target, weighted by `sample_weight` as the fit is.
    penalty : {"target", "shared"} or array of shape (n_targets,)
        A penalty for each target; one for all, with the best mean of their scores; or one for all targets that
        have the same label in an array.
    fit_intercept : bool
    target_batch : int
        Targets solved at a time; bounds memory. On a GPU at least 8192.
    device : {"cpu", "cuda", "cuda:N"}
        Where `fit` computes. Responses go to a GPU as a whole where its free memory holds them twice, else batch by
        batch; what was fitted is NumPy's.
    search_precision : {"exact", "reduced"}
        "exact" scores every penalty. "reduced" scores, in folds, only those around each target's best by
        generalised cross-validation, and goes on until the best is better than its neighbours: the same choice
        where scores have one peak over the penalties. No score and no coefficient is less precise. It holds for a
        penalty per target.

    Attributes
    ----------
    coef_ : ndarray of shape (n_targets, n_features), or (n_features,) for a 1-D response
    intercept_ : ndarray of shape (n_targets,), or float
    alpha_ : ndarray of shape (n_targets,), or float
        Penalty used.
    best_score_ : ndarray of shape (n_targets,), or float
        Score of the chosen penalty in the search. Biased upwards by the choice: never a result. Absent
        when `alpha` was given.
    n_features_in_ : int
    dual_coef_ : ndarray of shape (n_targets, n_stimuli), or (n_stimuli,)
        In place of `coef_`, of layers that do not fit in memory where `coef_` would not either: weights of the
        stimuli, ``c_t = Σ_i (x_i - origin_) dual_coef_[t, i]``.
    stimuli_ : LayerBlocks
        The stimuli that `dual_coef_` weights, read again by `predict`.
    origin_ : ndarray of shape (n_features,)

    Notes
    -----
    A response of NaN is a missing trial: the target is fitted on its other stimuli. Targets that miss the
    same stimuli share one factorisation, so a few patterns are cheap, and one for every target is not.
    Constant features get coefficient 0; collinear ones, such as a layer given twice, share the solution of least
    norm. Constant targets get a constant prediction. Two stimuli are enough to fit; fewer than folds are an error.
    Prefer "r2" where targets are predicted weakly. r knows no scale, so that by "pearson_r" nothing draws
    predictions of noise to their mean; and with "loo" and "gcv" the mean of the others moves against the stimulus
    that is left out, so that r of strongly shrunk predictions tends to -1 and penalties come out too small.
    A stimulus given twice counts twice, and folds do not know its copies: give `groups`, which "loo" and "gcv"
    refuse. `score` is R² as in scikit-learn. With metadata routing enabled, `fit` asks for `sample_weight` and
    `groups`, `score` for `sample_weight`.
    """

    __metadata_request__fit = {"sample_weight": True, "groups": True}  # noqa: RUF012 (scikit-learn's form)
    __metadata_request__score = {"sample_weight": True}  # noqa: RUF012

    def __init__(
        self,
        alpha=None,
        *,
        alphas=ALPHAS,
        cv=5,
        scoring="r2",
        penalty="target",
        fit_intercept=True,
        target_batch=1024,
        device="cpu",
        search_precision="exact",
    ):
        self.alpha = alpha
        self.alphas = alphas
        self.cv = cv
        self.scoring = scoring
        self.penalty = penalty
        self.fit_intercept = fit_intercept
        self.target_batch = target_batch
        self.device = device
        self.search_precision = search_precision

    def fit(self, X, y, sample_weight=None, groups=None):
        """Choose the penalties and fit.

        Parameters
        ----------
        X : array of shape (n_stimuli, n_features), or LayerBlocks
            Features; float32 stays float32, with statistics in float64. Layers that would take more than half of
            the memory that is free, side by side, are read block by block, and so in `predict`.
        y : array of shape (n_stimuli, n_targets) or (n_stimuli,)
            Responses; NaN where a trial is missing.
        sample_weight : float or array of shape (n_stimuli,), optional
            Weight of each stimulus, >= 0, such as its number of repeats. A weight of 0 leaves it out.
        groups : array of shape (n_stimuli,), optional
            Stimuli of one group are never on both sides of an inner fold.

        Raises
        ------
        RequestError
            When parameters and data do not fit together, or a target has fewer than two responses.
        """
        tuned = held_out_split(X)
        X, y, weight = self._validate(X, y, sample_weight)
        Y = y.reshape(len(y), -1)
        given = None if self.alpha is None else given_penalties(self.alpha, Y.shape[1])
        search = self._search(X, y, groups, tuned) if given is None else None
        sharing = penalty_groups(self.penalty, Y.shape[1])
        patterns = _patterns(Y, weight)
        streamed = self._streamed(X, weight, Y.shape[1])
        gram = self._gram(X, weight) if streamed is None else streamed.gram
        Y = moved_if_it_fits(Y, self.device)
        if search is not None and sharing is None:
            last = len(patterns) == 1 and (
                streamed is None or not streamed.dual
            )  # which needs the matrix again
            parts = [
                (targets, *search.fit(gram, _columns(Y, targets), rows, targets, consume=last))
                for targets, rows in patterns
            ]
        else:
            alpha, score = given, np.empty(Y.shape[1])
            if search is not None:
                alpha, score = _shared(search, gram, Y, patterns, sharing)
            parts = self._solve(gram, Y, alpha, score, patterns)
        self._keep(parts, single=y.ndim == 1)
        self._keep_stimuli(streamed, y.reshape(len(y), -1), single=y.ndim == 1)
        return self

    def predict(self, X):
        """Predict responses: ndarray of shape (n_stimuli, n_targets), or (n_stimuli,)."""
        check_is_fitted(self)
        check_layers(self, X, reset=False)
        if isinstance(X, LayerBlocks):
            return self._predict_layers(X)
        X = validate_data(self, X, dtype=_FLOATS, reset=False)
        predicted = X @ self.coef_.T
        predicted += np.asarray(self.intercept_, dtype=predicted.dtype)
        return predicted

    def _validate(self, X, y, sample_weight):
        if self.scoring not in SCORINGS:
            raise RequestError(f"scoring must be one of {', '.join(SCORINGS)}, got {self.scoring!r}.")
        if self.search_precision not in PRECISIONS:
            raise RequestError(
                f"search_precision must be one of {', '.join(PRECISIONS)}, got {self.search_precision!r}."
            )
        check_device(self.device)
        if not isinstance(self.target_batch, int | np.integer) or self.target_batch < 1:
            raise RequestError(f"target_batch must be an int >= 1, got {self.target_batch!r}.")
        for_x = {"dtype": _FLOATS, "ensure_min_samples": 2, "estimator": self}
        for_y = {"dtype": _FLOATS, "ensure_2d": False, "ensure_all_finite": "allow-nan", "estimator": self}
        check_layers(self, X, reset=True)
        if isinstance(X, LayerBlocks):
            self.n_features_in_ = X.shape[1]
            y = check_array(y, input_name="y", **for_y)
            X = X if _is_streamed(X) else X.to_matrix()
        if not isinstance(X, LayerBlocks):
            X, y = validate_data(self, X, y, validate_separately=(for_x, for_y))
        check_consistent_length(X, y)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        if np.any(weight < 0) or not weight.any():
            raise RequestError(
                f"sample_weight must be >= 0 and not all 0, got {weight.min()} to {weight.max()}."
            )
        return X, y, weight

    def _search(self, X, y, groups, tuned) -> Search:
        closed = isinstance(self.cv, str) and self.cv in CLOSED_FORMS
        if closed:
            check_single(self.cv, groups)
        return Search(
            search_penalties(self.alphas),
            self.cv if closed else inner_splits(self.cv, X, y, groups, tuned),
            self.scoring,
            self.search_precision,
            self._batch,
        )

    @property
    def _batch(self) -> int:
        return self.target_batch if self.device == "cpu" else max(self.target_batch, _GPU_BATCH)

    def _gram(self, X, weight) -> GramStatistics:
        return GramStatistics(on_device(X, self.device), weight=weight, center=bool(self.fit_intercept))

    def _streamed(self, X, weight, n_targets: int) -> StreamedFeatures | None:
        if not isinstance(X, LayerBlocks):
            return None
        return StreamedFeatures.of(
            X, n_targets, weight=weight, center=bool(self.fit_intercept), device=self.device
        )

    def _solve(self, gram, Y, alpha, score, patterns) -> list:
        return [
            (
                targets,
                alpha[targets],
                score[targets],
                *ridge(gram, _columns(Y, targets), alpha[targets], rows=rows, target_batch=self._batch),
            )
            for targets, rows in patterns
        ]

    def _keep(self, parts, *, single: bool) -> None:
        order = np.argsort(np.concatenate([targets for targets, *_ in parts]))
        if len(parts) == 1:
            _, alpha, score, coef, intercept = parts[0]
        else:
            alpha, score, coef, intercept = (
                np.concatenate([part[place] for part in parts])[order] for place in range(1, 5)
            )
        self.coef_ = coef[0] if single else coef
        self.alpha_ = float(alpha[0]) if single else alpha
        self.intercept_ = (float(intercept[0]) if single else intercept) if self.fit_intercept else 0.0
        if self.alpha is None:
            self.best_score_ = float(score[0]) if single else score
        elif hasattr(self, "best_score_"):
            del self.best_score_  # of an earlier fit

    def _keep_stimuli(self, streamed: StreamedFeatures | None, Y: np.ndarray, *, single: bool) -> None:
        """Call what the solvers found by its name, where they saw stimuli in place of features."""
        for name in ("dual_coef_", "stimuli_", "origin_"):  # of an earlier fit
            if hasattr(self, name):
                delattr(self, name)
        if streamed is None or not streamed.dual:
            return
        self.dual_coef_, self.stimuli_, self.origin_ = self.coef_, streamed.blocks, streamed.origin
        intercept = streamed.intercepts(Y, np.atleast_2d(self.dual_coef_), target_batch=self.target_batch)
        self.intercept_ = float(intercept[0]) if single else intercept
        del self.coef_

    def _predict_layers(self, X: LayerBlocks) -> np.ndarray:
        if not hasattr(self, "dual_coef_"):
            predicted = linear_predictions(X, np.atleast_2d(self.coef_), self.intercept_)
            return predicted.reshape(len(X), *self.coef_.shape[:-1])
        weights = np.atleast_2d(self.dual_coef_)
        predicted = predictions_from_stimuli(X, self.stimuli_, self.origin_, weights, self.intercept_)
        return predicted.reshape(len(X), *self.dual_coef_.shape[:-1])


def _patterns(Y: np.ndarray, weight: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (targets, stimuli that they have and that count) for every pattern of missing responses."""
    patterns = []
    for targets, present in missing_patterns(Y):
        rows = present[weight[present] > 0]
        check_enough(rows, targets)
        patterns.append((targets, rows))
    return patterns


def _columns(Y: Any, targets: np.ndarray) -> Any:
    return Y if len(targets) == Y.shape[1] else take_columns(Y, targets)


def _is_streamed(X: LayerBlocks) -> bool:
    """Whether layers side by side would take more than half of the memory that is free."""
    return X.shape[1] > X.shape[0] and not fits_in_memory(X)


def _shared(search: Search, gram, Y, patterns, sharing) -> tuple[np.ndarray, np.ndarray]:
    """Return the penalty that the targets of a group share, and each target's score at it."""
    scores = np.empty((len(search.alphas), Y.shape[1]))
    for targets, rows in patterns:
        scores[:, targets] = search.scores(gram, _columns(Y, targets), rows, targets)
    return shared_penalties(scores, search.alphas, sharing)
