"""Noise ceilings: the share of a target's variance that any model of the stimuli could explain, 0 to 1.

They bound R² and r². The ceiling of a correlation is the root. All follow one model of a response, ``y = s + e``,
in which the signal s depends on the stimulus alone and the noise e is new in every repeat. Averaging n repeats
leaves ``var(s) / (var(s) + var(e) / n)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.errors import DatasetError, RequestError
from featpipe.metrics import moments

_CHUNK_VALUES = 1 << 22  # repeats turned to float64 at a time: 32 MiB


def checked_ceiling(values: Any, *, unit: str = "fraction", of: str = "r2") -> np.ndarray:
    """Return noise ceilings as the fraction of variance that can be explained, 0 to 1.

    Parameters
    ----------
    values : array of shape (n_targets,)
        NaN where not known.
    unit : {"fraction", "percent", "auto"}
        "auto" tells by the range, which is safe for thousands of targets only.
    of : {"r2", "r"}
        Whether the values bound the explained variance or the correlation; the latter are squared.

    Raises
    ------
    DatasetError
        The values are neither fractions nor percentages, or not in the unit that is said.
    """
    ceiling = np.asarray(values, dtype=np.float64)
    largest = float(np.nanmax(ceiling, initial=0.0))
    smallest = float(np.nanmin(ceiling, initial=np.inf))
    if smallest < 0 or not np.isfinite(largest) or largest > 100:
        raise DatasetError(
            f"Noise ceilings run from {smallest:g} to {np.nanmax(ceiling):g}; neither fractions (0 to 1) nor "
            "percentages (0 to 100) do. Check the column."
        )
    if unit == "auto":
        unit = "percent" if largest > 1.5 else "fraction"
    if unit == "fraction" and largest > 1.5:
        raise DatasetError(
            f"Noise ceilings reach {largest:g}, which looks like percent. Write noise_ceiling = "
            '{unit = "percent"} in the dataset.toml, or divide the column by 100.'
        )
    if unit == "fraction" and largest > 1 + 1e-6:
        raise DatasetError(f"Noise ceilings reach {largest:g}; a fraction of variance is at most 1.")
    if unit == "percent" and 0 < largest <= 1:
        raise DatasetError(
            f'Noise ceilings are said to be percent but reach only {largest:g}; write unit = "fraction" if '
            "they are fractions."
        )
    fraction = np.minimum(ceiling / (100.0 if unit == "percent" else 1.0), 1.0)
    return fraction**2 if of == "r" else fraction


@dataclass(frozen=True)
class VarianceComponents:
    """Signal and noise of each target, estimated from repeats.

    Parameters
    ----------
    signal : ndarray of shape (n_targets,)
        Variance over stimuli of the response without noise, in squared units of the response, at least 0.
    noise : ndarray of shape (n_targets,)
        Variance of one repeat about its stimulus' response.
    share : ndarray of shape (n_targets,)
        Mean over stimuli of ``1/n``: what averaging leaves of the noise.
    """

    signal: np.ndarray
    noise: np.ndarray
    share: np.ndarray

    @property
    def ncsnr(self) -> np.ndarray:
        """Standard deviation of the signal over that of the noise: ndarray of shape (n_targets,)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.sqrt(self.signal / self.noise)
        return np.where(self.signal == 0, 0.0, ratio)

    @property
    def noise_ceiling(self) -> np.ndarray:
        """Fraction of the variance of the mean over repeats that is signal: ndarray of shape (n_targets,)."""
        with np.errstate(invalid="ignore"):
            ceiling = self.signal / (self.signal + self.noise * self.share)
        return np.where(self.signal == 0, 0.0, ceiling)


def variance_components(repeats: Any) -> VarianceComponents:
    """Estimate signal and noise variance of every target from its repeats.

    With x_ij the n_i repeats of stimulus i and m_i their mean,

        noise  = Σ_ij (x_ij - m_i)² / Σ_i (n_i - 1)
        signal = max(0, var_i(m_i) - noise · mean_i(1 / n_i)),

    where var divides by the number of stimuli less one. Before the floor both are unbiased, also where stimuli
    have different numbers of repeats.

    Parameters
    ----------
    repeats : array of shape (n_stimuli, n_targets, n_repeats)
        NaN where a repeat is missing. A stimulus with one repeat tells of the total alone, one with none of
        nothing.

    Returns
    -------
    VarianceComponents
        NaN for targets with no stimulus of two repeats, or fewer than two stimuli.

    Notes
    -----
    In NSD every response is z-scored within its session, so that the total variance of one trial is taken to be 1
    and the signal is ``1 - noise``. Here the total is measured.

    References
    ----------
    Allen et al. (2022), "A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial intelligence",
    Methods, "Noise ceiling estimation".
    Thomas & Hultquist (1978), "Interval estimation for the unbalanced case of the one-way random effects model",
    Annals of Statistics 6 (the variance of unweighted means).
    """
    repeats = _checked_repeats(repeats)
    parts = [_components(repeats[:, part].astype(np.float64)) for part in _chunks(repeats)]
    return VarianceComponents(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def nsd_noise_ceiling(ncsnr: Any, n_repeats: Any) -> np.ndarray:
    """Return the noise ceiling of responses averaged over repeats, from the noise-ceiling signal-to-noise ratio.

    ``NC = ncsnr² / (ncsnr² + mean_i(1 / n_i))``. With n₁, n₂ and n₃ stimuli of one, two and three repeats this is
    ``ncsnr² / (ncsnr² + (n₃/3 + n₂/2 + n₁) / (n₁ + n₂ + n₃))``.

    Parameters
    ----------
    ncsnr : array of shape (n_targets,)
        Standard deviation of the signal over that of the noise, >= 0.
    n_repeats : int, array of shape (n_stimuli,), or mapping of int to int
        Repeats behind each response: one number for all, one a stimulus, or the number of stimuli by their number
        of repeats, ``{1: n1, 2: n2, 3: n3}``.

    Returns
    -------
    ceiling : ndarray of shape (n_targets,)
        Fraction of variance, 0 to 1; NaN where `ncsnr` is.

    Raises
    ------
    RequestError
        A ratio below 0, or numbers of repeats that are not positive.

    References
    ----------
    Allen et al. (2022), Methods, "Noise ceiling estimation"; the formula for unequal repeats as in the challenge of
    Gifford et al. (2023), arXiv:2301.03198, where the n are those of the test images.
    """
    ratio = np.asarray(ncsnr, dtype=np.float64)
    if np.any(ratio < 0) or np.isinf(ratio).any():
        raise RequestError("ncsnr is a ratio of standard deviations: finite and not negative, or NaN.")
    power = ratio**2
    return power / (power + _share_of_noise(n_repeats))


def split_half_reliability(repeats: Any, *, n_splits: int = 100, seed: int = 0) -> np.ndarray:
    """Return the reliability of the mean over repeats by Spearman and Brown's formula.

    The repeats of each stimulus are drawn into two halves of h_i each (of an odd number one is left out), the means
    of the halves are correlated over stimuli, and r, the mean over many draws, is stretched to all n_i repeats:

        reliability = k r / (1 + (k - 1) r),    k = mean_i(1 / h_i) / mean_i(1 / n_i),

    which is ``2 r / (1 + r)`` where every stimulus has the same, even number of repeats.

    Parameters
    ----------
    repeats : array of shape (n_stimuli, n_targets, n_repeats)
        NaN where a repeat is missing. Stimuli with fewer than two count only in the mean of 1/n.
    n_splits : int
        Random halves.
    seed : int

    Returns
    -------
    reliability : ndarray of shape (n_targets,)
        Fraction of variance, 0 to 1: 0 where halves correlate negatively or a half is constant. NaN where fewer
        than two stimuli have two repeats.

    References
    ----------
    Spearman (1910), "Correlation calculated from faulty data", and Brown (1910), "Some experimental results in the
    correlation of mental abilities", British Journal of Psychology 3.
    """
    if n_splits < 1:
        raise RequestError(f"n_splits must be at least 1, got {n_splits}.")
    repeats = _checked_repeats(repeats)
    orders = np.random.default_rng(seed).permuted(
        np.broadcast_to(np.arange(repeats.shape[2]), (n_splits, len(repeats), repeats.shape[2])), axis=2
    )
    return np.concatenate([_split_half(repeats[:, part], orders) for part in _chunks(repeats)])


def leave_one_subject_out_ceiling(responses: Any) -> np.ndarray:
    """Return how well the mean of the other subjects predicts each subject.

    ``max(0, r(y_s, mean_{s' ≠ s} y_s'))²`` over stimuli: what a model that treats subjects alike can be expected
    to reach at least. A model of one subject's own responses may exceed it.

    Parameters
    ----------
    responses : array of shape (n_subjects, n_stimuli, n_targets)
        In a common space of targets; NaN where a subject has no response.

    Returns
    -------
    ceiling : ndarray of shape (n_subjects, n_targets)
        Fraction of variance, 0 to 1, whose root is r; NaN where fewer than two stimuli were shown to the subject
        and another one.

    Raises
    ------
    RequestError
        Fewer than two subjects, or an array of another shape.

    References
    ----------
    Nili et al. (2014), "A toolbox for representational similarity analysis", section "Noise ceiling" (the lower
    bound, there for RDMs).
    """
    responses = np.asarray(responses)
    if responses.ndim != 3 or len(responses) < 2:
        raise RequestError(
            f"Responses have shape {responses.shape}; (n_subjects, n_stimuli, n_targets) with at least two subjects is "
            "needed to leave one out."
        )
    known = ~np.isnan(responses)
    total = np.where(known, responses, 0.0).sum(axis=0, dtype=np.float64)
    count = known.sum(axis=0)
    return np.stack([_against_others(own, total, count) for own in responses])


def _against_others(own: np.ndarray, total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Square the correlation of one subject with the mean of the others: (n_targets,)."""
    seen = ~np.isnan(own)
    others = count - seen
    shared = seen & (others > 0)
    mean = np.divide(total - np.where(seen, own, 0.0), others, out=np.zeros_like(total), where=others > 0)
    r = moments(np.where(shared, own, np.nan), mean).pearson_r()
    return np.where(shared.sum(axis=0) < 2, np.nan, np.maximum(r, 0.0) ** 2)


def _components(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return signal, noise and mean 1/n of some targets; x is (n_stimuli, n_batch, n_repeats)."""
    known = ~np.isnan(x)
    n = known.sum(axis=2)
    x = np.where(known, x, 0.0)
    shown = n > 0
    mean = x.sum(axis=2) / np.maximum(n, 1)
    within = np.where(known, x - mean[:, :, None], 0.0)
    noise = _over(np.einsum("nbr,nbr->b", within, within), (n - shown).sum(axis=0))
    stimuli = shown.sum(axis=0)
    share = _over((shown / np.maximum(n, 1)).sum(axis=0), stimuli)
    spread = np.where(shown, mean - _over(mean.sum(axis=0), stimuli), 0.0)
    total = _over(np.einsum("nb,nb->b", spread, spread), stimuli - 1)
    return np.maximum(total - noise * share, 0.0), noise, share


def _split_half(repeats: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Return the stretched reliability of some targets; orders is (n_splits, n_stimuli, n_repeats)."""
    known = ~np.isnan(repeats)
    n = known.sum(axis=2)
    half = n // 2
    split = half > 0
    r = np.zeros(repeats.shape[1])
    for order in orders:
        drawn = np.take_along_axis(repeats, order[:, None, :], axis=2)
        place = np.cumsum(~np.isnan(drawn), axis=2)  # 1, 2, … among the repeats that are there
        first = _mean_of(drawn, place <= half[:, :, None], half)
        second = _mean_of(drawn, (place > half[:, :, None]) & (place <= 2 * half[:, :, None]), half)
        r += moments(np.where(split, first, np.nan), second).pearson_r()
    r /= len(orders)
    shown = np.where(n > 0, 1 / np.maximum(n, 1), 0.0).sum(axis=0) / np.maximum(1, (n > 0).sum(axis=0))
    longer = _over(np.where(split, 1 / np.maximum(half, 1), 0.0).sum(axis=0), split.sum(axis=0)) / shown
    r = np.maximum(r, 0.0)
    return np.where(split.sum(axis=0) < 2, np.nan, longer * r / (1 + (longer - 1) * r))


def _mean_of(values: np.ndarray, chosen: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Average the chosen repeats: (n_stimuli, n_batch), 0 where none is."""
    chosen = chosen & ~np.isnan(values)
    total = np.where(chosen, values, 0.0).sum(axis=2, dtype=np.float64)
    mean: np.ndarray = total / np.maximum(count, 1)
    return mean


def _share_of_noise(n_repeats: Any) -> float:
    """Return the mean over stimuli of 1/n."""
    if isinstance(n_repeats, Mapping):
        counts = np.repeat(np.asarray(list(n_repeats), dtype=np.float64), list(n_repeats.values()))
    else:
        counts = np.atleast_1d(np.asarray(n_repeats, dtype=np.float64))
    if counts.ndim != 1 or not counts.size or not np.all(counts > 0) or not np.isfinite(counts).all():
        raise RequestError(
            f"n_repeats is {n_repeats!r}; give a positive number of repeats, one for each stimulus, or the number of "
            "stimuli by their number of repeats, such as {1: 20, 2: 30, 3: 100}."
        )
    return float((1 / counts).mean())


def _checked_repeats(repeats: Any) -> np.ndarray:
    array: np.ndarray = np.asarray(repeats)
    if array.ndim != 3 or array.dtype.kind not in "fiu":
        raise RequestError(
            f"Repeats have shape {array.shape} and type {array.dtype}; real numbers of shape (n_stimuli, "
            "n_targets, n_repeats) are needed, NaN where a repeat is missing."
        )
    return array


def _chunks(repeats: np.ndarray) -> Iterator[slice]:
    n_stimuli, n_targets, n_repeats = repeats.shape
    step = max(1, _CHUNK_VALUES // max(1, n_stimuli * n_repeats))
    return (slice(start, start + step) for start in range(0, n_targets, step))


def _over(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide, with NaN where the denominator is not positive."""
    ratio = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio
