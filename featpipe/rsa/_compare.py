"""Compare RDMs with RDMs: models with subjects, layers with regions, anything with itself."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from featpipe.errors import RequestError
from featpipe.rsa._rdms import RDMs
from featpipe.rsa._scores import check_is_rdms, known_mean
from featpipe.rsa._similarity import comparison_with, find_method
from featpipe.rsa._threads import one_blas_thread

_CHUNK_VALUES = 1 << 18  # dissimilarities of models compared at a time, by each thread


def compare(models: RDMs, data: RDMs, method: str = "spearman") -> np.ndarray:
    """Compare every model RDM with every measured RDM, within stimulus sets, and average over sets.

    Parameters
    ----------
    models, data : RDMs
        `models` must hold the stimuli of `data`, in any order. Pairs that are NaN on either side are left out,
        anew for each two RDMs.
    method : {"spearman", "pearson", "kendall", "cosine", "rho_a"}
        ``"kendall"`` is tau-a, ``(concordant - discordant) / all``; ``"rho_a"`` the expectation of Spearman's
        rho when ties are broken at random, ``12 Σ r_a r_b / (m³ - m)``. Both are fair to models with ties;
        Spearman and Pearson are not (Nili et al. 2014; Schütt et al. 2023).

    Returns
    -------
    values : ndarray of shape (n_models, n_rdms)
        NaN where no set has three pairs; 0 where either side is constant.

    Raises
    ------
    RequestError
        An unknown method, something that is no `RDMs`, a stimulus that the models lack.
    """
    find_method(method)
    models = with_stimuli_of(data, models)
    sets = data.sets
    parts = [_of_set(models, data, np.flatnonzero(sets == name), method) for name in dict.fromkeys(sets)]
    return known_mean(np.array(parts).reshape(len(parts), models.n_rdms, data.n_rdms), axis=0)


def second_order(models: RDMs, data: RDMs, method: str = "spearman") -> pd.DataFrame:
    """Return how alike each model is to each target: the mean of `compare` over subjects and times.

    With the same RDMs on both sides this is the layer × layer matrix.

    Parameters
    ----------
    models : RDMs
        Named by their targets, such as layers; RDMs with one name are averaged as well.
    data : RDMs
    method : as in `compare`

    Returns
    -------
    table : DataFrame
        One row per model, one column per target.
    """
    values = compare(models, data, method)
    table = [
        [known_mean(values[np.ix_(rows, columns)].ravel(), axis=0) for columns in _named(data).values()]
        for rows in _named(models).values()
    ]
    return pd.DataFrame(
        np.array(table, dtype=np.float64),
        index=pd.Index(list(models.target_names), name="model"),
        columns=pd.Index(list(data.target_names), name="target"),
    )


def with_stimuli_of(data: RDMs, models: RDMs) -> RDMs:
    """Return the models with the stimuli of the data, in their order."""
    for given in (models, data):
        check_is_rdms(given)
    if not len(data):
        raise RequestError("There are no stimuli to compare RDMs on; the measured RDMs are empty.")
    return models if np.array_equal(models.ids, data.ids) else models.take(data.ids)


def _of_set(models: RDMs, data: RDMs, rows: np.ndarray, method: str) -> np.ndarray:
    """Compare on the stimuli of one set, a few models at a time, on all cores where there are many."""
    first, second = rows[np.array(np.triu_indices(len(rows), 1))]
    against = comparison_with(data.values[:, first, second], method)
    flat = models.values.reshape(models.n_rdms, -1)
    pairs = first * len(data) + second
    step = max(1, _CHUNK_VALUES // max(1, len(pairs)))
    chunks = [flat[start : start + step] for start in range(0, models.n_rdms, step)]
    # "clip" spares a check of every index, and all of them exist
    return np.concatenate(_mapped(lambda chunk: against(chunk.take(pairs, axis=1, mode="clip")), chunks))


def _mapped(function: Callable[[np.ndarray], np.ndarray], chunks: list[np.ndarray]) -> list[np.ndarray]:
    """Apply a function to each chunk, in threads unless this is a worker that shares the cores."""
    cores = 1 if multiprocessing.parent_process() is not None else os.cpu_count() or 1
    if cores == 1 or len(chunks) < 2 * cores:
        return [function(chunk) for chunk in chunks]
    # a product of matrices in every thread, each on all cores, would take many times as long
    with one_blas_thread(), ThreadPoolExecutor(cores) as threads:
        return list(threads.map(function, chunks))


def _named(rdms: RDMs) -> dict[str, np.ndarray]:
    return {name: np.flatnonzero(np.array(rdms.targets) == name) for name in rdms.target_names}
