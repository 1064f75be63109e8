"""K-fold scores from one decomposition of all stimuli, where there are more features than stimuli.

The residuals of held-out stimuli F, from a fit to the others, follow from the residuals of the fit to all:
``e_F = (I - H_FF)^-1 (y - H y)_F``, exactly, weights and intercept included. With fewer stimuli than features that is
``E z``, where z are the responses in the eigenvectors of all stimuli and E is made once per fold and penalty, so that
folds need no eigenvectors of their own.
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
from featpipe.encoding._gram import GramStatistics, Subset
from featpipe.encoding._held_out import r2_of, safe_ratio
from featpipe.encoding._ridge import Split
from featpipe.encoding._scaled import ScaledResponses, batches, scatter_about_mean


def pays_off(gram: GramStatistics, splits: Sequence[Split], n_alphas: int) -> bool:
    """Say whether folds are stimuli left out of one set, and cheaper so than by a decomposition of each.

    A decomposition costs about ``20 n³``, a fold and penalty here ``4 n_test² n`` for n stimuli in all.
    """
    if gram.primal or not splits:
        return False
    everything = np.union1d(*splits[0])
    for train, test in splits:
        if len(train) + len(test) != len(everything) or not np.array_equal(
            np.union1d(train, test), everything
        ):
            return False
    apart = sum(20.0 * len(train) ** 3 for train, _ in splits)
    return sum(4.0 * n_alphas * len(test) ** 2 * len(everything) for _, test in splits) < apart


class Deletion:
    """Held-out residuals of every fold and penalty, as matrices on the responses in the directions.

    Parameters
    ----------
    subset : Subset
        All stimuli of the folds, with weights > 0, decomposed stimulus by stimulus.
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
        self.root = subset.weight**0.5

    def residual_matrices(self, position: int) -> list[Any]:
        """Return for every fold what makes residuals of `Subset.latent`: (n_test, rank), in the dtype of features.

        Residuals are times sqrt(w).
        """
        return [self._single(self._residual_matrix(place, self.shed[position])) for place in self.places]

    def prediction_matrices(self, position: int) -> list[Any]:
        """Return for every fold what makes predictions, times sqrt(w), of responses less the mean of all."""
        found = []
        for place in self.places:
            residual = self._residual_matrix(place, self.shed[position])
            found.append(self._single(self._factor(place) - residual))
        return found

    def _factor(self, place: np.ndarray) -> Any:
        factor = take(self.subset.decomposition.left, place)
        factor /= take(self.root, place)[:, None]
        return factor

    def _residual_matrix(self, place: np.ndarray, shed: Any) -> Any:
        factor = self._factor(place)
        factor *= shed**0.5
        free = factor @ factor.T
        if self.subset.gram.center:
            constant = take(self.root, place) / self.subset.total**0.5
            free -= constant[:, None] * constant
        factor = solve_symmetric(free, factor)
        factor *= shed**0.5
        return factor

    def _single(self, matrix: Any) -> Any:
        return array_namespace(matrix).astype(matrix, float_type(self.subset.gram.dtype, matrix), copy=False)


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

    def matrices(self, position: int) -> list[Any]:
        """Return what `score` needs of a penalty."""
        if self.scoring == "r2":
            return self.deletion.residual_matrices(position)
        return self.deletion.prediction_matrices(position)

    def score(self, matrices: Sequence[Any], columns: np.ndarray, latent: Any) -> np.ndarray:
        """Return the mean score over folds of some targets under one penalty: ndarray of shape (n_columns,).

        Parameters
        ----------
        matrices : list of arrays
            Of the penalty.
        columns : ndarray of int, shape (n_columns,)
            The targets.
        latent : array of shape (rank, n_targets)
            Of all targets.
        """
        scores = np.empty(len(columns))
        for part in batches(len(columns), self.target_batch):
            chosen = columns[part]
            some = take_columns(latent, _as_slice(chosen))
            if self._scatter is None:
                scores[part] = self._correlation(matrices, chosen, some)
            else:
                errors = [column_dots(e, e) for e in (matrix @ some for matrix in matrices)]
                scores[part] = np.mean(
                    [r2_of(to_numpy(e), s) for e, s in zip(errors, self._scatter[:, chosen], strict=True)],
                    axis=0,
                )
        return scores

    def _correlation(self, matrices: Sequence[Any], columns: np.ndarray, latent: Any) -> np.ndarray:
        values = self.responses.values(self.deletion.subset.rows, columns)
        found = []
        for matrix, place in zip(matrices, self.deletion.places, strict=True):
            weight, held_out = take(self.deletion.subset.weight, place), take(values, place)
            target, _, scatter = scatter_about_mean(held_out, weight)
            root = array_namespace(held_out).astype(weight**0.5, held_out.dtype)
            predicted = matrix @ latent
            predicted -= root[:, None] * ((root / float(weight.sum())) @ predicted)
            spread = column_dots(predicted, predicted) * scatter
            found.append(to_numpy(safe_ratio(column_dots(predicted, target), spread**0.5)))
        return np.mean(found, axis=0)

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


def _as_slice(columns: np.ndarray) -> Any:
    if len(columns) == columns[-1] - columns[0] + 1:
        return slice(int(columns[0]), int(columns[-1]) + 1)
    return columns
