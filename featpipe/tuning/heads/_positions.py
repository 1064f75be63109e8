"""Where vertices lie, as sines and cosines relative to their ROI."""

from __future__ import annotations

import numpy as np

from featpipe.errors import RequestError
from featpipe.tuning.heads._columns import Columns


def encode_positions(positions: np.ndarray, columns: Columns, n_frequencies: int) -> np.ndarray:
    """Return a code for each column: float32 of shape (n_columns, 6 · n_frequencies).

    With u the position less the centre of its ROI's bounding box, divided by half the box's longest side, so
    in [-1, 1]: ``sin(2^k π u/2), cos(2^k π u/2)`` for each dimension and k = 0 … n_frequencies - 1; the longest
    wavelength is twice the ROI, so that no two places of it have one code.

    Parameters
    ----------
    positions : ndarray of shape (n_targets, 3)
        In one unit of length.
    columns : Columns
    n_frequencies : int

    References
    ----------
    Vaswani et al. (2017), section 3.5, for integer places; here for places on a surface.
    """
    angles = np.pi / 2 * 2.0 ** np.arange(n_frequencies)
    code = np.empty((len(columns.column), 6 * n_frequencies), dtype=np.float32)
    for roi in range(len(columns.names)):
        here = columns.part == roi
        places = positions[columns.column[here]]
        low, high = places.min(axis=0), places.max(axis=0)
        half = (high - low).max() / 2 or 1.0
        phase = ((places - (low + high) / 2) / half)[:, :, None] * angles  # (n_vertices, 3, n_frequencies)
        code[here] = np.concatenate([np.sin(phase), np.cos(phase)], axis=2).reshape(len(places), -1)
    return code


def check_positions(positions, n_targets: int) -> np.ndarray:
    """Return positions as float64 (n_targets, 3).

    Raises
    ------
    RequestError
        There are none, or they do not fit the targets.
    """
    if positions is None:
        raise RequestError(
            "VertexPositionHead needs the 3-D position of every target, and positions is None. On the command line "
            "give the surfaces, --surface lh=FILE,rh=FILE, or columns x, y and z in targets.csv; in Python an array "
            f"of shape ({n_targets}, 3)."
        )
    given = np.asarray(positions, dtype=np.float64)
    if given.shape != (n_targets, 3):
        raise RequestError(
            f"positions has shape {given.shape}, but there are {n_targets} targets: give ({n_targets}, 3)."
        )
    if not np.isfinite(given).all():
        raise RequestError(
            f"positions of {int((~np.isfinite(given).all(axis=1)).sum())} of {n_targets} targets are not finite; "
            "fill in x, y and z of each, or leave these targets out."
        )
    return given
