"""Held-out scores of one subject's targets, and of several subjects together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.datasets import Dataset
from featpipe.errors import RequestError
from featpipe.metrics import METRICS, is_constant
from featpipe.model_selection import algonauts2023_score, score_targets
from featpipe.runs._fit_subjects import subjects_summary
from featpipe.runs._summary import summarise


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of predicted responses, target by target.

    Parameters
    ----------
    dataset : Dataset
        What was scored; its responses may be forgotten.
    scores : mapping of metric to ndarray of shape (n_targets,)
    n_measured : ndarray of int, shape (n_targets,)
        Stimuli behind each score.
    constant_predictions, constant_responses : int
        Targets that do not vary; they score 0.
    """

    dataset: Dataset
    scores: Mapping[str, np.ndarray]
    n_measured: np.ndarray
    constant_predictions: int
    constant_responses: int

    @classmethod
    def of(cls, dataset: Dataset, predictions: np.ndarray) -> Scored:
        """Score predictions of shape (n_stimuli, n_targets)."""
        return cls(
            dataset,
            score_targets(METRICS, dataset.responses, predictions),
            (~np.isnan(dataset.responses)).sum(axis=0),
            int(is_constant(predictions).sum()),
            int(is_constant(dataset.responses).sum()),
        )

    def summary(self) -> dict[str, Any]:
        """Return the scores as ``summary.json`` has them, with the official one where it can be given."""
        found = summarise({name: values[None] for name, values in self.scores.items()}, self.dataset)
        official = official_score([self])
        return found | {
            "n_stimuli": self.dataset.n_stimuli,
            "n_targets": self.dataset.n_targets,
            "n_folds": 1,
            "constant_predictions": self.constant_predictions,
            "constant_responses": self.constant_responses,
            **({} if official is None else {"algonauts2023": official}),
        }


def together(scored: Iterable[Scored]) -> dict[str, Any]:
    """Return the scores of several subjects: `subjects_summary`, their own, and the official one over all vertices.

    Raises
    ------
    RequestError
        Two are of one subject.
    """
    parts = list(scored)
    summaries = {}
    for part in parts:
        name = str(part.dataset.subject)
        if name in summaries:
            raise RequestError(f"Two of the runs are of subject {name}. Give one run a subject.")
        summaries[name] = part.summary()
    official = official_score(parts)
    return {
        **subjects_summary(summaries),
        "subjects": summaries,
        **({} if official is None else {"algonauts2023": official}),
    }


def official_score(parts: Sequence[Scored]) -> dict[str, Any] | None:
    """Return the challenge's score over all vertices of some subjects, None where no ceiling is known.

    The leaderboard is the mean over vertices, see `algonauts2023_score`; regions are those of all subjects.
    """
    ceilings = [part.dataset.noise_ceiling for part in parts]
    known = [values for values in ceilings if values is not None and not np.isnan(values).any()]
    if len(known) < len(parts) or any(part.dataset.name != "algonauts2023" for part in parts):
        return None
    columns = [_vertices(part) for part in parts]
    return algonauts2023_score(
        np.concatenate([part.scores["pearson_r"] for part in parts]),
        np.concatenate(known),
        subjects=np.concatenate([subjects for subjects, _ in columns]),
        hemispheres=np.concatenate(
            [part.dataset.targets["hemisphere"].to_numpy(dtype=str) for part in parts]
        ),
        rois=_regions(
            [(part.dataset.n_targets, masks) for part, (_, masks) in zip(parts, columns, strict=True)]
        ),
        n_stimuli=np.concatenate([part.n_measured for part in parts]),
    )


def _vertices(part: Scored) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the subject of each target, and the masks of regions without the name of a subject before them."""
    dataset = part.dataset
    if "subject" not in dataset.targets:
        return np.full(dataset.n_targets, str(dataset.subject)), dict(dataset.masks)
    subjects = dataset.targets["subject"].to_numpy(dtype=str)
    masks: dict[str, np.ndarray] = {}
    for name, mask in dataset.masks.items():
        region = name.partition(".")[2]
        masks[region] = masks.get(region, False) | mask
    return subjects, masks


def _regions(parts: Sequence[tuple[int, Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Put masks of the same region side by side: by name, over the targets of all parts."""
    names = dict.fromkeys(name for _, masks in parts for name in masks)
    return {
        name: np.concatenate([masks.get(name, np.zeros(count, dtype=bool)) for count, masks in parts])
        for name in names
    }
