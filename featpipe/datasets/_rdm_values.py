"""RDMs from arrays of others: shapes, finite values and symmetry, with the place named where they fail."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featpipe.errors import DatasetError
from featpipe.rsa import RDMs

_ASYMMETRY = 1e-4  # of the largest dissimilarity: what float32 files may show


def checked_rdms(
    values: np.ndarray, ids: Sequence[str], *, target: str, where: str, missing: bool = False
) -> RDMs:
    """Return measured dissimilarities of one target as RDMs.

    Parameters
    ----------
    values : array of shape (n_subjects[, n_times], n, n) or (n, n)
        With a time axis there is one RDM per subject and time.
    ids : sequence of str, length n
    target : str
    where : str
        How an error names the values: variable and file.
    missing : bool
        Whether NaN may mark pairs that were not measured.

    Returns
    -------
    RDMs
        Subjects "01", "02", …

    Raises
    ------
    DatasetError
        Wrong sizes, no numbers, NaN or infinity off the diagonal, asymmetry.
    """
    n = len(ids)
    if values.dtype.kind not in "fiu":
        raise DatasetError(f"{where} is of type {values.dtype}; real numbers are needed.")
    _check_shape(values.shape, n, where)
    n_subjects = 1 if values.ndim == 2 else len(values)
    n_times = values.shape[1] if values.ndim == 4 else 1
    matrices = values.reshape(-1, n, n)
    width = max(2, len(str(n_subjects)))
    subjects = [f"{number + 1:0{width}d}" for number in range(n_subjects) for _ in range(n_times)]
    for subject, matrix in zip(subjects, matrices, strict=True):
        _check_matrix(matrix, f"{where}, subject {subject},", missing=missing)
    return RDMs(
        matrices,
        ids,
        subjects=subjects,
        targets=[target] * len(matrices),
        times=list(range(n_times)) * n_subjects if values.ndim == 4 else None,
    )


def _check_shape(shape: tuple[int, ...], n: int, where: str) -> None:
    if 2 <= len(shape) <= 4 and shape[-2:] == (n, n) and 0 not in shape:
        return
    hint = f"The file must have one row and column per image, of which there are {n}."
    if len(shape) > 2 and shape[:2] == (n, n):
        hint = "Its axes stand in reverse order; save its transpose."
    raise DatasetError(
        f"{where} has shape {shape}; (subjects, {n}, {n}) would be right, (subjects, times, {n}, {n}) for MEG "
        f"over time. {hint}"
    )


def _check_matrix(matrix: np.ndarray, where: str, *, missing: bool) -> None:
    off = ~np.eye(len(matrix), dtype=bool)
    bad = off & (np.isinf(matrix) if missing else ~np.isfinite(matrix))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DatasetError(
            f"{where} holds {matrix[row, column]} for the pair {row}, {column} (rows from 0), one of "
            f"{bad.sum()} such values; every pair needs a finite dissimilarity. The file may be damaged."
        )
    others = matrix[off & ~np.isnan(matrix)]
    diagonal = np.diag(matrix)
    if len(others) and np.isfinite(diagonal).all() and np.median(diagonal) > np.median(others):
        raise DatasetError(
            f"{where} has {np.median(diagonal):g} on its diagonal, above most other values (median "
            f"{np.median(others):g}): it looks like similarities. An RDM is 0 there; give 1 - r, for instance."
        )
    known = np.where(off & ~np.isnan(matrix), matrix, 0)
    apart = np.abs(known - known.T)
    if apart.max(initial=0) > _ASYMMETRY * np.abs(known).max(initial=0):
        row, column = np.unravel_index(apart.argmax(), apart.shape)
        raise DatasetError(
            f"{where} is not symmetric: {matrix[row, column]:g} for the pair {row}, {column} and "
            f"{matrix[column, row]:g} for {column}, {row}. An RDM has the same value on both sides of the diagonal."
        )
