"""ROIs as columns: what a head predicts, one column per target and ROI, those of a ROI side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from featpipe.encoding import region_positions
from featpipe.errors import RequestError

ALL = "all"


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a head.

    Parameters
    ----------
    names : tuple of str, length n_rois
    column : ndarray of int64, shape (n_columns,)
        The target that each column predicts; a target in two ROIs has two columns.
    part : ndarray of int64, shape (n_columns,)
        The ROI of each column, ascending.
    n_targets : int
    """

    names: tuple[str, ...]
    column: np.ndarray
    part: np.ndarray
    n_targets: int

    @property
    def sizes(self) -> np.ndarray:
        """Number of targets per ROI: (n_rois,)."""
        return np.bincount(self.part, minlength=len(self.names))

    def mean_per_target(self, values: np.ndarray) -> np.ndarray:
        """Average columns that predict one target: (n_columns, …) -> (n_targets, …)."""
        total = np.zeros((self.n_targets, *values.shape[1:]), dtype=values.dtype)
        np.add.at(total, self.column, values)
        return total / self.times.reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)

    @property
    def times(self) -> np.ndarray:
        """Number of columns per target: (n_targets,), at least 1."""
        return np.bincount(self.column, minlength=self.n_targets)


def columns_of(rois: Mapping[str, np.ndarray] | str | None, n_targets: int) -> Columns:
    """Return the columns of some ROIs.

    Parameters
    ----------
    rois : mapping of str to array, or ``"all"`` or None
        Positions of targets, or a mask of bool, shape (n_targets,). Targets in no ROI form a last one,
        ``"other"``. ``"all"`` and None take all targets as one.
    n_targets : int

    Raises
    ------
    RequestError
        A ROI that is empty, or that names targets which do not exist.
    """
    if rois is None or (isinstance(rois, str) and rois == ALL):
        return Columns((ALL,), np.arange(n_targets), np.zeros(n_targets, dtype=np.int64), n_targets)
    if isinstance(rois, str) or (isinstance(rois, Mapping) and not rois):
        raise RequestError(
            f"rois must be a mapping of names to positions of targets, or 'all', got {rois!r}."
        )
    found = region_positions(rois, n_targets)
    part = np.repeat(np.arange(len(found)), [len(targets) for targets in found.values()])
    return Columns(tuple(found), np.concatenate(list(found.values())), part, n_targets)
