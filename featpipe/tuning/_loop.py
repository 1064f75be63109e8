"""The one training loop: epochs of batches of row numbers, losses of held-out stimuli, the best epoch.

Any module, any loss: an objective is called with the rows of a batch and returns a sum of losses and the
number (or weight) of its summands, for every part that stops by itself; a batch's loss is the sum over parts
of one divided by the other. What is random in an epoch is drawn from its seed and number, so that an epoch
can be done again by itself: a run that was killed goes on from the last epoch that it saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featpipe.errors import RequestError
from featpipe.extraction._forward import precision_of
from featpipe.tuning._history import History
from featpipe.tuning._parts import Parts
from featpipe.tuning._saved import Saved
from featpipe.tuning._saved_file import one_at_a_time
from featpipe.tuning._steps import (
    Objective,
    Rows,
    Steps,
    low_precision,
    own_random_state,
    seed_global,
    seed_of,
    trainable,
)
from featpipe.tuning._training import Training

__all__ = ["Epoch", "Objective", "train"]
HeldOut = np.ndarray | Callable[[], np.ndarray]


@dataclass(frozen=True)
class Epoch:
    """What the callback is given after each epoch.

    Parameters
    ----------
    number : int
        From 1; 0 are the weights before training, where they are scored.
    module : nn.Module
        As it stands; parts that stopped are cut out of it.
    optimiser : torch.optim.Optimizer
    history : History
    """

    number: int
    module: nn.Module
    optimiser: torch.optim.Optimizer
    history: History


def train(
    module: nn.Module,
    objective: Objective,
    training: Training,
    *,
    rows: Rows,
    held_out: HeldOut | None = None,
    from_start: bool = False,
    names: Sequence[str] = ("all",),
    owners: Mapping[str, torch.Tensor] | None = None,
    groups: Sequence[Mapping[str, Any]] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    saved: Path | None = None,
    fingerprint: str = "",
    final: bool = False,
) -> History:
    """Train a module in place and leave it, in evaluation mode, with the weights of the best epoch.

    Parameters
    ----------
    module : nn.Module
        On the device of `training`.
    objective : callable (rows, generator) -> (sums of losses, weights), tensors of shape (n_parts,)
        Calls the module. The generator is the source of everything random; None asks for an evaluation.
    training : Training
    rows : ndarray of int, or callable (seed) -> sequence of tensors
        Stimuli to fit, shuffled and divided into batches; or the batches of the epoch that has this seed.
    held_out : ndarray of int, or callable () -> ndarray of shape (n_parts,), optional
        Stimuli to stop by; or what is to be lowest, called in evaluation mode without gradients. Without it all
        epochs are run and the last is kept.
    from_start : bool
        Score the weights before training too: they are epoch 0, and may be the best. `max_epochs` may be 0.
    names : sequence of str, length n_parts
    owners : mapping, optional
        See `Parts`; each part then stops, and is restored, by itself. Without it all stop together.
    groups : sequence of mapping, optional
        Parameter groups with ``params`` and, where they differ, ``lr`` and ``from_epoch``, before which the
        parameters are frozen. By default everything that is trainable.
    on_epoch : callable (Epoch), optional
        Called after each epoch is saved, and for epoch 0 `from_start`. What it raises ends the training and
        leaves the module as it stands. A run that goes on calls it again for the epoch that it goes on from.
    saved : Path, optional
        File that the state is saved to after each epoch, and taken up from where it is there: a run that was
        killed ends with the same weights as one that was not. Another run of it waits for the first to end.
    fingerprint : str
        Of what is trained on, where `train` cannot see it: another one refuses the saved state.
    final : bool
        More epochs will never be asked for: once they are done, `saved` holds the best weights alone, which is a
        third of it or less.

    Raises
    ------
    RequestError
        There is nothing to train or to fit, or `saved` belongs to another training.
    WorkError
        A loss is not finite in the first epoch, or `saved` is damaged or cannot be written.
    """
    if training.max_epochs == 0 and not from_start:
        raise RequestError(
            "max_epochs must be an int >= 1, got 0: weights before training are no epoch here."
        )
    device = next(module.parameters()).device
    optimiser = training.make_optimiser(groups or trainable(module, none=training.max_epochs == 0))
    parts = Parts(module, owners, len(names))
    history = History(names, training, together=owners is None, from_start=from_start)
    seen = {"rows": rows, "held_out": held_out, "owners": owners, "fingerprint": fingerprint}
    state = Saved(saved, optimiser, parts, history, training, seen)
    steps = Steps(objective, training, optimiser, parts, device)

    def tell() -> None:
        if on_epoch is not None and (from_start or history.n_epochs):
            on_epoch(Epoch(history.n_epochs, module, optimiser, history))

    precision = precision_of("tf32" if training.precision == "tf32" else "fp32", device)
    with one_at_a_time(saved), own_random_state(device), precision:
        if not state.resume():
            if from_start:
                seed_global(seed_of(training.seed, 0), device)
                history.begin(_score(module, objective, training, held_out, len(names)))
            state.save()
        tell()
        while history.unfinished:
            fitted = _fit(module, steps, training, rows, history.n_epochs + 1)
            scored = _score(module, objective, training, held_out, len(names))
            improved = history.add(fitted, scored, optimiser.param_groups[0]["lr"])
            parts.keep(torch.as_tensor(improved, device=device))
            if history.unfinished:
                parts.cut(torch.as_tensor(history.running, device=device), optimiser)
            state.save()
            tell()
        if final and history.running.any():
            history.running[:] = False
            state.save()
    parts.restore()
    module.eval()
    return history


def _fit(module, steps, training, rows, epoch) -> np.ndarray:
    """Do one epoch and return the mean training loss of each part, (n_parts,)."""
    module.train()
    batches, generator = steps.begin(rows, epoch)
    total = weight = 0.0
    for number, batch in enumerate(batches):
        factor = training.rate((epoch - 1) * len(batches) + number, len(batches))
        losses, weights = steps(batch, generator, factor)
        total, weight = total + losses, weight + weights  # no wait for the device
    return _mean(total, weight)


def _score(module, objective, training, held_out, n_parts) -> np.ndarray | None:
    """Return the mean loss of each part over held-out stimuli, (n_parts,), where there are any."""
    if held_out is None:
        return None
    module.eval()
    device = next(module.parameters()).device
    total = weight = 0.0
    with torch.no_grad(), low_precision(training, device):
        if callable(held_out):
            return _checked(np.asarray(held_out(), dtype=float), n_parts)
        for batch in torch.as_tensor(held_out).split(training.batch_size):
            losses, weights = objective(batch.to(device), None)
            total, weight = total + losses, weight + weights
    return _mean(total, weight)


def _checked(scored: np.ndarray, n_parts: int) -> np.ndarray:
    if scored.shape != (n_parts,):
        raise RequestError(
            f"held_out() must return an array of shape ({n_parts},), one loss a part, got {scored.shape}."
        )
    return scored


def _mean(total: Any, weight: Any) -> np.ndarray:
    return (total / weight.clamp(min=1e-12)).double().cpu().numpy()
