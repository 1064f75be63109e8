"""Variance partitioning: what several feature spaces explain of each target alone, and what they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.model_selection import check_cv

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.model_selection._evaluate import evaluate
from featpipe.model_selection._scorers import mean_over_folds
from featpipe.model_selection._splitters import make_cv

_MOST_SPACES = 5  # 31 fits


@dataclass(frozen=True)
class VariancePartition:
    """Held-out R² of every combination of feature spaces, and its parts.

    Parameters
    ----------
    r2 : DataFrame of n_targets rows
        A column per combination, such as ``early``, ``late``, ``early + late``.
    parts : DataFrame of n_targets rows
        A column per part: ``early`` (unique), ``early & late`` (shared by these and no other). A row adds up to R²
        of the model of all spaces.
    """

    r2: pd.DataFrame
    parts: pd.DataFrame

    def means(self, masks: Mapping[str, np.ndarray] | None = None) -> pd.DataFrame:
        """Return the parts averaged over all targets, and over named groups: a row each, a column per part."""
        rows = {"all targets": self.parts.mean()}
        rows |= {name: self.parts[np.asarray(mask)].mean() for name, mask in (masks or {}).items()}
        return pd.DataFrame(rows).T


def partition_variance(
    spaces: Mapping[str, Any],
    X,
    Y,
    *,
    estimator,
    cv=5,
    groups=None,
    sample_weight=None,
    target_names=None,
    n_jobs=None,
) -> VariancePartition:
    """Fit every combination of feature spaces on the same folds, and split their held-out R².

    Each combination is a model of its own, with penalties of its own: the features of its spaces side by side, in
    a clone of `estimator`. See `partition_r2` for the parts.

    Parameters
    ----------
    spaces : mapping of str to feature space
        Two to five. A space is a transformer of X, such as ``CachedFeatures(layers=["layer1"])`` or a pipeline that
        ends in a scaler, which is fitted inside the folds; of `LayerBlocks` also a name or list of names of layers;
        of a matrix also the columns: a slice, or an array of int or bool.
    X : array of ids, shape (n_stimuli,), matrix of shape (n_stimuli, n_features), or LayerBlocks
    Y : array of shape (n_stimuli, n_targets), or `Responses`
    estimator : estimator
        A regressor of matrices. Where it has a parameter ``widths``, as `BandedRidge` has, it is told how many columns
        each space has, so that each gets its own penalty: recommended, because one penalty for spaces of unlike
        size and scale understates what is unique.
    cv : int, splitter or list of (train, test)
        See `evaluate`; equal for all combinations.
    groups, sample_weight : array of shape (n_stimuli,), optional
    target_names : sequence of length n_targets, optional
    n_jobs : int, optional

    Returns
    -------
    VariancePartition

    Raises
    ------
    RequestError
        Fewer than two spaces or more than five, or a space that X does not have.

    References
    ----------
    Borcard, Legendre & Drapeau (1992), Ecology 73, "Partialling out the spatial component of ecological variation".
    Lescroart, Stansbury & Gallant (2015), Front. Comput. Neurosci. 9, section "Variance partitioning". de Heer et al.
    (2017), J. Neurosci. 37, "Variance partitioning".
    """
    if not isinstance(spaces, Mapping):
        raise RequestError(f"spaces must map names to feature spaces, got {type(spaces).__name__}.")
    _check_names(list(spaces))
    folds = _folds(cv, X, groups)
    scores = {}
    for names in _combinations(list(spaces)):
        model = JoinedSpaces({name: spaces[name] for name in names}, estimator)
        found = evaluate(
            model, X, Y, cv=folds, scoring="r2", groups=groups, sample_weight=sample_weight, n_jobs=n_jobs,
            target_names=target_names,
        )  # fmt: skip
        scores[names] = mean_over_folds(found.fold_scores("r2"))
        index = pd.Index(found.target_names, name="target")
    parts = partition_r2(scores)
    return VariancePartition(_frame(scores, " + ", index), _frame(parts, " & ", index))


def partition_r2(r2: Mapping[tuple[str, ...], np.ndarray]) -> dict[tuple[str, ...], np.ndarray]:
    """Split R² of the model of all spaces into what each set of spaces explains and no other space does.

    With f(T) the R² of the spaces T, f(∅) = 0, and N all spaces, the part of exactly the spaces S is

        part(S) = (-1)^(|S|+1) Σ_{U ⊆ S} (-1)^|U| f(N \\ U),

    which for two spaces is ``f(AB) - f(B)`` and ``f(AB) - f(A)`` (unique) and ``f(A) + f(B) - f(AB)`` (shared).

    Parameters
    ----------
    r2 : mapping of tuple of names to array of shape (n_targets,)
        Held-out R² of every combination that is not empty, in any order of its names.

    Returns
    -------
    parts : dict of tuple of names to ndarray of shape (n_targets,)
        They add up to R² of the model of all spaces. Held-out R² is not additive, so a part may be negative: a unique
        part where a space only adds noise, a shared part where spaces explain more together than the sum of each.

    Raises
    ------
    RequestError
        A combination is missing.

    References
    ----------
    Borcard, Legendre & Drapeau (1992); de Heer et al. (2017), "Variance partitioning", for three spaces.
    """
    given = {frozenset(names): np.asarray(values, dtype=np.float64) for names, values in r2.items()}
    names = list(dict.fromkeys(name for combination in r2 for name in combination))
    wanted = list(_combinations(names))
    if missing := [combination for combination in wanted if frozenset(combination) not in given]:
        raise RequestError(
            f"R² of the spaces {' + '.join(missing[0])} is missing. Give that of each of the {len(wanted)} "
            f"combinations of {', '.join(names)}."
        )
    whole = frozenset(names)
    given[frozenset()] = np.zeros_like(given[whole])
    return {
        part: sum(
            (-1) ** (len(part) + 1 + len(left_out)) * given[whole - frozenset(left_out)]
            for size in range(len(part) + 1)
            for left_out in combinations(part, size)
        )
        for part in wanted
    }


class JoinedSpaces(RegressorMixin, BaseEstimator):
    """A regressor on several feature spaces side by side.

    Parameters
    ----------
    spaces : mapping of str to feature space
        See `partition_variance`.
    estimator : estimator

    Attributes
    ----------
    transformers_ : list of fitted transformers, None for spaces that are layers or columns
    widths_ : tuple of int
        Columns of each space.
    estimator_ : fitted estimator
    """

    __metadata_request__fit = {"sample_weight": True, "groups": True}  # noqa: RUF012 (scikit-learn's form)

    def __init__(self, spaces, estimator):
        self.spaces = spaces
        self.estimator = estimator

    def fit(self, X, y, sample_weight=None, groups=None):
        """Fit the spaces, then the estimator on all their columns."""
        self.transformers_ = [_fitted(space, X, y) for space in self.spaces.values()]
        columns = self._columns(X)
        self.widths_ = tuple(part.shape[1] for part in columns)
        estimator = clone(self.estimator)
        if "widths" in estimator.get_params(deep=False):
            estimator.set_params(widths=self.widths_)
        wanted = {"sample_weight": sample_weight, "groups": groups}
        taken = {k: v for k, v in wanted.items() if v is not None and _takes(estimator, k)}
        self.estimator_ = estimator.fit(np.concatenate(columns, axis=1), y, **taken)
        return self

    def predict(self, X):
        """Predict responses: ndarray of shape (n_stimuli, n_targets)."""
        return self.estimator_.predict(np.concatenate(self._columns(X), axis=1))

    def _columns(self, X) -> list[np.ndarray]:
        return [
            _selected(X, space) if transformer is None else _matrix(transformer.transform(X))
            for space, transformer in zip(self.spaces.values(), self.transformers_, strict=True)
        ]


def _fitted(space, X, y):
    """Return a fitted clone of a transformer, None for layers or columns."""
    return clone(space).fit(X, y) if hasattr(space, "transform") else None


def _selected(X, space) -> np.ndarray:
    if isinstance(X, LayerBlocks):
        return X.select(space).to_matrix()
    if np.ndim(X) != 2:
        raise RequestError(
            f"The feature space {space!r} names columns or layers, but X is {type(X).__name__} of {np.ndim(X)} axes. "
            "Give a transformer of X, such as CachedFeatures, for each space."
        )
    matrix = np.asarray(X)
    try:
        columns = np.atleast_1d(np.arange(matrix.shape[1])[space])
    except (IndexError, TypeError, ValueError):
        columns = np.array([], dtype=int)
    if columns.ndim != 1 or not columns.size:
        raise RequestError(
            f"The feature space {space!r} names no columns of X, which has {matrix.shape[1]}. Give a slice, or an "
            f"array of numbers from 0 to {matrix.shape[1] - 1} or of bool, for each space."
        )
    return matrix[:, columns]


def _matrix(features) -> np.ndarray:
    return features.to_matrix() if isinstance(features, LayerBlocks) else np.asarray(features)


def _takes(estimator, name: str) -> bool:
    return bool(estimator.get_metadata_routing().consumes("fit", [name]))


def _folds(cv, X, groups) -> list[tuple[np.ndarray, np.ndarray]]:
    ids = X.ids if hasattr(X, "ids") else X
    splitter = check_cv(make_cv(cv, len(X), groups=groups, ids=ids if np.ndim(ids) == 1 else None))
    labels = None if groups is None else np.asarray(groups)
    return list(splitter.split(np.empty((len(X), 1)), groups=labels))


def _check_names(names: list[str]) -> None:
    if not 2 <= len(names) <= _MOST_SPACES:
        raise RequestError(
            f"Variance is partitioned between 2 to {_MOST_SPACES} feature spaces, got {len(names)}: every "
            "combination is fitted, 2^n - 1 in all."
        )
    if bad := [name for name in names if "+" in name or "&" in name]:
        raise RequestError(
            f"The space {bad[0]!r} must be named without '+' and '&', which stand for combinations."
        )


def _combinations(names: list[str]):
    return (chosen for size in range(1, len(names) + 1) for chosen in combinations(names, size))


def _frame(columns: Mapping[tuple[str, ...], np.ndarray], sign: str, index: pd.Index) -> pd.DataFrame:
    return pd.DataFrame({sign.join(names): values for names, values in columns.items()}, index=index)
