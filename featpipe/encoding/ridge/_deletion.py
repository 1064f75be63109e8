"""K-fold scores from one decomposition of all stimuli, so that folds need no decompositions of their own.

A fit to all stimuli has the hat matrix ``H = U K U'``, where U are the directions of the decomposition and, with an
intercept, the constant, and ``K = λ / (λ + α)`` (1 for the constant). Of stimuli F that are held out, the fit to the
others leaves the residuals ``(I - H_FF)^-1 (y - H y)_F``, and makes the predictions
``U_F (K^-1 - U_F' U_F)^-1 (U' y - U_F' y_F)``: exactly, weights included. The first serves with fewer stimuli
than features, where U is square, the second elsewhere. What multiplies the responses is made once per fold and
penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featpipe.encoding._arrays import (
    array_namespace,
    column_dots,
    float_type,
    like,
    solve_symmetric,
    take,
    take_columns,
    to_numpy,
)
from featpipe.encoding.ridge._gram import GramStatistics, Subset
from featpipe.encoding.ridge._held_out import r2_of, safe_ratio
from featpipe.encoding.ridge._ridge import Split
from featpipe.encoding.ridge._scaled import ScaledResponses, batches, scatter_about_mean


def pays_off(gram: GramStatistics, splits: Sequence[Split], n_alphas: int) -> bool:
    """Say whether folds are stimuli left out of one set, and cheaper so than by a decomposition of each.

    A decomposition stimulus by stimulus costs about ``20 n³``, a fold and penalty here ``4 n_test² n`` for n stimuli in
    all. Feature by feature, a decomposition of p features and the projection of all responses cost as much as some
    four penalties here.
    """
    everything = np.union1d(*splits[0])
    for train, test in splits:
        if len(train) + len(test) != len(everything) or not np.array_equal(
            np.union1d(train, test), everything
        ):
            return False
    if gram.primal:
        # fewer stimuli than features would leave directions that a small penalty alone holds, and rounding fills
        return n_alphas <= 4 and all(len(train) > gram.n_features for train, _ in splits)
    apart = sum(20.0 * len(train) ** 3 for train, _ in splits)
    return sum(4.0 * n_alphas * len(test) ** 2 * len(everything) for _, test in splits) < apart


class Deletion:
    """Held-out predictions and residuals of every fold and penalty, from matrices on the responses.

    Responses, predictions and residuals are times sqrt(w).

    Parameters
    ----------
    subset : Subset
        All stimuli of the folds, with weights > 0.
    splits : sequence of (rows to fit, rows to score)
        That `pays_off`.
    alphas : ndarray of shape (n_alphas,)
    """

    def __init__(self, subset: Subset, splits: Sequence[Split], alphas: np.ndarray) -> None:
        self.subset = subset
        order = np.argsort(subset.rows)
        self.places = [order[np.searchsorted(subset.rows, test, sorter=order)] for _, test in splits]
        variances = subset.decomposition.variances()
        alpha = like(np.asarray(alphas, dtype=np.float64), variances)[:, None]
        self.shed = alpha / (variances + alpha)
        self.kept = variances / (variances + alpha)
        self.square = not subset.gram.primal

    def matrix(self, fold: int, position: int, *, predicting: bool) -> Any:
        """Return what makes predictions, or else residuals, of a fold: (n_test, rank), in the dtype of features."""
        place = self.places[fold]
        if not self.square:
            matrix = self._prediction_matrix(place, self.kept[position])
        elif predicting:
            matrix = self._factor(place) - self._residual_matrix(place, self.shed[position])
        else:
            matrix = self._residual_matrix(place, self.shed[position])
        return array_namespace(matrix).astype(matrix, float_type(self.subset.gram.dtype, matrix), copy=False)

    def residuals(self, matrix: Any, place: np.ndarray, latent: Any, held_out: Any) -> Any:
        """Return residuals of a fold: array of shape (n_test, n_columns)."""
        return (
            matrix @ latent if self.square else held_out - self.predictions(matrix, place, latent, held_out)
        )

    def predictions(self, matrix: Any, place: np.ndarray, latent: Any, held_out: Any) -> Any:
        """Return predictions of a fold, of responses less the mean of all: array of shape (n_test, n_columns).

        Parameters
        ----------
        matrix : array of shape (n_test, rank)
            `matrix` of the fold, predicting.
        place : ndarray of int
            The fold's stimuli, from `places`.
        latent : array of shape (rank, n_columns)
            `Subset.latent` of all stimuli.
        held_out : array of shape (n_test, n_columns)
            The responses, times sqrt(w); the square way needs none.
        """
        if self.square:
            return matrix @ latent
        xp = array_namespace(latent)
        fitted = latent - xp.astype(self._factor(place), latent.dtype).T @ held_out
        predicted = matrix[:, : latent.shape[0]] @ fitted
        if self.subset.gram.center:
            constant = xp.astype(self._constant(place), latent.dtype)
            predicted -= matrix[:, -1:] * (constant @ held_out)
        return predicted

    def _factor(self, place: np.ndarray) -> Any:
        """Return the rows of U that are held out: (n_test, rank), float64, in the order of LAPACK."""
        factor = take_columns(self.subset.decomposition.left.T, place)
        factor /= take(self.subset.weight, place) ** 0.5
        return factor.T

    def _constant(self, place: np.ndarray) -> Any:
        return (take(self.subset.weight, place) / self.subset.total) ** 0.5

    def _residual_matrix(self, place: np.ndarray, shed: Any) -> Any:
        factor = self._factor(place)
        factor *= shed**0.5
        free = factor @ factor.T
        if self.subset.gram.center:
            constant = self._constant(place)
            free -= constant[:, None] * constant
        factor = solve_symmetric(free, factor)
        factor *= shed**0.5
        return factor

    def _prediction_matrix(self, place: np.ndarray, kept: Any) -> Any:
        xp = array_namespace(kept)
        factor, root = self._factor(place), kept**0.5
        if self.subset.gram.center:
            factor = xp.concat([factor, self._constant(place)[:, None]], axis=1)
            root = xp.concat([root, xp.ones_like(root[:1])])
        factor = factor * root
        inner = factor.T @ factor
        inner *= -1
        inner += like(np.eye(inner.shape[0]), inner)
        factor = solve_symmetric(inner, factor.T).T
        factor *= root
        return factor


class DeletionScores:
    """Scores of batches of targets, from residual matrices.

    Parameters
    ----------
    deletion : Deletion
    responses : ScaledResponses
    scoring : {"r2", "pearson_r"}
    target_batch : int
    """

    def __init__(
        self, deletion: Deletion, responses: ScaledResponses, scoring: str, target_batch: int
    ) -> None:
        self.deletion, self.responses = deletion, responses
        self.scoring, self.target_batch = scoring, target_batch
        self._scatter = self._scatters() if scoring == "r2" else None

    def score(self, position: int, columns: np.ndarray, latent: Any) -> np.ndarray:
        """Return the mean score over folds of some targets under one penalty: ndarray of shape (n_columns,).

        Parameters
        ----------
        position : int
            Of the penalty.
        columns : ndarray of int, shape (n_columns,)
            The targets.
        latent : array of shape (rank, n_targets)
            Of all targets.
        """
        total = np.zeros(len(columns))
        for fold in range(len(self.deletion.places)):
            matrix = self.deletion.matrix(fold, position, predicting=self.scoring == "pearson_r")
            for part in batches(len(columns), self.target_batch):
                chosen = _as_slice(columns[part])
                total[part] += self._fold(fold, matrix, chosen, take_columns(latent, chosen))
        return total / len(self.deletion.places)

    def _fold(self, fold: int, matrix: Any, columns: Any, latent: Any) -> np.ndarray:
        deletion, place = self.deletion, self.deletion.places[fold]
        weight = take(deletion.subset.weight, place)
        values = held_out = None
        if self._scatter is None or not deletion.square:
            values = self.responses.values(deletion.subset.rows[place], columns)
            held_out = _rooted(values, weight)
        if self._scatter is not None:
            residual = deletion.residuals(matrix, place, latent, held_out)
            return r2_of(to_numpy(column_dots(residual, residual)), self._scatter[fold, columns])
        target, _, scatter = scatter_about_mean(values, weight)
        predicted = deletion.predictions(matrix, place, latent, held_out)
        root = array_namespace(predicted).astype(weight**0.5, predicted.dtype)
        predicted -= root[:, None] * ((root / float(weight.sum())) @ predicted)
        spread = column_dots(predicted, predicted) * scatter
        return to_numpy(safe_ratio(column_dots(predicted, target), spread**0.5))

    def _scatters(self) -> np.ndarray:
        """Return the sum of squares of every fold's responses about their mean: (n_folds, n_targets)."""
        places, subset = self.deletion.places, self.deletion.subset
        found = np.empty((len(places), self.responses.n_targets))
        for part in batches(self.responses.n_targets, self.target_batch):
            values = self.responses.values(subset.rows, part)
            for fold, place in enumerate(places):
                scatter = scatter_about_mean(take(values, place), take(subset.weight, place))[2]
                found[fold, part] = to_numpy(scatter)
        return found


def _rooted(values: Any, weight: Any) -> Any:
    if bool((weight == 1).all()):
        return values
    return values * array_namespace(values).astype(weight**0.5, values.dtype)[:, None]


def _as_slice(columns: np.ndarray) -> Any:
    if len(columns) == columns[-1] - columns[0] + 1:
        return slice(int(columns[0]), int(columns[-1]) + 1)
    return columns
