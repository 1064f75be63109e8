"""Scores put together: per target, per group of targets, overall, with the ceiling beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from featpipe.datasets import Dataset
from featpipe.model_selection import (
    Evaluation,
    ResponseInference,
    mean_over_folds,
    merge_groups,
    response_inference,
)


def summarise(
    scores: Mapping[str, np.ndarray],
    dataset: Dataset,
    *,
    pooled_r: np.ndarray | None = None,
    rows: np.ndarray | None = None,
    inference: ResponseInference | None = None,
) -> dict[str, Any]:
    """Return overall and per-group scores, with what bounds them and how sure they are.

    Parameters
    ----------
    scores : mapping of metric to ndarray of shape (n_folds, n_targets)
        NaN where a target has no score in a fold.
    dataset : Dataset
        Gives the groups and, where known, the noise ceiling (explainable variance, 0 to 1) per target.
    pooled_r : ndarray of shape (n_targets,), optional
        Pearson's r over the held-out stimuli of all folds at once.
    rows : ndarray of int, optional
        Rows of the dataset that were scored. A ceiling that is estimated from repeats is then that of these rows,
        which may have more repeats than others; all rows by default.
    inference : ResponseInference, optional
        Of the held-out predictions, for ``inference``, see `ResponseInference.summary`.

    Returns
    -------
    dict
        ``{"scores": {metric: {"overall": x, "groups": {name: x}}}, …}``. A score is the mean over targets of the
        mean over folds. ``noise_normalized_r2`` is a ratio of means, mean R² over mean ceiling of the targets
        whose ceiling is known, so that a target without signal cannot rule it. ``noise_ceiling`` bounds the mean
        R², ``noise_ceiling_r`` (the mean of its root) the mean r, and ``noise_normalized_r`` is the ratio of these
        two means. ``noise_ceiling_from`` says where the ceiling comes from. ``pooled_r`` stands beside the scores,
        because it also rewards what differs between folds.
    """
    per_target = {metric: mean_over_folds(values) for metric, values in scores.items()}
    summary: dict[str, Any] = {"scores": {m: _by_group(v, dataset) for m, v in per_target.items()}}
    if pooled_r is not None:
        summary["pooled_r"] = _by_group(pooled_r, dataset)
    ceiling = _ceiling(dataset, rows)
    if ceiling is not None and np.isfinite(ceiling).any():
        summary["noise_ceiling"] = _by_group(ceiling, dataset)
        summary["noise_ceiling_r"] = _by_group(np.sqrt(ceiling), dataset)
        summary["noise_ceiling_from"] = dataset.noise_ceiling_from
        if "r2" in per_target:
            summary["scores"]["noise_normalized_r2"] = _normalised(per_target["r2"], ceiling, dataset)
        if "pearson_r" in per_target:
            summary["noise_normalized_r"] = _normalised(per_target["pearson_r"], np.sqrt(ceiling), dataset)
    if inference is not None:
        summary["inference"] = inference.summary()
    return summary


def infer(
    dataset: Dataset, evaluation: Evaluation, folds: Sequence[tuple[np.ndarray, np.ndarray]]
) -> ResponseInference | None:
    """Return how sure the mean r of held-out predictions is; None where they were not kept, or folds are too small.

    Stimuli that folds may not divide, those of a group and images of the same bytes, are drawn and permuted together.
    """
    if evaluation.predictions is None or max(len(test) for _, test in folds) < 2:
        return None
    groups = merge_groups(dataset.groups, dataset.digests)
    divided = len(np.unique(groups)) == len(groups)
    return response_inference(
        dataset.responses,
        evaluation.predictions,
        folds,
        masks=dataset.masks,
        groups=None if divided else groups,
    )


def target_table(
    scores: Mapping[str, np.ndarray],
    dataset: Dataset,
    *,
    rows: np.ndarray | None = None,
    inference: ResponseInference | None = None,
) -> pd.DataFrame:
    """Return one row per target: its groups, mean scores over folds, ceiling, interval of r and p-values.

    Parameters are those of `summarise`. ``noise_ceiling`` is NaN where not known, and absent where no target has one.
    """
    table = pd.DataFrame({"target": target_names(dataset), "group": groups_of_targets(dataset)})
    for metric, values in scores.items():
        table[metric] = mean_over_folds(values)
    if (ceiling := _ceiling(dataset, rows)) is not None:
        table["noise_ceiling"] = ceiling
    return table if inference is None else pd.concat([table, inference.table()], axis=1)


def tidy(scores: Mapping[str, np.ndarray], dataset: Dataset) -> pd.DataFrame:
    """Return one row per target, fold and metric; ``group`` joins the groups of a target with semicolons."""
    names = target_names(dataset)
    groups = groups_of_targets(dataset)
    parts = []
    for metric, values in scores.items():
        n_folds = len(values)
        parts.append(
            pd.DataFrame(
                {
                    "target": np.tile(names, n_folds),
                    "group": np.tile(groups, n_folds),
                    "fold": np.repeat(np.arange(n_folds), len(names)),
                    "metric": metric,
                    "value": values.ravel(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def target_names(dataset: Dataset) -> np.ndarray:
    """Return one name per target: the column ``target`` of the targets, which may be a number, or ``name``."""
    column = "target" if "target" in dataset.targets else "name"
    return dataset.targets[column].astype(str).to_numpy(dtype=object)


def groups_of_targets(dataset: Dataset) -> np.ndarray:
    """Return the names of each target's groups, joined with semicolons."""
    names = np.full(dataset.n_targets, "", dtype=object)
    for group, mask in dataset.masks.items():
        names[mask] = [f"{name};{group}" if name else group for name in names[mask]]
    return names


def _ceiling(dataset: Dataset, rows: np.ndarray | None) -> np.ndarray | None:
    return dataset.noise_ceiling if rows is None else dataset.noise_ceiling_on(rows)


def _by_group(values: np.ndarray, dataset: Dataset) -> dict[str, Any]:
    groups = {name: _mean(values[mask]) for name, mask in dataset.masks.items()}
    return {"overall": _mean(values), "groups": groups}


def _normalised(score: np.ndarray, ceiling: np.ndarray, dataset: Dataset) -> dict[str, Any]:
    """Divide mean score by mean ceiling over the targets that have both; None where the ceiling is 0."""
    known = np.isfinite(score) & np.isfinite(ceiling)
    top, bottom = (_by_group(np.where(known, values, np.nan), dataset) for values in (score, ceiling))
    groups = {name: _over(top["groups"][name], bottom["groups"][name]) for name in top["groups"]}
    return {"overall": _over(top["overall"], bottom["overall"]), "groups": groups}


def _over(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None


def _mean(values: np.ndarray) -> float | None:
    """Mean over the values that are known, None where none is (JSON has no NaN)."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


# Not scores of the model but what bounds them, and so shown beside them
_RDM_CEILINGS = {"rdm_ceiling": "noise_ceiling", "rdm_ceiling_lower": "noise_ceiling_lower"}


def summarise_rdms(scores: Mapping[str, np.ndarray], labels: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return overall and per-target scores of RDMs.

    Parameters
    ----------
    scores : mapping of metric to ndarray of shape (n_folds, n_measured)
        One column per target and subject.
    labels : sequence of (target, subject), length n_measured

    Returns
    -------
    dict
        ``scores`` as in `summarise`: the mean over subjects of the mean over folds. ``noise_ceiling`` and
        ``noise_ceiling_lower`` bound ``rdm_r2``; ``rdm_percent`` is the mean over folds of the challenge's ratio,
        R² over the upper ceiling of the fold's own pairs. ``subjects_above_zero`` counts the positive ``rdm_rho``.
    """
    targets = np.array([target for target, _ in labels])
    means = {metric: mean_over_folds(values) for metric, values in scores.items()}
    grouped = {metric: _by_target(values, targets) for metric, values in means.items()}
    summary: dict[str, Any] = {"scores": {m: v for m, v in grouped.items() if m not in _RDM_CEILINGS}}
    summary |= {name: grouped[metric] for metric, name in _RDM_CEILINGS.items() if metric in grouped}
    positive = (means["rdm_rho"] > 0).astype(np.float64)
    counts = {name: int(positive[targets == name].sum()) for name in dict.fromkeys(targets.tolist())}
    return summary | {"subjects_above_zero": counts, "n_subjects": len({s for _, s in labels})}


def tidy_rdms(scores: Mapping[str, np.ndarray], labels: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Return one row per target and subject, fold and metric; the group is the target."""
    names = [" ".join(label).strip() for label in labels]
    parts = [
        pd.DataFrame(
            {
                "target": np.tile(names, len(values)),
                "group": np.tile([target for target, _ in labels], len(values)),
                "fold": np.repeat(np.arange(len(values)), len(names)),
                "metric": metric,
                "value": values.ravel(),
            }
        )
        for metric, values in scores.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _by_target(values: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    groups = {name: _mean(values[targets == name]) for name in dict.fromkeys(targets.tolist())}
    return {"overall": _mean(values), "groups": groups}
