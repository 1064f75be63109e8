"""`RidgeEncoder`: the ridge solvers as a scikit-learn regressor."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from featpipe.encoding._folds import check_enough, inner_splits, present_splits
from featpipe.encoding._gram import GramStatistics
from featpipe.encoding._penalties import given_penalties, search_penalties
from featpipe.encoding._ridge import best_penalties, cross_validated_scores, missing_patterns, ridge
from featpipe.errors import RequestError

SCORINGS = ("r2", "pearson_r")
ALPHAS = tuple(
    float(f"{alpha:.6g}") for alpha in np.logspace(-1, 8, 13)
)  # standardised features need 1e1 to 1e6
_FLOATS = [np.float64, np.float32]


class RidgeEncoder(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Ridge regression of many responses, each with the penalty that predicts it best.

    Minimises ``Σ_i w_i (Y[i, t] - b_t - X[i] c_t)² + alpha[t] ||c_t||²`` for every target t. The penalty is
    chosen per target by K-fold cross-validation inside `fit`; the solution at the chosen penalties is
    exact. Features are read once, whatever the number of folds, penalties and targets.

    Parameters
    ----------
    alpha : float or array of shape (n_targets,), optional
        Penalty in squared units of the features, >= 0. Given, nothing is searched.
    alphas : array of shape (n_alphas,)
        Penalties to choose from, > 0; by default 13 from 0.1 to 1e8. Of equally good ones the largest
        is taken.
    cv : int, splitter or iterable of (train, test)
        Folds of the search. An int shuffles with a fixed seed, ``KFold(cv, shuffle=True,
        random_state=0)``, because stimuli often lie in the order of their categories; with `groups` it is
        ``GroupKFold(cv)``. A fold with fewer than two held-out stimuli has no score and is left out.
    scoring : {"r2", "pearson_r"}
        What the search maximises: the mean over folds per target, weighted by `sample_weight` as the fit is.
    fit_intercept : bool
    target_batch : int
        Targets solved at a time; bounds memory.

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

    Notes
    -----
    A response of NaN is a missing trial: the target is fitted on its other stimuli. Targets that miss the
    same stimuli share one factorisation, so a few patterns are cheap, and one for every target is not.
    Constant features get coefficient 0, constant targets a constant prediction. `score` is R² as in
    scikit-learn. With metadata routing enabled, `fit` asks for `sample_weight` and `groups`, `score`
    for `sample_weight`.
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
        fit_intercept=True,
        target_batch=1024,
    ):
        self.alpha = alpha
        self.alphas = alphas
        self.cv = cv
        self.scoring = scoring
        self.fit_intercept = fit_intercept
        self.target_batch = target_batch

    def fit(self, X, y, sample_weight=None, groups=None):
        """Choose the penalties and fit.

        Parameters
        ----------
        X : array of shape (n_stimuli, n_features)
            Features; float32 stays float32, with statistics in float64.
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
        X, y, weight = self._validate(X, y, sample_weight)
        Y = y.reshape(len(y), -1)
        gram = GramStatistics(X, weight=weight, center=bool(self.fit_intercept))
        given = None if self.alpha is None else given_penalties(self.alpha, Y.shape[1])
        splits = [] if given is not None else inner_splits(self.cv, X, y, groups)
        parts = []
        for targets, present in missing_patterns(Y):
            rows = present[weight[present] > 0]
            check_enough(rows, targets)
            chosen = Y if len(targets) == Y.shape[1] else Y[:, targets]
            if given is None:
                alpha, score = self._search(gram, chosen, present_splits(splits, rows, targets))
            else:
                alpha, score = given[targets], np.empty(len(targets))
            solution = ridge(gram, chosen, alpha, rows=rows, target_batch=self.target_batch)
            parts.append((targets, score, alpha, *solution))
        self._keep(parts, single=y.ndim == 1)
        return self

    def predict(self, X):
        """Predict responses: ndarray of shape (n_stimuli, n_targets), or (n_stimuli,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=_FLOATS, reset=False)
        predicted = X @ self.coef_.T
        predicted += np.asarray(self.intercept_, dtype=predicted.dtype)
        return predicted

    def _validate(self, X, y, sample_weight):
        if self.scoring not in SCORINGS:
            raise RequestError(f"scoring must be one of {', '.join(SCORINGS)}, got {self.scoring!r}.")
        if not isinstance(self.target_batch, int | np.integer) or self.target_batch < 1:
            raise RequestError(f"target_batch must be an int >= 1, got {self.target_batch!r}.")
        for_x = {"dtype": _FLOATS, "ensure_min_samples": 2, "estimator": self}
        for_y = {"dtype": _FLOATS, "ensure_2d": False, "ensure_all_finite": "allow-nan", "estimator": self}
        X, y = validate_data(self, X, y, validate_separately=(for_x, for_y))
        check_consistent_length(X, y)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        if np.any(weight < 0) or not weight.any():
            raise RequestError(
                f"sample_weight must be >= 0 and not all 0, got {weight.min()} to {weight.max()}."
            )
        return X, y, weight

    def _search(self, gram, Y, splits):
        alphas = search_penalties(self.alphas)
        scores = cross_validated_scores(
            gram, Y, alphas, splits, scoring=self.scoring, target_batch=self.target_batch
        )
        return best_penalties(scores, alphas)

    def _keep(self, parts, *, single: bool) -> None:
        order = np.argsort(np.concatenate([targets for targets, *_ in parts]))
        if len(parts) == 1:
            _, score, alpha, coef, intercept = parts[0]
        else:
            score, alpha, coef, intercept = (
                np.concatenate([part[place] for part in parts])[order] for place in range(1, 5)
            )
        self.coef_ = coef[0] if single else coef
        self.alpha_ = float(alpha[0]) if single else alpha
        self.intercept_ = (float(intercept[0]) if single else intercept) if self.fit_intercept else 0.0
        if self.alpha is None:
            self.best_score_ = float(score[0]) if single else score
        elif hasattr(self, "best_score_"):
            del self.best_score_  # of an earlier fit
