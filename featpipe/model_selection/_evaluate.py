"""`evaluate`: outer cross-validation over stimuli, with searches nested inside."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
import sklearn
from sklearn.base import clone
from sklearn.model_selection import check_cv
from sklearn.model_selection._search import BaseSearchCV
from threadpoolctl import threadpool_limits

from featpipe.errors import RequestError
from featpipe.metrics import Moments, moments
from featpipe.model_selection._evaluation import Evaluation
from featpipe.model_selection._frozen import refuse_frozen_leaks
from featpipe.model_selection._routing import routed, take
from featpipe.model_selection._scorers import Metric, get_metrics, score_targets
from featpipe.model_selection._splitters import SetKFold, make_cv
from featpipe.rsa import RDMs

_SHOWN = 3  # ids that an error names


@dataclass(frozen=True)
class _Task:
    """What every fold does. X and Y travel beside it, where joblib's backends find and share them."""

    pipeline: Any
    wanted: Mapping[str, Any]  # for fit
    weight: np.ndarray | None  # for the scores
    metrics: Mapping[str, Metric]
    keep: tuple[bool, bool]  # predictions, estimator
    parent: int  # process that asked
    threads: int | None


@dataclass(frozen=True)
class _Fold:
    scores: dict[str, np.ndarray]
    moments: Moments | None
    prediction: Any
    estimator: Any
    chosen: dict[str, Any] | None


def evaluate(
    pipeline,
    X,
    Y,
    *,
    cv=5,
    scoring=None,
    groups=None,
    sample_weight=None,
    weight_scores=False,
    target_names=None,
    n_jobs=None,
    threads=None,
    progress=None,
    return_predictions=False,
    return_estimators=False,
) -> Evaluation:
    """Fit a pipeline on the training stimuli of each fold and score it on the others, target by target.

    Searches inside the pipeline see training stimuli only. `groups` and `sample_weight` are routed to the
    steps and inner splitters that ask for them; those that were never told (a plain
    `sklearn.linear_model.Ridge`) do without.

    Parameters
    ----------
    pipeline : estimator
        Cloned for every fold.
    X : array of shape (n_stimuli,) of ids, or anything of that length that indexes by rows
    Y : array of shape (n_stimuli, n_targets) or (n_stimuli,), Responses, or RDMs
        Responses, NaN where a trial is missing; or any object with ``len`` and ``Y[rows, ...]``. Those that stay
        in their file are read inside each fold; only searches are given them unread, for each candidate to read.
    cv : int, {"group", "set"}, splitter or iterable of (train, test)
        Outer folds, see `make_cv`.
    scoring : str, sequence of str, or mapping of names to functions, optional
        See `get_metrics`. "pearson_r" and "r2" of responses, "rdm_rho", "rdm_r2" and "rdm_percent" of RDMs by
        default.
    groups : array of shape (n_stimuli,), optional
        Never split, neither by an outer int nor by inner splitters that take groups.
    sample_weight : array of shape (n_stimuli,), optional
        Weight of each stimulus in the fit, such as its number of repeats.
    weight_scores : bool
        Weight held-out stimuli in the scores as well. By default each counts once, so that scores of
        models fitted with and without weights compare.
    target_names : sequence of length n_targets, optional
    n_jobs : int, optional
        Folds at a time, through joblib (``joblib.parallel_config("dask")`` uses a cluster).
    threads : int, optional
        BLAS threads of a fold: with the same number, and the same batches of targets, scores are equal bit for
        bit however many folds run at a time. By default the processors are divided among the folds.
    progress : callable (folds done, folds in all), optional
    return_predictions, return_estimators : bool

    Returns
    -------
    Evaluation

    Raises
    ------
    RequestError
        When an id is on both sides of a fold, a frozen step was fitted on stimuli that a fold scores, or lengths
        differ.

    Warns
    -----
    UserWarning
        When no step takes the sample weights, or an inner search ignores the groups.
    """
    Y = np.asarray(Y) if hasattr(Y, "iloc") or isinstance(Y, list) else Y
    _check_lengths(len(X), Y=Y, groups=groups, sample_weight=sample_weight)
    splits = _outer_splits(cv, X, groups, by_set=isinstance(Y, RDMs))
    _refuse_leaks(X, splits)
    refuse_frozen_leaks(pipeline, _ids(X), splits)
    fitted, wanted = routed(pipeline, {"groups": groups, "sample_weight": sample_weight})
    workers = min(len(splits), joblib.effective_n_jobs(n_jobs))
    task = _Task(
        pipeline=fitted,
        wanted=wanted,
        weight=np.asarray(sample_weight) if weight_scores and sample_weight is not None else None,
        metrics=get_metrics(scoring, rdms=_are_rdms(Y)),
        keep=(return_predictions, return_estimators),
        parent=os.getpid(),
        threads=max(1, joblib.cpu_count() // workers) if threads is None and workers > 1 else threads,
    )
    with threadpool_limits(task.threads):
        folds = _Watched(progress, len(splits), n_jobs=n_jobs)(
            joblib.delayed(_fold)(task, X, Y, *split) for split in splits
        )
    return _collect(task, _ids(X), splits, folds, target_names)


class _Watched(joblib.Parallel):
    """`joblib.Parallel` that tells how many of its tasks are done, whatever the backend."""

    def __init__(self, progress, total: int, **options: Any) -> None:
        super().__init__(**options)
        self._progress = progress
        self._total = total

    def __call__(self, iterable):
        if self._progress is not None:
            self._progress(0, self._total)
        return super().__call__(iterable)

    def print_progress(self) -> None:
        if self._progress is not None:
            self._progress(self.n_completed_tasks, self._total)


def _are_rdms(Y) -> bool | None:
    """Say whether RDMs are scored; None of an object that only its metrics know."""
    return True if isinstance(Y, RDMs) else False if hasattr(Y, "__array__") else None


def _outer_splits(cv, X, groups, *, by_set: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    splitter = check_cv(make_cv(cv, len(X), groups=groups, ids=_ids(X), by_set=by_set))
    rows = _ids(X) if isinstance(splitter, SetKFold) else np.empty((len(X), 1))
    return list(splitter.split(rows, groups=None if groups is None else np.asarray(groups)))


def _ids(X) -> np.ndarray:
    """Return the ids of stimuli, or their row numbers where X is not a list of ids."""
    X = X.ids if hasattr(X, "ids") else X
    return np.asarray(X) if np.ndim(X) == 1 else np.arange(len(X))


def _check_lengths(n_stimuli: int, **arrays: Any) -> None:
    for name, values in arrays.items():
        if values is not None and len(values) != n_stimuli:
            raise RequestError(
                f"There are {n_stimuli} stimuli but {len(values)} entries in {name}; join them by id first."
            )


def _refuse_leaks(X, splits) -> None:
    ids = _ids(X)
    for number, (train, test) in enumerate(splits):
        shared = np.intersect1d(ids[train], ids[test])
        if len(shared):
            shown = ", ".join(map(str, shared[:_SHOWN])) + ", …" * (len(shared) > _SHOWN)
            raise RequestError(
                f"Fold {number} would be scored on {len(shared)} stimuli that it is fitted on: {shown}. "
                "Average repeats of a stimulus first, or pass the ids as groups with an int cv or GroupKFold."
            )


def _fold(task: _Task, X, Y, train: np.ndarray, test: np.ndarray) -> _Fold:
    if os.getpid() != task.parent and task.threads is not None:
        threadpool_limits(task.threads)  # not undone: threads of one worker would undo each other's
    with sklearn.config_context(enable_metadata_routing=True):
        estimator = clone(task.pipeline)
        target = Y[train, ...] if isinstance(estimator, BaseSearchCV) else _read(Y[train, ...])
        estimator.fit(_rows(X, train), target, **take(task.wanted, train))
        prediction = estimator.predict(_rows(X, test))
    response = _read(Y[test, ...])
    weight = {} if task.weight is None else {"sample_weight": task.weight[test]}
    scores = score_targets(task.metrics, response, prediction, **weight)
    numeric = isinstance(prediction, np.ndarray) and hasattr(response, "__array__")
    keep_prediction, keep_estimator = task.keep
    return _Fold(
        scores=scores,
        moments=moments(response, prediction) if numeric else None,
        prediction=prediction if keep_prediction else None,
        estimator=estimator if keep_estimator else None,
        chosen=getattr(estimator, "best_params_", None),
    )


def _read(Y):
    """Return responses as an array: those that stay in their file are read, once for all that look at them."""
    return np.asarray(Y) if hasattr(Y, "__array__") else Y


def _rows(X, rows: np.ndarray):
    return X.iloc[rows] if hasattr(X, "iloc") else X[rows] if hasattr(X, "shape") else np.asarray(X)[rows]


def _collect(task: _Task, ids: np.ndarray, splits, folds: list[_Fold], target_names) -> Evaluation:
    scores = {name: np.stack([fold.scores[name] for fold in folds]) for name in task.metrics}
    n_targets = next(iter(scores.values())).shape[1]
    names = tuple(range(n_targets)) if target_names is None else tuple(target_names)
    if len(names) != n_targets:
        raise RequestError(f"There are {len(names)} target_names for {n_targets} targets.")
    keep_predictions, keep_estimators = task.keep
    found = [fold.moments for fold in folds if fold.moments is not None]
    scored = np.isfinite(next(iter(scores.values())))  # one response alone never varies, and has no score
    counted = list(zip(found, scored, strict=True)) if found else []
    return Evaluation(
        scores=scores,
        target_names=names,
        test_ids=tuple(ids[test] for _, test in splits),
        constant_predictions=np.array([(m.constant_pred & s).sum() for m, s in counted], dtype=int),
        constant_responses=np.array([(m.constant_true & s).sum() for m, s in counted], dtype=int),
        pooled_r=_pooled_r(found),
        predictions=_assemble(folds, splits, ids) if keep_predictions else None,
        estimators=tuple(fold.estimator for fold in folds) if keep_estimators else None,
        chosen=tuple(fold.chosen for fold in folds if fold.chosen is not None) or None,
    )


def _pooled_r(found: list[Moments]) -> np.ndarray | None:
    if not found:
        return None
    return sum(found[1:], start=found[0]).pearson_r()


def _assemble(folds: list[_Fold], splits, ids: np.ndarray) -> np.ndarray | RDMs:
    """Return held-out predictions in the order of the stimuli; NaN where no fold predicted."""
    tested = np.concatenate([test for _, test in splits])
    if len(np.unique(tested)) != len(tested):
        raise RequestError(
            "return_predictions needs folds that score each stimulus at most once, but these repeat some. "
            "Use a K-fold cv, or leave return_predictions out."
        )
    first = folds[0].prediction
    if isinstance(first, RDMs):
        return _assemble_rdms(folds, splits, ids)
    n_stimuli = len(ids)
    predictions = np.full((n_stimuli, *first.shape[1:]), np.nan, dtype=first.dtype)
    for fold, (_, test) in zip(folds, splits, strict=True):
        predictions[test] = fold.prediction
    return predictions


def _assemble_rdms(folds: list[_Fold], splits, ids: np.ndarray) -> RDMs:
    """Return the folds' RDMs as one, NaN for pairs that no fold predicted: those across folds."""
    values = np.full((folds[0].prediction.n_rdms, len(ids), len(ids)), np.nan)
    for fold, (_, test) in zip(folds, splits, strict=True):
        values[:, test[:, None], test] = fold.prediction.values
    return RDMs(values, ids, subjects=folds[0].prediction.subjects, targets=folds[0].prediction.targets)
