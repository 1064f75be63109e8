"""What a training run has seen: losses per epoch and part, the best epoch of each, and who still runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    from_start : bool
        Epoch 0, the weights before training, is told and may be the best.
    """

    def __init__(
        self, names: Sequence[str], training: Training, *, together: bool, from_start: bool = False
    ) -> None:
        self.names = tuple(names)
        self.train_loss: list[np.ndarray] = []
        self.held_out_loss: list[np.ndarray] = []
        self.learning_rate: list[float] = []
        self.start = np.full(len(names), np.nan)
        self.best_epoch = np.zeros(len(names), dtype=int)
        self.running = np.ones(len(names), dtype=bool)
        self._lowest = np.full(len(names), np.inf)
        self._training, self._together, self.from_start = training, together, from_start

    @property
    def n_epochs(self) -> int:
        """Epochs of training so far."""
        return len(self.learning_rate)

    @property
    def unfinished(self) -> bool:
        """Whether there is an epoch to do, and a part that still runs."""
        return self.n_epochs < self._training.max_epochs and bool(self.running.any())

    def begin(self, scored: np.ndarray | None) -> None:
        """Note what untrained weights are worth: they are epoch 0, and the best so far."""
        if scored is not None:
            self.start = scored
            watched = self._shared(scored)
            self._lowest = np.where(np.isfinite(watched), watched, np.inf)

    def add(self, fitted: np.ndarray, scored: np.ndarray | None, rate: float) -> np.ndarray:
        """Note an epoch; return the parts that have a new best, ndarray of bool (n_parts,).

        Raises
        ------
        WorkError
            A loss of the first epoch is no number.
        """
        held_out = np.full_like(fitted, np.nan) if scored is None else scored
        self.train_loss.append(np.where(self.running, fitted, np.nan))
        self.held_out_loss.append(np.where(self.running, held_out, np.nan))
        self.learning_rate.append(rate)
        fitted, watched = self._shared(fitted), self._shared(fitted if scored is None else scored)
        finite = np.isfinite(fitted) & np.isfinite(watched)
        self._refuse_lost(fitted, watched, finite)
        improved = self.running & finite & ((watched < self._lowest) if scored is not None else True)
        self._lowest[improved], self.best_epoch[improved] = watched[improved], self.n_epochs
        patience = self._training.patience
        if scored is not None and patience is not None and self.n_epochs >= self._training.min_epochs:
            self.running &= self.n_epochs - self.best_epoch < patience
        self.running &= finite  # what diverges keeps its best epoch and goes no further
        return improved

    def table(self) -> dict[str, np.ndarray]:
        """Return the columns of a table of epochs: losses are of shape (n_epochs, n_parts).

        Returns
        -------
        dict
            ``epoch`` (from 0 where untrained weights were scored, else from 1), ``learning_rate``,
            ``train_loss`` and ``validation_loss``; NaN where there is none, as after a part has stopped.
        """
        nothing = np.full((1, len(self.names)), np.nan)
        columns = {
            "epoch": np.arange(self.n_epochs + 1),
            "learning_rate": np.array([np.nan, *self.learning_rate]),
            "train_loss": np.concatenate([nothing, *(row[None] for row in self.train_loss)]),
            "validation_loss": np.stack([self.start, *self.held_out_loss]),
        }
        return columns if self.from_start else {name: column[1:] for name, column in columns.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all that it knows, for a file."""
        shape = (self.n_epochs, len(self.names))
        return {
            "train_loss": np.array(self.train_loss, dtype=float).reshape(shape),
            "held_out_loss": np.array(self.held_out_loss, dtype=float).reshape(shape),
            "learning_rate": np.array(self.learning_rate, dtype=float),
            "start": np.array(self.start, dtype=float),
            "best_epoch": self.best_epoch,
            "running": self.running,
            "lowest": self._lowest,
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up what `arrays` gave."""
        self.train_loss, self.held_out_loss = list(arrays["train_loss"]), list(arrays["held_out_loss"])
        self.learning_rate = arrays["learning_rate"].tolist()
        self.start, self._lowest = arrays["start"], arrays["lowest"]
        self.best_epoch, self.running = arrays["best_epoch"], arrays["running"]

    def _shared(self, losses: np.ndarray) -> np.ndarray:
        return np.full_like(losses, losses.mean()) if self._together else losses

    def _refuse_lost(self, fitted: np.ndarray, watched: np.ndarray, finite: np.ndarray) -> None:
        if self.n_epochs == 1 and not finite.all():
            part = int(np.argmin(finite))
            raise WorkError(
                f"Training of {self.names[part]!r} diverged in its first epoch: its training loss is "
                f"{fitted[part]:g}, and {watched[part]:g} is what chooses the epoch. Lower learning_rate "
                f"({self._training.learning_rate:g}), set clip, or standardise what goes in."
            )
