"""What dissimilarities a network is fitted to: means over subjects, in units that training pairs alone set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from featpipe.errors import RequestError
from featpipe.rsa import RDMs
from featpipe.rsa._scores import known_mean

_NORMALISATIONS = (None, "zscore")


def mean_dissimilarities(
    rdms: RDMs,
    rows: np.ndarray,
    *,
    normalise: str | None = None,
    rescale: tuple[float, float] | None = None,
) -> np.ndarray:
    """Return the dissimilarities of pairs within stimulus sets, averaged over times, then over RDMs.

    With ``normalise="zscore"`` each RDM ``d`` becomes ``(d - m) / s`` before the mean over RDMs, ``m`` and ``s``
    being mean and deviation of its pairs of that set among `rows` alone: held-out stimuli set no unit.

    Parameters
    ----------
    rdms : RDMs
        All of them count alike: select targets before.
    rows : ndarray of int
        Stimuli of the training.
    normalise : {None, "zscore"}
        An RDM whose training pairs are all equal becomes 0.
    rescale : (offset, divisor), optional
        Gives ``(x + offset) / divisor`` of the mean x: (2, 5) brings z-scores near to the range of 1 - r.

    Returns
    -------
    values : ndarray of shape (n_stimuli, n_stimuli), float64
        All pairs, held out or not. NaN for pairs across sets, those that nobody measured, and a stimulus with
        itself.

    Raises
    ------
    RequestError
        Another normalisation, or a divisor of 0.

    References
    ----------
    Agrawal (2019), Dissimilarity learning via Siamese network, Methods, tracks 1 and 2.
    """
    if normalise not in _NORMALISATIONS:
        raise RequestError(f"normalise must be None or 'zscore', got {normalise!r}.")
    values = rdms.average_times().values.astype(np.float64)
    within = rdms.sets[:, None] == rdms.sets
    np.fill_diagonal(within, False)
    values[:, ~within] = np.nan
    if normalise == "zscore":
        for own in _own_rows(rdms.sets):
            block = np.ix_(np.arange(len(values)), own, own)
            values[block] = _zscored(values[block], np.isin(own, rows))
    return _rescaled(known_mean(values, axis=0), rescale)


@dataclass(frozen=True)
class RangeMap:
    """A line between dissimilarities as measured and the range of a network's output, [0, 1].

    Parameters
    ----------
    lowest, highest : float
        Dissimilarities that become 0 and 1.
    """

    lowest: float
    highest: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Bring dissimilarities to the range; those of pairs that were not trained on may leave it."""
        return (values - self.lowest) / (self.highest - self.lowest)

    def inverse(self, outputs: np.ndarray) -> np.ndarray:
        """Bring outputs back to the units of the dissimilarities."""
        return outputs * (self.highest - self.lowest) + self.lowest


def range_of(values: np.ndarray, rows: np.ndarray) -> RangeMap:
    """Return the map that takes the measured pairs among `rows`, of all stimulus sets together, to [0, 1].

    Parameters
    ----------
    values : ndarray of shape (n_stimuli, n_stimuli)
        As `mean_dissimilarities` gives them: NaN for what is no measured pair.
    rows : ndarray of int
        Stimuli of the training.

    Raises
    ------
    RequestError
        No pair was measured, or all are equally dissimilar.
    """
    pairs = values[np.ix_(rows, rows)]
    pairs = pairs[~np.isnan(pairs)]
    if not pairs.size or pairs.min() == pairs.max():
        found = f"all of them {pairs[0]:g}" if pairs.size else "none"
        raise RequestError(
            f"Among {len(rows)} stimuli of the training there are {pairs.size // 2} measured pairs within stimulus "
            f"sets, {found}, and a network can learn only differences. Check the targets and the ids (SET/NAME)."
        )
    return RangeMap(float(pairs.min()), float(pairs.max()))


def to_range(values: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return dissimilarities in the range [0, 1] of training pairs, and the inverse for predictions.

    The report says that it "normalized the training RDM distance values to match the range of our outputs" and
    gives no formula. Our reading: one line for all stimulus sets that takes the least dissimilar training pair
    to 0 and the most dissimilar to 1, about what a linear output that starts near 0 reaches at once. Parameters
    and errors are those of `range_of`.

    References
    ----------
    Jacob & Katti (2019), Methods, RDM normalisation.
    """
    found = range_of(values, rows)
    return found(values), found.inverse


def _own_rows(sets: np.ndarray) -> Iterator[np.ndarray]:
    for name in dict.fromkeys(sets.tolist()):
        yield np.flatnonzero(sets == name)


def _zscored(values: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Standardise (n_rdms, n, n) by the pairs of stimuli that are trained on, a bool array of shape (n,)."""
    pairs = values[:, trained][:, :, trained].reshape(len(values), -1)  # each twice, which changes no moment
    mean = known_mean(pairs, axis=1)[:, None]
    deviation = np.sqrt(known_mean((pairs - mean) ** 2, axis=1))[:, None]
    largest = np.nan_to_num(np.abs(pairs)).max(axis=1, initial=0)[:, None]
    flat = deviation <= 8 * np.finfo(np.float64).eps * largest  # as RDMs.zscore has it
    scale = np.where(flat, 0.0, 1 / np.where(flat, 1.0, deviation))
    return (values - mean[..., None]) * scale[..., None]


def _rescaled(values: np.ndarray, rescale: tuple[float, float] | None) -> np.ndarray:
    if rescale is None:
        return values
    numbers = tuple(rescale) if isinstance(rescale, Sequence) else ()
    if len(numbers) != 2 or not all(isinstance(each, Real) for each in numbers) or not numbers[1]:
        raise RequestError(
            f"rescale must be (offset, divisor) with a divisor that is not 0, got {rescale!r}."
        )
    offset, divisor = numbers
    return (values + offset) / divisor
