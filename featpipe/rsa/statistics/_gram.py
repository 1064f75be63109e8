"""Inner products of stimuli per channel, from the features of one layer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from featpipe.rsa._threads import n_blas_threads, one_blas_thread

_POSITIONS = 1024  # summed in float32 before float64 takes over
_CHUNK_VALUES = 3072  # positions times channels: with a hundred stimuli a megabyte, which caches hold
_NEGLIGIBLE = 1e-8  # of a product: what a constant that is not quite the mean may leave


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
    lower = ((i - first) * n_stimuli + j)[i >= first]  # places in a product of the new with all

    def work(start: int) -> None:
        columns = slice(start, start + width)
        products, sums[:, columns] = _products_of(rows[:, columns], first)
        out[:, columns] = np.take(products.reshape(len(products), -1), lower, axis=1).T

    threads = n_blas_threads()
    # the product of one channel is too small to share among threads
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(0, n_channels, width)))
    return sums


def _products_of(rows: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Return products (n_channels, n_stimuli - first, n_stimuli) and sums of a few channels."""
    channels = rows.transpose(1, 0, 2)  # (n_channels, n_stimuli, n_positions)
    n_positions = channels.shape[2]
    # of the first positions: any constant near the mean does, what it leaves is taken off in the end
    near = np.einsum("cip->ci", channels[:, :, :_POSITIONS]) / np.float32(min(n_positions, _POSITIONS))
    products: np.ndarray | float = 0.0
    rest = np.zeros(near.shape)
    for start in range(0, n_positions, _POSITIONS):
        part = channels[:, :, start : start + _POSITIONS]
        part = np.subtract(part, near[:, :, None], out=np.empty(part.shape, dtype=np.float32))
        rest += np.einsum("cip->ci", part)
        product = part[:, first:] @ part.transpose(0, 2, 1)
        products = np.add(products, product, dtype=np.float64) if start else product
    products = np.asarray(products)
    own = np.diagonal(products, first, 1, 2)  # of the new with themselves
    if (rest[:, first:] ** 2 > _NEGLIGIBLE * n_positions * own).any():
        products -= rest[:, first:, None] * (rest / n_positions)[:, None, :]
    return products, (near.astype(np.float64) * n_positions + rest)[:, first:].T
