"""The decomposition of centred, weighted features that every penalty is read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.encoding._arrays import array_namespace, like


@dataclass(frozen=True)
class Decomposition:
    """Centred, weighted rows ``D^½ (X - 1 m') = U diag(scale) W'``, ready for any penalty.

    A penalty α needs the diagonal ``shrink(α)`` only: ``coef = W diag(shrink(α)) U' D^½ y``. The scale is
    the singular value, floored: any positive scale gives the same product, so nothing is truncated.

    Parameters
    ----------
    left : array of shape (n_stimuli, rank), float64
        ``D^½ U``: a weight's root is in it.
    eigenvalues : array of shape (rank,), float64
        Squared singular values, ascending.
    scale : array of shape (rank,), float64
    """

    left: Any
    eigenvalues: Any
    scale: Any

    def variances(self) -> Any:
        """Return the eigenvalues, 0 where they are rounding: array of shape (rank,)."""
        noise = negligible(self.eigenvalues, self.left.shape[0])
        return array_namespace(self.eigenvalues).where(self.eigenvalues > noise, self.eigenvalues, 0.0)

    def shrink(self, alpha) -> Any:
        """Return ``scale / (eigenvalue + alpha)``: array of shape (rank,) or (rank, n_alphas).

        For a penalty of 0 directions without variance get 0: the solution of least norm.
        """
        xp = array_namespace(self.eigenvalues)
        alpha = like(np.asarray(alpha, dtype=np.float64), self.eigenvalues)
        shape = (-1, *[1] * alpha.ndim)
        eigenvalues, scale = (xp.reshape(v, shape) for v in (self.eigenvalues, self.scale))
        total = eigenvalues + alpha
        usable = (total > negligible(self.eigenvalues, self.left.shape[0])) | (alpha > 0)
        return xp.where(usable, scale / xp.where(usable, total, xp.ones_like(total)), 0.0)


def floored_eigenvalues(eigenvalues: Any, n_stimuli: int) -> tuple[Any, Any]:
    """Return eigenvalues, none below 0, and singular values, floored where they are rounding."""
    xp = array_namespace(eigenvalues)
    eigenvalues = xp.clip(eigenvalues, 0.0, None)
    floor = negligible(eigenvalues, n_stimuli)
    return eigenvalues, (xp.clip(eigenvalues, floor, None) ** 0.5 if floor > 0 else xp.ones_like(eigenvalues))


def negligible(eigenvalues: Any, n_stimuli: int) -> float:
    """Return what rounding can make of an eigenvalue of 0."""
    largest = max(float(eigenvalues[-1]), 0.0)
    return largest * max(n_stimuli, eigenvalues.shape[0]) * float(np.finfo(np.float64).eps)
