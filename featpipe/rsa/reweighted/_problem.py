"""Ridge from pairs to dissimilarities, with predictors given as columns, as a metric, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featpipe.rsa.reweighted._metric import Embedding, floored, laplacian, quadratic
from featpipe.rsa.reweighted._solver import non_negative_ridge, ridge_path

_CHUNK = 256  # columns at a time


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of stimuli within stimulus sets, and what is known of them.

    Parameters
    ----------
    first, second : ndarray of int, shape (n_pairs,)
        Rows of the two stimuli.
    stimulus_set : ndarray of int, shape (n_pairs,)
    columns : ndarray of shape (n_pairs, n_columns), float32
    kind : ndarray of str, shape (n_columns,)
        "channel", "layer" or "main effect".
    group : ndarray of int, shape (n_columns,)
        The layer of each column, for floors and balance.
    means : list of ndarray of shape (n_stimuli, n_channels)
        Channel means of the layers of the metric; empty without.
    """

    first: np.ndarray
    second: np.ndarray
    stimulus_set: np.ndarray
    columns: np.ndarray
    kind: np.ndarray
    group: np.ndarray
    means: list[np.ndarray]

    def among(self, stimuli: np.ndarray) -> np.ndarray:
        """Return the positions of pairs whose stimuli are both among some rows."""
        return np.flatnonzero(np.isin(self.first, stimuli) & np.isin(self.second, stimuli))


@dataclass(frozen=True)
class Ridge:
    """How pairs are fitted.

    Parameters
    ----------
    shares : mapping of str to float
        Part of the variance that each kind of predictor has before it is weighted: a kind with a larger share is
        penalised less.
    signed : bool
    floor : float
    balance : bool
        Layers have equal parts of their kind's share, not columns.
    tol : float
    precise : bool
        Multiply in float64.
    """

    shares: Mapping[str, float]
    signed: bool = True
    floor: float = 0.1
    balance: bool = True
    tol: float = 1e-4
    precise: bool = False

    def fit(self, pairs: Pairs, chosen: np.ndarray, y: np.ndarray, alphas: np.ndarray) -> Solution:
        """Fit some pairs with every penalty.

        Parameters
        ----------
        pairs : Pairs
        chosen : ndarray of int
            Positions of the pairs to fit.
        y : ndarray of shape (len(chosen),)
        alphas : ndarray of shape (n_alphas,)
            Penalties as multiples of the mean squared length of a pair's predictors.
        """
        centre = _Centring(pairs.stimulus_set[chosen])
        y = centre(y)
        part = _ScaledColumns.of(pairs, chosen, centre, self)
        metric = _Metric.of(pairs, chosen, self)
        if not self.signed:
            gram, right = part.gram(), part.scaled.T @ y
            weights = non_negative_ridge(gram, right, alphas)
            return Solution(part.scale[:, None] * weights, None, None)

        def product(v: np.ndarray) -> np.ndarray:
            total = part.product(v)
            return centre(total if metric is None else total + metric.product(v))

        dual = ridge_path(product, y, alphas, tol=self.tol)
        return Solution(part.coef(dual), dual, metric)


@dataclass(frozen=True, eq=False)
class Solution:
    """Weights for every penalty.

    Parameters
    ----------
    coef : ndarray of shape (n_columns, n_alphas)
        In the units of the columns.
    dual : ndarray of shape (n_pairs, n_alphas) or None
    metric : _Metric or None
    """

    coef: np.ndarray
    dual: np.ndarray | None
    metric: _Metric | None

    def predict(self, pairs: Pairs, chosen: np.ndarray) -> np.ndarray:
        """Return dissimilarities of some pairs, up to an offset: (n_chosen, n_alphas)."""
        total = (pairs.columns[chosen] @ self.coef.astype(np.float32)).astype(np.float64)
        if self.metric is None or self.dual is None:
            return total
        first, second = pairs.first[chosen], pairs.second[chosen]
        products = self.metric.products(pairs.means)
        for place in range(total.shape[1]):
            total[:, place] += quadratic(products, self.metric.weights(self.dual[:, place]))[first, second]
        return total

    def directions(self, place: int) -> tuple[np.ndarray, list[np.ndarray], list[Embedding]]:
        """Return the metric of one penalty: weights, directions per layer, and embeddings; empty without a metric."""
        if self.metric is None or self.dual is None:
            return np.zeros(0), [], []
        return (*self.metric.directions(self.dual[:, place]), self.metric.embeddings)


class _Centring:
    """Take the mean of each stimulus set away: an intercept per set."""

    def __init__(self, stimulus_set: np.ndarray) -> None:
        _, self.code, self.count = np.unique(stimulus_set, return_inverse=True, return_counts=True)

    def means(self, values: np.ndarray) -> np.ndarray:
        """Return the mean of each set: (n_sets,) or (n_sets, n_columns)."""
        if values.ndim == 1:
            return np.bincount(self.code, values, len(self.count)) / self.count
        return np.stack(
            [values[self.code == code].mean(axis=0, dtype=np.float64) for code in range(len(self.count))]
        )

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values - self.means(values)[self.code])


@dataclass(frozen=True, eq=False)
class _ScaledColumns:
    """Columns of some pairs, centred within sets and scaled: (n_pairs, n_columns), and what they were divided by."""

    scaled: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, pairs: Pairs, chosen: np.ndarray, centre: _Centring, ridge: Ridge) -> _ScaledColumns:
        n_columns = pairs.columns.shape[1]
        scaled = np.empty((len(chosen), n_columns), dtype=np.float64 if ridge.precise else np.float32)
        deviation = np.empty(n_columns)
        for start in range(0, n_columns, _CHUNK):
            columns = slice(start, start + _CHUNK)
            part = centre(pairs.columns[chosen, columns].astype(np.float64))
            deviation[columns] = np.sqrt(np.mean(part**2, axis=0))
            scaled[:, columns] = part
        scale = _scales(deviation, pairs, ridge)
        scaled *= scale.astype(scaled.dtype)
        return cls(scaled, scale)

    def product(self, v: np.ndarray) -> np.ndarray:
        dtype = self.scaled.dtype
        return np.asarray(self.scaled @ (self.scaled.T @ v.astype(dtype)), dtype=np.float64)

    def coef(self, dual: np.ndarray) -> np.ndarray:
        weights = self.scaled.T @ dual.astype(self.scaled.dtype)
        return np.asarray(self.scale[:, None] * weights, dtype=np.float64)

    def gram(self) -> np.ndarray:
        return np.asarray(self.scaled.T @ self.scaled, dtype=np.float64)


def _scales(deviation: np.ndarray, pairs: Pairs, ridge: Ridge) -> np.ndarray:
    scale = np.zeros(len(deviation))
    for kind in np.unique(pairs.kind):
        of_kind = pairs.kind == kind
        groups = np.unique(pairs.group[of_kind])
        for group in groups:
            own = of_kind & (pairs.group == group)
            part = 1 / (len(groups) * own.sum()) if ridge.balance else 1 / of_kind.sum()
            scale[own] = np.sqrt(ridge.shares.get(str(kind), 0.0) * part) / floored(
                deviation[own], ridge.floor
            )
    return scale


@dataclass(frozen=True, eq=False)
class _Metric:
    """The kernel of a metric: pairs (i, j) and (k, l) have ``((f_i - f_j)'(f_k - f_l))²``, summed over layers."""

    first: np.ndarray
    second: np.ndarray
    embeddings: list[Embedding]
    trained: list[np.ndarray]  # (n_training, n_channels) per layer
    own: np.ndarray  # (n_layers, n_training, n_training)
    share: float

    @classmethod
    def of(cls, pairs: Pairs, chosen: np.ndarray, ridge: Ridge) -> _Metric | None:
        share = ridge.shares.get("metric", 0.0)
        if not pairs.means or share == 0:
            return None
        stimuli, places = np.unique(
            np.concatenate([pairs.first[chosen], pairs.second[chosen]]), return_inverse=True
        )
        embeddings = [Embedding.fit(means[stimuli], ridge.floor) for means in pairs.means]
        trained = [
            embedding.transform(means[stimuli])
            for embedding, means in zip(embeddings, pairs.means, strict=True)
        ]
        own = np.stack([rows @ rows.T for rows in trained])
        first, second = np.split(places, 2)
        return cls(first, second, embeddings, trained, own, share / len(trained))

    def weights(self, dual: np.ndarray) -> np.ndarray:
        return self.share * laplacian(dual, self.first, self.second, self.own.shape[1])

    def product(self, v: np.ndarray) -> np.ndarray:
        return quadratic(self.own, self.weights(v))[self.first, self.second]

    def products(self, means: Sequence[np.ndarray]) -> np.ndarray:
        """Return inner products of stimuli with the training stimuli: (n_layers, n_stimuli, n_training)."""
        return np.stack(
            [
                embedding.transform(own) @ rows.T
                for embedding, own, rows in zip(self.embeddings, means, self.trained, strict=True)
            ]
        )

    def directions(self, dual: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the metric as weights (n_directions,) of directions (n_directions, n_channels) per layer."""
        values, vectors = np.linalg.eigh(self.weights(dual))
        keep = np.abs(values) > np.finfo(float).eps * len(values) * np.abs(values).max(initial=0)
        return values[keep], [
            vectors[:, keep].T @ rows / np.sqrt(embedding.size)  # of embeddings of length one
            for rows, embedding in zip(self.trained, self.embeddings, strict=True)
        ]
