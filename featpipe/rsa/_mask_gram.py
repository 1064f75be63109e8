"""Inner products of stimuli per channel, from the features of one layer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

_POSITIONS = 2048  # summed in float32 before float64 takes over
_CHUNK_VALUES = 4096  # positions times channels: with some hundred stimuli two megabytes, which caches hold


def as_channels(rows: np.ndarray, dims: tuple[str, ...]) -> np.ndarray:
    """Return rows as (n_stimuli, n_channels, n_positions); without an axis "channel" each value is one.

    Parameters
    ----------
    rows : ndarray of shape (n_stimuli, *shape)
    dims : tuple of str
        Name of each axis of a row.
    """
    if "channel" not in dims:
        return rows.reshape(len(rows), -1, 1)
    rows = np.moveaxis(rows, 1 + dims.index("channel"), 1)
    return rows.reshape(*rows.shape[:2], -1)


def channel_sums(rows: np.ndarray) -> np.ndarray:
    """Sum over positions in float64: ndarray of shape (n_stimuli, n_channels)."""
    return rows.sum(axis=2, dtype=np.float64)


def centred_products(rows: np.ndarray, out: np.ndarray, *, first: int = 0) -> np.ndarray:
    """Write the inner products over positions of stimuli i >= j, centred within stimulus and channel.

    ``out[r, c] = sum_p (f_icp - mean_p f_ic)(f_jcp - mean_p f_jc)`` with ``r = i (i + 1) / 2 + j`` less its
    value for ``i = first, j = 0``. Centring first keeps all digits of layers whose values lie far from 0;
    the full product is that plus ``s_ic s_jc / n_positions``.

    Parameters
    ----------
    rows : ndarray of shape (n_stimuli, n_channels, n_positions), float32
    out : ndarray of shape (n_pairs, n_channels), float32
        Written to.
    first : int
        First stimulus i to do: those before it are done already.

    Returns
    -------
    sums : ndarray of shape (n_stimuli - first, n_channels), float64
        Sums over positions.
    """
    n_stimuli, n_channels, n_positions = rows.shape
    sums = np.empty((n_stimuli - first, n_channels))
    if n_positions == 1:  # a centred value is 0
        out[:] = 0
        sums[:] = rows[first:, :, 0]
        return sums
    width = max(1, min(64, _CHUNK_VALUES // n_positions))
    i, j = np.tril_indices(n_stimuli)
    i, j = i[i >= first] - first, j[i >= first]

    def work(start: int) -> None:
        columns = slice(start, start + width)
        products, sums[:, columns] = _products_of(rows[:, columns], first)
        out[:, columns] = products[:, i, j].T

    threads = _n_threads()
    # the product of one channel is too small to share among threads
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(0, n_channels, width)))
    return sums


def _products_of(rows: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Return products (n_channels, n_stimuli - first, n_stimuli) and sums of a few channels."""
    channels = rows.transpose(1, 0, 2)  # (n_channels, n_stimuli, n_positions)
    mean = channels.mean(axis=2, dtype=np.float32)
    products: np.ndarray | float = 0.0
    rest = np.zeros(mean.shape)
    for start in range(0, channels.shape[2], _POSITIONS):
        part = channels[:, :, start : start + _POSITIONS]
        part = np.subtract(part, mean[:, :, None], out=np.empty(part.shape, dtype=np.float32))
        rest += part.sum(axis=2)
        product = part[:, first:] @ part.transpose(0, 2, 1)
        products = np.add(products, product, dtype=np.float64) if start else product
    return np.asarray(products), (mean.astype(np.float64) * channels.shape[2] + rest)[:, first:].T


def _n_threads() -> int:
    """Return how many threads BLAS would use now: what the caller allows."""
    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
