"""What a training run has seen: losses per epoch and part, the best epoch of each, and who still runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featpipe.errors import WorkError
from featpipe.tuning._training import Training


class History:
    """Losses per epoch and part, which parts still run, and the best epoch of each.

    Parameters
    ----------
    names : sequence of str, length n_parts
    training : Training
    together : bool
        Parts share weights, so they stop together, by their mean loss.
    """

    def __init__(self, names: Sequence[str], training: Training, *, together: bool) -> None:
        self.names = tuple(names)
        self.train_loss: list[np.ndarray] = []
        self.held_out_loss: list[np.ndarray] = []
        self.learning_rate: list[float] = []
        self.best_epoch = np.zeros(len(names), dtype=int)
        self.running = np.ones(len(names), dtype=bool)
        self._lowest = np.full(len(names), np.inf)
        self._training, self._together = training, together

    def begin(self, scored: np.ndarray | None) -> None:
        """Note what untrained weights are worth: they are epoch 0, and the best so far."""
        nothing = np.full(len(self.names), np.nan)
        self.start = nothing if scored is None else scored
        if scored is not None:
            self._lowest[:] = scored.mean() if self._together else scored

    def table(self) -> dict[str, np.ndarray]:
        """Return the columns of a table of epochs, from 0 on."""
        nothing = np.full(len(self.names), np.nan)
        return {
            "epoch": np.arange(len(self.train_loss) + 1),
            "learning_rate": np.array([np.nan, *self.learning_rate]),
            "train_loss": np.stack([nothing, *self.train_loss]),
            "validation_loss": np.stack([self.start, *self.held_out_loss]),
        }

    def add(self, fitted: np.ndarray, scored: np.ndarray | None, rate: float) -> np.ndarray:
        """Note an epoch; return the parts that have a new best, ndarray of bool (n_parts,)."""
        held_out = np.full_like(fitted, np.nan) if scored is None else scored
        self.train_loss.append(np.where(self.running, fitted, np.nan))
        self.held_out_loss.append(np.where(self.running, held_out, np.nan))
        self.learning_rate.append(rate)
        epoch = len(self.train_loss)
        watched = fitted if scored is None else scored
        if self._together:
            fitted, watched = np.full_like(fitted, fitted.mean()), np.full_like(watched, watched.mean())
        finite = np.isfinite(fitted) & np.isfinite(watched)
        improved = self.running & finite & ((watched < self._lowest) if scored is not None else True)
        self._lowest[improved], self.best_epoch[improved] = watched[improved], epoch
        self._refuse_lost(self.running & ~finite & (self.best_epoch == 0))
        patience = self._training.patience
        if scored is not None and patience is not None and epoch >= self._training.min_epochs:
            self.running &= epoch - self.best_epoch < patience
        self.running &= finite  # what diverges keeps its best epoch and goes no further
        return improved

    def _refuse_lost(self, lost: np.ndarray) -> None:
        if lost.any():
            raise WorkError(
                f"Training of {self.names[int(np.argmax(lost))]!r} diverged in its first epoch: its loss is no number. "
                f"Lower learning_rate ({self._training.learning_rate:g}), set clip, or standardise the features."
            )
