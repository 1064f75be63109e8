"""Ridge regression of many targets, each with its own penalty, from one decomposition of the features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from featpipe.encoding._gram import Decomposition, GramStatistics, Subset

Split = tuple[np.ndarray, np.ndarray]  # rows to fit, rows to score


def ridge(gram: GramStatistics, Y: np.ndarray, alpha: np.ndarray, *, rows=None, target_batch: int = 1024):
    """Solve ridge for every target from one decomposition.

    Minimises ``Σ_i w_i (Y[i, t] - b_t - X[i] c_t)² + alpha[t] ||c_t||²`` separately for each target t.

    Parameters
    ----------
    gram : GramStatistics
        Of the features X and the weights w; without centring b is 0.
    Y : ndarray of shape (n_stimuli, n_targets)
        Responses.
    alpha : ndarray of shape (n_targets,)
        Penalty per target, in squared units of X; at 0 the solution of least norm.
    rows : ndarray of int, optional
        Stimuli to fit; all by default.
    target_batch : int
        Targets solved at a time, which bounds memory.

    Returns
    -------
    coef : ndarray of shape (n_targets, n_features)
        In the dtype of X.
    intercept : ndarray of shape (n_targets,), float64

    References
    ----------
    Hastie, Tibshirani & Friedman (2009), section 3.4.1.
    """
    rows = np.arange(len(Y)) if rows is None else rows
    subset = gram.decompose(rows)
    mean = subset.mean()
    left = subset.decomposition.left
    coef = np.empty((Y.shape[1], gram.n_features), dtype=gram.dtype)
    intercept = np.zeros(Y.shape[1])
    for part in batches(Y.shape[1], target_batch):
        response, offset = _centred_responses(subset, Y, part)
        # float64 up to here: rounding of the responses would be amplified by the smallest penalty
        weights = subset.decomposition.shrink(alpha[part]) * (left.T @ response)  # (rank, n_batch)
        subset.coefficients(weights, coef[part])
        if gram.center:
            intercept[part] = offset - coef[part] @ mean
    return coef, intercept


def cross_validated_scores(
    gram: GramStatistics,
    Y: np.ndarray,
    alphas: np.ndarray,
    splits: Sequence[Split],
    *,
    scoring: str = "r2",
    target_batch: int = 1024,
) -> np.ndarray:
    """Score every penalty on held-out stimuli for every target.

    Parameters
    ----------
    gram : GramStatistics
    Y : ndarray of shape (n_stimuli, n_targets)
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
    scores = np.zeros((len(alphas), Y.shape[1]))
    for train, test in splits:
        subset = gram.decompose(train)
        held_out = _HeldOut(subset, test, alphas)
        for part in batches(Y.shape[1], target_batch):
            scores[:, part] += held_out.score(Y, part, scoring)
    return scores / len(splits)


class _HeldOut:
    """The held-out stimuli of one fold: predictions of every penalty, scored without being kept.

    Deviations of the predictions from their mean enter scores only through inner products, so where there
    are more held-out stimuli than directions these rows are rotated to as many rows as directions.
    """

    def __init__(self, subset: Subset, test: np.ndarray, alphas: np.ndarray) -> None:
        self.subset = subset
        self.test = test
        self.center = subset.gram.center
        self.weight = subset.gram.weight[test]
        self.total = self.weight.sum()
        dtype = subset.gram.dtype
        projected = subset.project(test)
        mean = self.weight @ projected / self.total
        projected = np.sqrt(self.weight)[:, None] * (projected - mean)
        self.rotation = None
        if len(test) > projected.shape[1]:
            rotation, projected = np.linalg.qr(projected)
            self.rotation = rotation.astype(dtype, copy=False)
        self.shrink = _shrink_table(subset.decomposition, alphas)
        self.mean = (mean * self.shrink).astype(dtype, copy=False)  # (n_alphas, rank)
        self.projected = projected.astype(dtype, copy=False)
        self.left = subset.decomposition.left.astype(dtype, copy=False)

    def score(self, Y: np.ndarray, part: slice, scoring: str) -> np.ndarray:
        """Return the scores of a batch of targets: ndarray of shape (n_alphas, n_batch)."""
        dtype = self.projected.dtype
        response, offset = _centred_responses(self.subset, Y, part)
        unit = _units(
            response
        )  # scores are free of units, squares in float32 of field strengths in tesla are not
        latent = self.left.T @ (response * unit).astype(dtype, copy=False)  # (rank, n_batch)
        target, bias, scatter, lost = self._targets(Y, part, offset, unit)
        scores = np.empty((len(self.shrink), latent.shape[1]))
        for position, shrink in enumerate(self.shrink):
            predicted = (self.projected * shrink.astype(dtype)) @ latent
            if scoring == "r2":
                predicted -= target
                misfit = bias - self.mean[position] @ latent
                error = _squares(predicted) + lost + self.total * misfit.astype(np.float64) ** 2
                scores[position] = 1 - _safe_ratio(error, scatter)
            else:
                cross = np.einsum("vt,vt->t", predicted, target).astype(np.float64)
                scores[position] = _safe_ratio(cross, np.sqrt(_squares(predicted) * scatter))
        scores[:, scatter == 0] = 0.0
        return scores

    def _targets(self, Y: np.ndarray, part: slice, offset: np.ndarray, unit: np.ndarray):
        """Return held-out responses about their mean, that mean, their scatter, and what rotation loses."""
        response = Y[self.test, part].astype(np.float64)
        mean = self.weight @ response / self.total
        largest = np.abs(response).max(axis=0, initial=0.0)
        response -= mean
        response *= np.sqrt(self.weight)[:, None]
        response *= unit
        scatter = _squares(response)
        scatter[scatter <= self.total * (1e-13 * largest * unit) ** 2] = 0.0  # constant but for rounding
        target = response.astype(self.projected.dtype, copy=False)
        if self.rotation is None:
            return target, (mean - offset) * unit, scatter, 0.0
        target = self.rotation.T @ target
        return target, (mean - offset) * unit, scatter, np.maximum(scatter - _squares(target), 0.0)


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


def batches(n_targets: int, target_batch: int) -> Iterator[slice]:
    """Yield slices of at most `target_batch` targets."""
    return (slice(start, min(start + target_batch, n_targets)) for start in range(0, n_targets, target_batch))


def _centred_responses(subset: Subset, Y: np.ndarray, part: slice) -> tuple[np.ndarray, np.ndarray]:
    """Return a batch of responses less their weighted mean (float64), and that mean."""
    response = Y[subset.rows, part].astype(np.float64)
    if not subset.gram.center:
        return response, np.zeros(response.shape[1])
    offset = subset.weight @ response / subset.total
    return response - offset, offset


def _units(response: np.ndarray) -> np.ndarray:
    """Return a power of two per target that brings its responses near 1, so that nothing is rounded."""
    largest = np.maximum(response.max(axis=0), -response.min(axis=0))
    return np.exp2(-np.clip(np.frexp(largest)[1], -1000, 1000).astype(np.float64))


def _shrink_table(decomposition: Decomposition, alphas: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(decomposition.shrink(alphas).T)  # (n_alphas, rank)


def _squares(values: np.ndarray) -> np.ndarray:
    return np.einsum("vt,vt->t", values, values).astype(np.float64)


def _safe_ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
