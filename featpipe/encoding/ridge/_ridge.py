"""Ridge regression of many targets, each with its own penalty, from one decomposition of the features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from featpipe.encoding._arrays import (
    array_namespace,
    column_dots,
    like,
    take_columns,
    to_numpy,
)
from featpipe.encoding.ridge._gram import GramStatistics, Subset
from featpipe.encoding.ridge._held_out import HeldOut
from featpipe.encoding.ridge._scaled import ScaledResponses, batches

__all__ = [
    "RidgeSolution",
    "Split",
    "batches",
    "best_penalties",
    "cross_validated_scores",
    "missing_patterns",
    "ridge",
]

Split = tuple[np.ndarray, np.ndarray]  # rows to fit, rows to score

_ROUNDING = 1e-5  # of coefficients, relative: where float32 would lose more, float64 is used


def ridge(
    gram: GramStatistics,
    Y: Any,
    alpha: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    target_batch: int = 1024,
    subset: Subset | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Solve ridge for every target from one decomposition.

    Minimises ``Σ_i w_i (Y[i, t] - b_t - X[i] c_t)² + alpha[t] ||c_t||²`` separately for each target t.

    Parameters
    ----------
    gram : GramStatistics
        Of the features X and the weights w; without centring b is 0.
    Y : array of shape (n_stimuli, n_targets)
        Responses, of NumPy or torch; those of NumPy go to the device of the features batch by batch.
    alpha : ndarray of shape (n_targets,)
        Penalty per target, in squared units of X; at 0 the solution of least norm.
    rows : ndarray of int, optional
        Stimuli to fit; all by default.
    target_batch : int
        Targets solved at a time, which bounds memory.
    subset : Subset, optional
        ``gram.decompose(rows)``, where it is there already.

    Returns
    -------
    coef : ndarray of shape (n_targets, n_features)
        In the dtype of X.
    intercept : ndarray of shape (n_targets,), float64

    Notes
    -----
    Float32 features are solved in float32 where an estimate of its rounding stays under 1e-5 of the norm of
    the coefficients, and in float64 elsewhere: small penalties, nearly collinear features.

    References
    ----------
    Hastie, Tibshirani & Friedman (2009), section 3.4.1.
    """
    subset = gram.decompose(np.arange(Y.shape[0]) if rows is None else rows) if subset is None else subset
    responses = ScaledResponses(gram, Y, subset.rows, target_batch)
    solution = RidgeSolution(subset, responses)
    for part in batches(responses.n_targets, target_batch):
        solution.solve(part, responses.values(subset.rows, part), np.asarray(alpha)[part])
    return solution.finish()


class RidgeSolution:
    """Coefficients and intercepts of many targets, written a batch at a time.

    Parameters
    ----------
    subset : Subset
    responses : ScaledResponses
        Of the subset's stimuli.
    """

    def __init__(self, subset: Subset, responses: ScaledResponses) -> None:
        gram = subset.gram
        self.subset = subset
        self.responses = responses
        self._rounding = float(np.finfo(np.float32).eps) if "32" in str(gram.dtype) else 0.0
        self._row_norm = subset.row_norm() if self._rounding else 0.0
        dtype = np.float32 if self._rounding else np.float64
        self.coef = np.empty((responses.n_targets, gram.n_features), dtype=dtype)
        self._waiting: dict[Any, list[tuple[np.ndarray, Any]]] = {}  # for features that are read only once

    def store(self) -> Any:
        """Return an array of shape (rank, n_targets) to keep what `solve` takes as `latent` in, until it is solved.

        It lies in the memory of the coefficients of the same targets where they are of one kind.
        """
        left = self.subset.decomposition.left
        if isinstance(left, np.ndarray) and left.shape[1] <= self.coef.shape[1]:
            return self.coef[:, : left.shape[1]].T
        return like(np.empty((left.shape[1], len(self.coef)), dtype=self.coef.dtype), left)

    def solve(self, part: slice, values: Any, alpha: np.ndarray, latent: Any = None) -> None:
        """Solve a batch of targets.

        Parameters
        ----------
        part : slice of the targets
        values : array of shape (n_rows, n_batch)
            Their scaled responses.
        alpha : ndarray of shape (n_batch,)
        latent : array of shape (rank, n_batch), optional
            ``subset.latent(values)``, where it is there already.
        """
        latent = self.subset.latent(values) if latent is None else latent
        distinct, place = np.unique(alpha, return_inverse=True)
        shrink = self.subset.decomposition.shrink(distinct)
        weights = array_namespace(latent).astype(shrink, latent.dtype)
        weights = take_columns(weights, place) * latent
        columns = np.arange(part.start, part.stop)
        lossy = self._lossy(to_numpy((shrink**2).sum(0))[place], weights, values)
        exact = np.flatnonzero(lossy)
        if not lossy.all():
            some = weights if not lossy.any() else take_columns(weights, np.flatnonzero(~lossy))
            self._write(columns[~lossy], some)
        if lossy.any():
            latent = self.subset.latent(self.responses.values(self.subset.rows, columns[exact], np.float64))
            self._write(columns[exact], take_columns(shrink, place[exact]) * latent)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Return coefficients (n_targets, n_features) and intercepts (n_targets,), float64."""
        for parts in self._waiting.values():
            weights = [weights for _, weights in parts]
            self._make(
                np.concatenate([columns for columns, _ in parts]),
                array_namespace(weights[0]).concat(weights, axis=1),
            )
        intercept = np.zeros(len(self.coef))
        if self.subset.gram.center:
            mean = to_numpy(self.subset.mean())
            for part in batches(len(self.coef), 256):
                intercept[part] = self.responses.offset[part] - self.coef[part] @ mean
        return self.coef, intercept

    def _write(self, columns: np.ndarray, weights: Any) -> None:
        unit = self.responses.unit[columns]
        xp = array_namespace(weights)
        weights = weights * xp.astype(like(1 / np.where(unit > 0, unit, 1.0), weights), weights.dtype)
        if self.subset.gram.streamed:
            self._waiting.setdefault(str(weights.dtype), []).append((columns, weights))
        else:
            self._make(columns, weights)

    def _make(self, columns: np.ndarray, weights: Any) -> None:
        if len(columns) == columns[-1] - columns[0] + 1:
            self.subset.coefficients(weights, self.coef[columns[0] : columns[-1] + 1])
            return
        found = np.empty((len(columns), self.coef.shape[1]), dtype=self.coef.dtype)
        self.subset.coefficients(weights, found)
        self.coef[columns] = found

    def _lossy(self, gain: np.ndarray, weights: Any, values: Any) -> np.ndarray:
        """Say for which targets float32 would round the coefficients by more than 1e-5 of their norm.

        Each inner product of a unit direction and the responses is off by about ``eps ||y||``; `gain` is the sum over
        directions of the squares of what it is multiplied by. Coefficients made from weights of stimuli are off by
        ``eps ||row|| ||weights||`` besides.
        """
        if not self._rounding:
            return np.zeros(len(gain), dtype=bool)
        noise = gain * to_numpy(column_dots(values, values))
        if self._row_norm:
            scale = self.subset.decomposition.scale[:, None]
            dual = weights / array_namespace(weights).astype(scale, weights.dtype)
            noise += self._row_norm**2 * to_numpy(column_dots(dual, dual))
        return self._rounding**2 * noise > _ROUNDING**2 * to_numpy(column_dots(weights, weights))


def cross_validated_scores(
    gram: GramStatistics,
    Y: Any,
    alphas: np.ndarray,
    splits: Sequence[Split],
    *,
    scoring: str = "r2",
    target_batch: int = 1024,
) -> np.ndarray:
    """Score every penalty on held-out stimuli for every target, one decomposition a fold.

    Parameters
    ----------
    gram : GramStatistics
    Y : array of shape (n_stimuli, n_targets)
        Of NumPy or torch.
    alphas : ndarray of shape (n_alphas,)
    splits : sequence of (rows to fit, rows to score)
    scoring : {"r2", "pearson_r"}
        R² about the held-out mean, or Pearson's r, both weighted as the fit is; 0 where undefined.
    target_batch : int

    Returns
    -------
    scores : ndarray of shape (n_alphas, n_targets), float64
        Mean over the folds.
    """
    rows = np.unique(np.concatenate([part for split in splits for part in split]))
    responses = ScaledResponses(gram, Y, rows, target_batch)
    scores = np.zeros((len(alphas), responses.n_targets))
    for train, test in splits:
        fold = HeldOut(gram.decompose(train), test, alphas)
        for part in batches(responses.n_targets, target_batch):
            targets = fold.prepare(responses, part)
            found = [fold.score(targets, position, scoring) for position in range(len(alphas))]
            scores[:, part] += to_numpy(array_namespace(found[0]).stack(found))  # one wait for a GPU
    return scores / len(splits)


def best_penalties(scores: np.ndarray, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best penalty and its score for every target; the largest of equally good penalties.

    Parameters
    ----------
    scores : ndarray of shape (n_alphas, n_targets)
    alphas : ndarray of shape (n_alphas,)

    Returns
    -------
    alpha, score : ndarray of shape (n_targets,)
    """
    order = np.argsort(alphas)[::-1]
    best = order[np.argmax(scores[order], axis=0)]
    return alphas[best], scores[best, np.arange(scores.shape[1])]


def missing_patterns(Y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (targets, rows) for every pattern of missing responses: the stimuli that the targets share."""
    present = ~np.isnan(Y)
    complete = present.all(axis=0)
    if complete.all():
        yield np.arange(Y.shape[1]), np.arange(len(Y))
        return
    packed = np.packbits(present, axis=0)
    _, first, member = np.unique(packed, axis=1, return_index=True, return_inverse=True)
    for pattern, target in enumerate(first):
        yield np.flatnonzero(member.ravel() == pattern), np.flatnonzero(present[:, target])
