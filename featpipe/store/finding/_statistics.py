"""What the values of an array look like, from one pass in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from featpipe.store._array import CachedArray

_BLOCK = 8 << 20  # bytes of rows that are read at a time


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean, spread and range of the finite values of an array, and how many are zero, NaN or infinite.

    Parameters
    ----------
    n_values : int
        All values, those that are not finite too.
    n_zeros, n_nan, n_infinite : int
    mean : float
        Of the finite values; NaN where there is none, like all that follows.
    squares : float
        Sum of the squared deviations of finite values from `mean`.
    smallest, largest : float
        Of the finite values.
    """

    n_values: int = 0
    n_zeros: int = 0
    n_nan: int = 0
    n_infinite: int = 0
    mean: float = math.nan
    squares: float = 0.0
    smallest: float = math.nan
    largest: float = math.nan

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """Describe an array of floats of any shape; sums are taken in float64."""
        flat = values.reshape(-1)
        finite = np.isfinite(flat)
        n_nan = int(np.count_nonzero(np.isnan(flat)))
        n_zeros = int(flat.size - np.count_nonzero(flat))
        some = (flat if finite.all() else flat[finite]).astype(np.float64)
        counts = (flat.size, n_zeros, n_nan, flat.size - some.size - n_nan)
        if not some.size:
            return cls(*counts)
        smallest, largest, mean = float(some.min()), float(some.max()), float(some.mean())
        some -= mean
        return cls(*counts, mean, float(some @ some), smallest, largest)

    def merged(self, other: Self) -> Self:
        """Describe the values of both together.

        References
        ----------
        Chan, Golub & LeVeque (1983), equations 2.1a and 2.1b.
        """
        counts = (
            self.n_values + other.n_values,
            self.n_zeros + other.n_zeros,
            self.n_nan + other.n_nan,
            self.n_infinite + other.n_infinite,
        )
        one, two = self.n_finite, other.n_finite
        if not (one and two):
            some = self if one else other
            return type(self)(*counts, some.mean, some.squares, some.smallest, some.largest)
        gap = other.mean - self.mean
        mean = self.mean + gap * (two / (one + two))
        squares = self.squares + other.squares + gap * gap * (one * two / (one + two))
        smallest, largest = min(self.smallest, other.smallest), max(self.largest, other.largest)
        return type(self)(*counts, mean, squares, smallest, largest)

    @property
    def n_finite(self) -> int:
        """How many values are neither NaN nor infinite."""
        return self.n_values - self.n_nan - self.n_infinite

    @property
    def sd(self) -> float:
        """Standard deviation of the finite values, with their number as divisor."""
        return math.sqrt(self.squares / self.n_finite) if self.n_finite else math.nan

    @property
    def fraction_of_zeros(self) -> float:
        """Zeros among all values."""
        return self.n_zeros / self.n_values if self.n_values else math.nan

    def to_json(self) -> dict[str, float | int | None]:
        """Return the figures by name; what does not exist is None, as JSON has no NaN."""
        figures = {"mean": self.mean, "sd": self.sd, "min": self.smallest, "max": self.largest}
        figures["zeros"] = self.fraction_of_zeros
        shown = {name: None if math.isnan(value) else value for name, value in figures.items()}
        return {"values": self.n_values, **shown, "nan": self.n_nan, "infinite": self.n_infinite}


def array_statistics(array: CachedArray, progress: Callable[[int, int], None] | None = None) -> Statistics:
    """Describe the values of the rows that are committed now.

    Parameters
    ----------
    array : CachedArray
    progress : callable (rows done, rows in all), optional

    Raises
    ------
    CacheCorrupt
        A shard cannot be read.
    """
    shards = sorted(array.committed)
    total = sum(len(array.layout.rows_of(shard)) for shard in shards)
    statistics, done = Statistics(), 0
    for rows in row_blocks(array, shards):
        statistics = statistics.merged(Statistics.of(array.read(rows)))
        done += len(rows)
        if progress is not None:
            progress(done, total)
    return statistics


def row_blocks(array: CachedArray, shards: list[int], block: int = _BLOCK) -> Iterator[np.ndarray]:
    """Yield the rows of shards, ascending: no more at a time than fit in `block` bytes, nor than a shard has."""
    chunks = max(1, block // array.layout.chunk_bytes)
    most = chunks * array.layout.chunk_rows  # whole chunks, so that none is decoded twice
    for shard in shards:
        rows = array.layout.rows_of(shard)
        for first in range(rows.start, rows.stop, most):
            yield np.arange(first, min(first + most, rows.stop))
