"""Penalties by leave-one-out and by generalised cross-validation, from the residuals of one fit.

With ``H = 1 w'/Σw + hat matrix of the centred features``, the prediction of a stimulus that was left out misses it by
``e_i / (1 - H_ii)``, where e are the residuals of the fit to all: exactly, weights and intercept included. Generalised
cross-validation puts the mean of ``H_ii`` for each and needs no residuals, only squares of the responses in the
directions of the decomposition. Leave-one-out needs the residuals of a penalty, which cost a product of matrices;
bounds tell for each target which penalties cannot be its best, and those are not made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from featpipe.encoding._arrays import (
    array_namespace,
    column_dots,
    double,
    like,
    take_columns,
    to_numpy,
)
from featpipe.encoding.ridge._gram import Subset
from featpipe.encoding.ridge._held_out import r2_of, safe_ratio
from featpipe.encoding.ridge._ridge import RidgeSolution, best_penalties
from featpipe.encoding.ridge._scaled import ScaledResponses, batches, scatter_about_mean

_CHUNK_VALUES = 1 << 19
_SMALL = 1e-3  # 1 - leverage below which differences of responses and fits in float32 are too coarse
_SLACK = 1e-5  # of a bound, relative: its rounding


def closed_form_fit(
    subset: Subset,
    Y: Any,
    alphas: np.ndarray,
    *,
    method: str = "loo",
    scoring: str = "r2",
    target_batch: int = 1024,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Choose every target's penalty in closed form and solve ridge with it, batch by batch.

    Parameters
    ----------
    subset : Subset
        Of stimuli with weights > 0.
    Y : array of shape (n_stimuli, n_targets)
    alphas : ndarray of shape (n_alphas,)
        > 0.
    method : {"loo", "gcv"}
        Leave-one-out: the score of predictions of each stimulus from a fit to the others, pooled over stimuli.
        GCV: the same with every leverage replaced by their mean, so that 1 - R² is proportional to
        ``Σ w e² / (1 - tr(H) / n)²``.
    scoring : {"r2", "pearson_r"}
        Of the pooled predictions, about the mean of all responses; weighted as the fit is.
    target_batch : int

    Returns
    -------
    alpha, score : ndarray of shape (n_targets,)
    coef : ndarray of shape (n_targets, n_features)
    intercept : ndarray of shape (n_targets,)

    References
    ----------
    Golub, Heath & Wahba (1979), equations 1.3 (leave-one-out) and 1.4 (GCV).
    """
    responses = ScaledResponses(subset.gram, Y, subset.rows, target_batch)
    choice = ClosedForm(subset, responses, alphas, method=method, scoring=scoring)
    solution = RidgeSolution(subset, responses)
    alpha, score = np.empty(responses.n_targets), np.empty(responses.n_targets)
    for part in batches(responses.n_targets, target_batch):
        values = responses.values(subset.rows, part)
        latent = subset.latent(values)
        alpha[part], score[part] = choice.choose(part, values, latent)
        solution.solve(part, values, alpha[part], latent)
    return alpha, score, *solution.finish()


def closed_form_scores(
    subset: Subset,
    Y: Any,
    alphas: np.ndarray,
    *,
    method: str = "loo",
    scoring: str = "r2",
    target_batch: int = 1024,
) -> np.ndarray:
    """Score every penalty for every target: ndarray of shape (n_alphas, n_targets); see `closed_form_fit`."""
    responses = ScaledResponses(subset.gram, Y, subset.rows, target_batch)
    choice = ClosedForm(subset, responses, alphas, method=method, scoring=scoring)
    scores = np.empty((len(alphas), responses.n_targets))
    for part in batches(responses.n_targets, target_batch):
        values = responses.values(subset.rows, part)
        scores[:, part] = choice.scores(part, values, subset.latent(values))
    return scores


class ClosedForm:
    """Leverages of one decomposition under every penalty, and the scores that follow for batches of targets.

    Arrays are in the directions of the decomposition: ``kept = λ / (λ + α)``, ``shed = α / (λ + α)``. Responses and
    residuals are weighted by ``sqrt(w)``, so that scores are plain sums of squares.
    """

    def __init__(
        self, subset: Subset, responses: ScaledResponses, alphas: np.ndarray, *, method: str, scoring: str
    ) -> None:
        self.subset, self.responses, self.alphas = subset, responses, alphas
        self.method, self.scoring = method, scoring
        self.center = subset.gram.center
        self.complete = not subset.gram.primal  # the directions span all responses
        self.root = subset.weight**0.5
        self.even = bool((subset.weight == 1).all())
        variances = subset.decomposition.variances()
        alpha = like(np.asarray(alphas, dtype=np.float64), variances)[:, None]
        self.kept, self.shed = variances / (variances + alpha), alpha / (variances + alpha)
        free = self._free()
        self.mean_free = like(free.mean(axis=1), variances)
        lowest = free.mean(axis=1) / 30 if method == "gcv" else free.min(axis=1)
        self.coarse = np.zeros(len(free), dtype=bool) if self.complete else lowest < _SMALL
        self.inflation = like(1 / free, variances)  # (n_alphas, n_rows)
        self.constant = (
            subset.decomposition.left.sum(0) / subset.total**0.5
        )  # that of responses, in the directions

    def scores(self, part: slice, values: Any, latent: Any) -> np.ndarray:
        """Score every penalty for a batch of targets: ndarray of shape (n_alphas, n_batch)."""
        if self.method == "gcv":
            return self._gcv(part, values, latent)
        columns = np.arange(part.stop - part.start)
        scatter = scatter_about_mean(values, self.subset.weight)[2]
        found = []
        for position in range(len(self.alphas)):
            residual, weighted = self._residual(position, part, columns, values, latent)
            residual *= self._like(self.inflation[position], residual)[:, None]
            if self.scoring == "r2":
                found.append(r2_of(column_dots(residual, residual), scatter))
            else:
                found.append(self._correlation(weighted - residual, weighted, scatter))
        return np.stack([to_numpy(score) for score in found])

    def choose(self, part: slice, values: Any, latent: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the best penalty of every target of a batch, and its score, each (n_batch,)."""
        if self.method == "loo" and self.scoring == "r2":
            scores = self._bounded(part, values, latent)
        else:
            scores = self.scores(part, values, latent)
        return best_penalties(scores, self.alphas)

    def _free(self) -> np.ndarray:
        """Return ``1 - H_ii`` of every penalty and stimulus: (n_alphas, n_rows)."""
        left, weight = self.subset.decomposition.left, self.subset.weight
        found = np.empty((len(self.alphas), left.shape[0]))
        for rows in _chunks(left.shape[0], max(1, _CHUNK_VALUES // left.shape[1])):
            squares = (left[rows] ** 2 / weight[rows, None]).T
            free = self.shed @ squares if self.complete else 1 - self.kept @ squares
            if self.center:
                free -= weight[rows] / self.subset.total
            found[:, rows] = to_numpy(free)
        return np.maximum(found, np.finfo(np.float64).tiny)

    def _gcv(self, part: slice, values: Any, latent: Any) -> np.ndarray:
        if self.coarse.any():  # nearly as many features as stimuli
            values = self.responses.values(self.subset.rows, part, np.float64)
            latent = self.subset.latent(values)
        weighted = self._weighted(values)
        scatter = scatter_about_mean(values, self.subset.weight)[2]
        squares = latent**2
        beside = self._beside(weighted, latent)
        free = self.mean_free[:, None]
        if self.scoring == "r2":
            error = double(self._like(self.shed**2, squares) @ squares) + beside
            return to_numpy(r2_of(error / free**2, scatter[None, :]))
        gain, beyond = (
            1 - self.shed / free,
            1 - 1 / free,
        )  # of predictions, without differences of large numbers
        cross = double(self._like(gain, squares) @ squares) + beyond * beside
        spread = double(self._like(gain**2, squares) @ squares) + beyond**2 * beside
        if not self.center:
            whole = double(self._like(self.root, weighted) @ weighted) / self.subset.total**0.5
            fitted = double(self._like(self.kept * self.constant, latent) @ latent)
            predicted = whole - (whole - fitted) / free
            spread, cross = spread - predicted**2, cross - predicted * whole
        return to_numpy(safe_ratio(cross, (_positive(spread) * scatter) ** 0.5))

    def _bounded(self, part: slice, values: Any, latent: Any) -> np.ndarray:
        """Return leave-one-out R², and -inf for penalties that cannot be a target's best.

        From the residuals e of one penalty, the error of another, whose residuals are ``e + d``, is at least
        ``Σ v² e² + 2 m <e, d> - 2 s |d| + min v² |d|²``, where v is its ``1 / (1 - H_ii)``, m the mean of v² under
        weights e² and s the norm of ``(v² - m) e``; ``<e, d>`` and ``|d|`` need no residuals.
        """
        n_batch = part.stop - part.start
        scatter = to_numpy(scatter_about_mean(values, self.subset.weight)[2])
        squares = latent**2
        beside = self._beside(self._weighted(values), latent)
        plain = to_numpy(double(self._like(self.shed**2, squares) @ squares) + beside)  # errors, not left out
        inflation = to_numpy(self.inflation)
        lower = inflation.min(axis=1)[:, None] ** 2 * plain * (1 - _SLACK)
        error = np.full((len(self.alphas), n_batch), np.inf)
        todo = np.argmin(plain * (inflation.mean(axis=1) / to_numpy(self.mean_free))[:, None], axis=0)
        open_ = np.flatnonzero(scatter > 0)
        while len(open_):
            for position in np.unique(todo[open_]):
                columns = open_[todo[open_] == position]
                error[position, columns], bound = self._evaluate(
                    position, part, columns, values, latent, squares
                )
                lower[:, columns] = np.maximum(lower[:, columns], bound)
            waiting = np.where(np.isinf(error[:, open_]), lower[:, open_], np.inf)
            todo[open_] = np.argmin(waiting, axis=0)
            open_ = open_[waiting.min(axis=0) <= error[:, open_].min(axis=0)]
        return np.where(scatter > 0, 1 - error / np.where(scatter > 0, scatter, 1.0), 0.0)

    def _evaluate(
        self, position: int, part: slice, columns: np.ndarray, values: Any, latent: Any, squares: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the leave-one-out error of a penalty, and bounds from it on that of all, (n_alphas, n_columns)."""
        residual, _ = self._residual(position, part, columns, values, latent)
        squared = take_columns(squares, columns)
        residual *= residual
        scale = 1 / self.mean_free[:, None]  # brings the inflation near 1
        relative = (self.inflation / scale) ** 2
        own = double(self._like(relative, residual) @ residual)
        second = double(self._like(relative**2, residual) @ residual)
        plain = double(residual.sum(0))
        step = self.kept[position] - self.kept
        along = double(self._like(self.shed[position] * step, squared) @ squared)
        length = _positive(double(self._like(step**2, squared) @ squared))
        mean = safe_ratio(own, own * 0 + plain)
        spread = _positive(second - mean * own + _SLACK * second) ** 0.5
        least = like(to_numpy(relative).min(axis=1), length)[:, None]
        bound = own * (1 - _SLACK) + 2 * mean * along - 2 * spread * length**0.5 + least * length
        bound = bound - _SLACK * abs(2 * mean * along)
        return to_numpy(own[position] * scale[position] ** 2), to_numpy(bound * scale**2)

    def _residual(
        self, position: int, part: slice, columns: np.ndarray, values: Any, latent: Any
    ) -> tuple[Any, Any]:
        """Return residuals of some columns under a penalty and their responses, both weighted, (n_rows, n_columns)."""
        if self.coarse[position]:
            values = self.responses.values(self.subset.rows, columns + part.start, np.float64)
            latent = self.subset.latent(values)
        elif len(columns) < latent.shape[1]:
            values, latent = take_columns(values, columns), take_columns(latent, columns)
        weighted = self._weighted(values)
        diagonal = self.shed[position] if self.complete else self.kept[position]
        fitted = self.subset.combine(self._like(diagonal, latent)[:, None] * latent)
        if not self.even:
            fitted /= self._like(self.root, fitted)[:, None]
        return (fitted if self.complete else weighted - fitted), weighted

    def _correlation(self, predicted: Any, weighted: Any, scatter: Any) -> Any:
        ones = self._like(self.root, predicted) / self.subset.total**0.5
        predicted = predicted - ones[:, None] * (ones @ predicted)
        return safe_ratio(
            column_dots(predicted, weighted), (column_dots(predicted, predicted) * scatter) ** 0.5
        )

    def _beside(self, weighted: Any, latent: Any) -> Any:
        """Return the sum of squares that no direction reaches, (n_batch,)."""
        if self.complete:
            return 0.0
        return _positive(column_dots(weighted, weighted) - column_dots(latent, latent))

    def _weighted(self, values: Any) -> Any:
        return values if self.even else values * self._like(self.root, values)[:, None]

    @staticmethod
    def _like(table: Any, values: Any) -> Any:
        return array_namespace(values).astype(table, values.dtype, copy=False)


def _chunks(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _positive(values: Any) -> Any:
    return array_namespace(values).clip(values, 0.0, None)
