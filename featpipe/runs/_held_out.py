"""Held-out predictions as a run keeps them: what was predicted, what was measured, in which fold."""

from __future__ import annotations

import zipfile
from typing import NamedTuple

import numpy as np

from featpipe.datasets import Dataset
from featpipe.errors import RecipeError
from featpipe.model_selection import Evaluation, merge_groups
from featpipe.runs._folder import RunFolder

HELD_OUT = "held_out.npz"
_MOST = 1 << 26  # bytes of predictions and responses together: the vertices of a whole brain stay out


class HeldOutResponses(NamedTuple):
    """What folds predicted.

    Parameters
    ----------
    ids : ndarray of str, shape (n_scored,)
    fold : ndarray of int, shape (n_scored,)
        The one that scored the stimulus.
    group : ndarray of int, shape (n_scored,)
        Stimuli of one group show one image, or belong together.
    measured, predicted : ndarray of shape (n_scored, n_targets), float32
    """

    ids: np.ndarray
    fold: np.ndarray
    group: np.ndarray
    measured: np.ndarray
    predicted: np.ndarray

    @property
    def folds(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Folds as (nothing, test rows)."""
        return [(np.empty(0, dtype=int), np.flatnonzero(self.fold == n)) for n in np.unique(self.fold)]


def write_held_out(folder: RunFolder, dataset: Dataset, evaluation: Evaluation) -> None:
    """Write `HELD_OUT`, unless it would be large."""
    scored = sum(map(len, evaluation.test_ids))
    if 2 * 4 * scored * dataset.n_targets > _MOST:
        return
    fold_of = {str(name): fold for fold, ids in enumerate(evaluation.test_ids) for name in ids}
    rows = np.flatnonzero(np.isin(dataset.ids, list(fold_of)))
    _, groups = np.unique(merge_groups(dataset.groups, dataset.digests), return_inverse=True)
    folder.write_arrays(
        HELD_OUT,
        ids=dataset.ids[rows].astype(str),
        fold=np.array([fold_of[str(name)] for name in dataset.ids[rows]]),
        group=groups[rows],
        measured=np.asarray(dataset.responses[rows, ...], dtype=np.float32),
        predicted=np.asarray(evaluation.predictions[rows], dtype=np.float32),
    )


def read_held_out(run: RunFolder) -> HeldOutResponses | None:
    """Read what `write_held_out` wrote, None where the run kept nothing; no pickles.

    Raises
    ------
    RecipeError
        The file is damaged.
    """
    path = run.path / HELD_OUT
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return HeldOutResponses(*(file[name] for name in HeldOutResponses._fields))
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RecipeError(f"{path} cannot be read ({error}); the run folder is damaged.") from error
