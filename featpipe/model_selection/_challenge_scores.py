"""The scores of the Algonauts challenges of 2021 and 2023, from correlations and ceilings per vertex."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from featpipe.ceilings import checked_ceiling
from featpipe.errors import RequestError

ZERO_CEILING = 1e-14  # what the challenge of 2023 takes in place of a ceiling of 0
AGGREGATES: dict[str, Callable[[np.ndarray], Any]] = {"mean": np.mean, "median": np.median}


def algonauts2023_vertex_scores(r, noise_ceiling, *, unit: str = "fraction") -> np.ndarray:
    """Return the score of each vertex, ``min(100, 100 · max(r, 0)² / NC)``, with 1e-14 where NC is 0.

    Parameters
    ----------
    r : array of shape (n_vertices,)
        Correlation over test images.
    noise_ceiling : array of shape (n_vertices,)
        Fraction of variance, 0 to 1, or as `unit` says.
    unit : {"fraction", "percent", "auto"}
        See `featpipe.ceilings.checked_ceiling`.

    Returns
    -------
    score : ndarray of shape (n_vertices,)
        Percent, 0 to 100.

    Raises
    ------
    RequestError
        A correlation or ceiling that is missing or out of range, or shapes that differ.
    """
    r, ceiling = _checked(r, noise_ceiling, unit)
    return np.minimum(100.0, 100.0 * np.maximum(r, 0.0) ** 2 / np.where(ceiling == 0, ZERO_CEILING, ceiling))


def algonauts2023_score(
    r,
    noise_ceiling,
    *,
    aggregate: str = "mean",
    subjects=None,
    hemispheres=None,
    rois: Mapping[str, np.ndarray] | None = None,
    n_stimuli: int | np.ndarray | None = None,
    unit: str = "fraction",
) -> dict[str, Any]:
    """Return the challenge's score, its named parts, and what must stand beside it.

    A vertex scores `algonauts2023_vertex_scores`. The leaderboard is the mean over all vertices of all subjects and
    hemispheres, so that a subject or hemisphere with more vertices weighs more; papers also report the median.

    By the official rule a vertex whose ceiling is 0 scores 100 for any r above 0. What noise gains by that and by
    low ceilings, and the score without these vertices, are returned as well.

    Parameters
    ----------
    r : array of shape (n_vertices,)
        Correlation of predicted and measured responses over test images, of all subjects and hemispheres.
    noise_ceiling : array of shape (n_vertices,)
        Fraction of variance, 0 to 1, or as `unit` says.
    aggregate : {"mean", "median"}
        Which of the two ``score`` and all parts are.
    subjects, hemispheres : array of str, shape (n_vertices,), optional
        Where each vertex belongs.
    rois : mapping of str to array of bool, shape (n_vertices,), optional
        Named groups, such as ``lh.V1v``, that may overlap.
    n_stimuli : int or array of shape (n_vertices,), optional
        Test images behind each r; the score of noise depends on it.
    unit : {"fraction", "percent", "auto"}

    Returns
    -------
    dict
        ``score``, ``aggregate``; ``mean`` and ``median`` over all vertices; ``subjects``, ``hemispheres`` and
        ``rois`` by name; ``n_vertices``; ``n_zero_ceiling``; ``without_zero_ceiling``, the aggregate over the other
        vertices; ``noise_score``, the mean expected where predictions are noise, and
        ``noise_score_without_zero_ceiling`` (None without `n_stimuli`). Percent throughout.

    Raises
    ------
    RequestError
        An unknown aggregate, labels or masks of another length, or what `algonauts2023_vertex_scores` refuses.

    References
    ----------
    Gifford et al. (2023), "The Algonauts Project 2023 Challenge: How the Human Brain Makes Sense of Natural Scenes",
    arXiv:2301.03198, and the evaluation page of the challenge.
    """
    if aggregate not in AGGREGATES:
        raise RequestError(f"aggregate is {aggregate!r}; choose from {', '.join(AGGREGATES)}.")
    score = algonauts2023_vertex_scores(r, noise_ceiling, unit=unit)
    ceiling = checked_ceiling(noise_ceiling, unit=unit)
    masks = {
        "subjects": _masks("subjects", subjects, len(score)),
        "hemispheres": _masks("hemispheres", hemispheres, len(score)),
        "rois": _checked_masks(rois or {}, len(score)),
    }
    positive = ceiling > 0
    noise = None if n_stimuli is None else expected_noise_score(ceiling, n_stimuli)
    return {
        "score": _aggregate(aggregate, score),
        "aggregate": aggregate,
        "mean": _aggregate("mean", score),
        "median": _aggregate("median", score),
        **{
            what: {name: _aggregate(aggregate, score[mask]) for name, mask in named.items()}
            for what, named in masks.items()
        },
        "n_vertices": len(score),
        "n_zero_ceiling": int((~positive).sum()),
        "without_zero_ceiling": _aggregate(aggregate, score[positive]),
        "noise_score": None if noise is None else _aggregate("mean", noise),
        "noise_score_without_zero_ceiling": None if noise is None else _aggregate("mean", noise[positive]),
    }


def expected_noise_score(noise_ceiling, n_stimuli) -> np.ndarray:
    """Return the score of 2023 that a prediction independent of the response can expect at each vertex.

    Over n images r² of noise is Beta(1/2, (n - 2)/2), and half of all r are negative, so that

        E = 50 · ( E[r²; r² < c] / c + P(r² >= c) ),    E[r²; r² < c] = I_c(3/2, (n - 2)/2) / (n - 1),

    with c the ceiling (1e-14 for 0) and I the regularised incomplete beta function: 50 where the ceiling is 0.

    Parameters
    ----------
    noise_ceiling : array of shape (n_vertices,)
        Fraction of variance, 0 to 1.
    n_stimuli : int or array of shape (n_vertices,)
        Images behind each r, at least 3.

    Returns
    -------
    score : ndarray of shape (n_vertices,)
        Percent.

    References
    ----------
    Muirhead (1982), "Aspects of Multivariate Statistical Theory", theorem 5.1.1 (null distribution of r).
    """
    from scipy.special import betainc  # slow to import

    n = np.asarray(n_stimuli, dtype=np.float64)
    if np.any(n < 3):
        raise RequestError(f"n_stimuli is {n.min():g}; noise has a distribution of r from 3 images on.")
    ceiling = checked_ceiling(noise_ceiling)
    c = np.where(ceiling == 0, ZERO_CEILING, ceiling)
    tail = (n - 2) / 2
    below = betainc(1.5, tail, c) / (n - 1) / c
    return 50.0 * (below + 1.0 - betainc(0.5, tail, c))


def algonauts2021_score(
    r, noise_ceiling, *, rois: Mapping[str, np.ndarray] | None = None, unit: str = "fraction"
) -> dict[str, Any]:
    """Return the noise-normalised correlation of the challenge of 2021, with raw r and its ceiling beside it.

    A voxel scores ``r / sqrt(reliability)``, with its sign, where the reliability is that of the mean over the test
    repeats by split halves (`featpipe.ceilings.split_half_reliability`). The score of a region is the mean over its
    voxels and the score of the Mini Track the mean over regions; the Full Track is the mean over all voxels.

    Parameters
    ----------
    r : array of shape (n_voxels,)
        Correlation of predicted and measured responses over test videos.
    noise_ceiling : array of shape (n_voxels,)
        Reliability: the fraction of variance that is signal, 0 to 1, or as `unit` says. The challenge has only
        voxels of significant reliability; those of 0 have no score here, and are counted.
    rois : mapping of str to array of bool, shape (n_voxels,), optional
    unit : {"fraction", "percent", "auto"}

    Returns
    -------
    dict
        ``full_track`` over all voxels; ``mini_track``, the mean over `rois` (None without); ``rois`` by name;
        ``r`` and ``noise_ceiling_r``, the means over the scored voxels; ``n_voxels``; ``n_zero_ceiling``. A score of
        no voxel is None.

    Raises
    ------
    RequestError
        A correlation or ceiling that is missing or out of range, or shapes that differ.

    References
    ----------
    Cichy et al. (2021), "The Algonauts Project 2021 Challenge: How the Human Brain Makes Sense of a World in
    Motion", arXiv:2104.13714, and the evaluation pages of its tracks, which give the formula.
    """
    r, ceiling = _checked(r, noise_ceiling, unit)
    masks = _checked_masks(rois or {}, len(r))
    scored = ceiling > 0
    root = np.sqrt(ceiling)
    score = np.divide(r, root, out=np.zeros_like(r), where=scored)
    of_rois = {name: _aggregate("mean", score[mask & scored]) for name, mask in masks.items()}
    known = np.array([value for value in of_rois.values() if value is not None])
    return {
        "full_track": _aggregate("mean", score[scored]),
        "mini_track": _aggregate("mean", known),
        "rois": of_rois,
        "r": _aggregate("mean", r[scored]),
        "noise_ceiling_r": _aggregate("mean", root[scored]),
        "n_voxels": len(r),
        "n_zero_ceiling": int((~scored).sum()),
    }


def _checked(r, noise_ceiling, unit: str) -> tuple[np.ndarray, np.ndarray]:
    r = np.asarray(r, dtype=np.float64)
    ceiling = checked_ceiling(noise_ceiling, unit=unit)
    if r.ndim != 1 or r.shape != ceiling.shape:
        raise RequestError(
            f"Correlations have shape {r.shape} and ceilings {ceiling.shape}; both need one value a vertex."
        )
    if not np.all(np.abs(r) <= 1 + 1e-9) or np.isnan(ceiling).any():
        raise RequestError(
            "The challenge scores every vertex: correlations from -1 to 1 and ceilings are needed for all, but "
            f"{(~(np.abs(r) <= 1 + 1e-9)).sum()} correlations are missing or out of range and "
            f"{np.isnan(ceiling).sum()} ceilings are missing. Leave these vertices out, or give a constant prediction "
            "r = 0."
        )
    return r, ceiling


def _masks(what: str, labels, n_vertices: int) -> dict[str, np.ndarray]:
    """Return a mask for each label, in the order of first appearance."""
    if labels is None:
        return {}
    labels = np.asarray(labels)
    if labels.shape != (n_vertices,):
        raise RequestError(
            f"There are {labels.size} {what} for {n_vertices} vertices; one label each is needed."
        )
    return {str(name): labels == name for name in dict.fromkeys(labels.tolist())}


def _checked_masks(masks: Mapping[str, np.ndarray], n_vertices: int) -> dict[str, np.ndarray]:
    for name, mask in masks.items():
        if np.asarray(mask).dtype != bool or np.shape(mask) != (n_vertices,):
            raise RequestError(
                f"Region {name!r} is {np.asarray(mask).dtype} of shape {np.shape(mask)}; bool of shape ({n_vertices},) "
                "is needed, one entry a vertex."
            )
    return {name: np.asarray(mask) for name, mask in masks.items()}


def _aggregate(name: str, values: np.ndarray) -> float | None:
    return float(AGGREGATES[name](values)) if len(values) else None
