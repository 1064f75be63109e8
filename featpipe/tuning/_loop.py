"""The one training loop: epochs of batches of row numbers, losses of held-out stimuli, the best epoch.

Any module, any loss: an objective is called with the rows of a batch and returns a sum of losses and the
number (or weight) of its summands, for every part that stops by itself; a batch's loss is the sum over parts
of one divided by the other. What is random in an epoch is drawn from its seed and number, so that an epoch
can be done again by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from featpipe.extraction._forward import precision_of
from featpipe.tuning._history import History
from featpipe.tuning._parts import Parts
from featpipe.tuning._training import Training

# rows (n_batch,), generator (None in evaluation) -> sums of losses, weights: each (n_parts,)
Objective = Callable[[torch.Tensor, torch.Generator | None], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Epoch:
    """What the callback is given after each epoch.

    Parameters
    ----------
    number : int
        From 1.
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
    rows: np.ndarray | Callable[[int], Sequence[torch.Tensor]],
    held_out: np.ndarray | Callable[[], np.ndarray] | None = None,
    from_start: bool = False,
    names: Sequence[str] = ("all",),
    owners: Mapping[str, torch.Tensor] | None = None,
    groups: Sequence[Mapping[str, Any]] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> History:
    """Train a module in place and leave it, in evaluation mode, with the weights of the best epoch.

    Parameters
    ----------
    module : nn.Module
        On the device of `training`.
    objective : callable (rows, generator) -> (sums of losses, weights), tensors of shape (n_parts,)
        Calls the module. The generator is the source of everything random; None asks for an evaluation.
    training : Training
    rows, held_out : ndarray of int
        Stimuli to fit, and to stop by. Without held-out stimuli all epochs are run and the last is kept.
    names : sequence of str, length n_parts
    owners : mapping, optional
        See `Parts`; each part then stops, and is restored, by itself. Without it all stop together.
    groups : sequence of mapping, optional
        Parameter groups with ``params`` and, where it differs, ``lr``. By default everything that is trainable.
    on_epoch : callable (Epoch), optional

    Raises
    ------
    WorkError
        A loss is not finite before there is an epoch to go back to.
    """
    device = next(module.parameters()).device
    groups = [{"params": [p for p in module.parameters() if p.requires_grad]}] if groups is None else groups
    optimiser = training.make_optimiser(groups)
    parts = Parts(module, owners, len(names))
    history = History(names, training, together=owners is None)
    with _own_random_state(device), precision_of("tf32" if training.precision == "tf32" else "fp32", device):
        if from_start:
            start = _score(module, objective, training, held_out) if held_out is not None else None
            history.begin(start)
        for epoch in range(1, training.max_epochs + 1):
            fitted = _fit(module, objective, training, rows, optimiser, parts, epoch)
            scored = _score(module, objective, training, held_out) if held_out is not None else None
            improved = history.add(fitted, scored, optimiser.param_groups[0]["lr"])
            parts.keep(torch.as_tensor(improved, device=device))
            if on_epoch is not None:
                on_epoch(Epoch(epoch, module, optimiser, history))
            if not history.running.any():
                break
            parts.cut(torch.as_tensor(history.running, device=device), optimiser)
    parts.restore()
    module.eval()
    return history


def _fit(module, objective, training, rows, optimiser, parts, epoch) -> np.ndarray:
    """Do one epoch and return the mean training loss of each part, (n_parts,)."""
    module.train()
    device = next(module.parameters()).device
    seed = _seed(training.seed, epoch)
    _seed_global(seed, device)  # for modules that know no generator
    generator = torch.Generator(device).manual_seed(seed)
    batches = rows(seed) if callable(rows) else _batches(torch.as_tensor(rows), training.batch_size, seed)
    total = weight = 0.0
    for number, batch in enumerate(batches):
        factor = training.rate((epoch - 1) * len(batches) + number, len(batches))
        for group in optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
        optimiser.zero_grad(set_to_none=True)
        with _autocast(training, device):
            losses, weights = objective(batch.to(device), generator)
        (losses / weights.clamp(min=1e-12)).sum().backward()
        if training.clip is not None:
            parts.clip(training.clip)
        optimiser.step()
        total, weight = total + losses.detach(), weight + weights  # no wait for the device
    return _mean(total, weight)


def _score(module, objective, training, rows) -> np.ndarray:
    """Return the mean loss of each part over held-out stimuli, (n_parts,)."""
    module.eval()
    if callable(rows):
        with torch.no_grad(), _autocast(training, next(module.parameters()).device):
            return rows()
    device = next(module.parameters()).device
    total = weight = 0.0
    with torch.no_grad(), _autocast(training, device):
        for batch in torch.as_tensor(rows).split(training.batch_size):
            losses, weights = objective(batch.to(device), None)
            total, weight = total + losses, weight + weights
    return _mean(total, weight)


def _batches(rows: torch.Tensor, batch_size: int, seed: int) -> Sequence[torch.Tensor]:
    """Shuffle rows and divide them evenly: drawn on the CPU, so that a GPU sees the same batches."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order].tensor_split(-(-len(rows) // batch_size))


def _mean(total: Any, weight: Any) -> np.ndarray:
    return (total / weight.clamp(min=1e-12)).double().cpu().numpy()


def _autocast(training: Training, device: torch.device) -> torch.autocast:
    # no cache of cast weights: it lives as long as the outermost context, here the whole training
    low = training.precision == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=low, cache_enabled=False)


def _seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _seed_global(seed: int, device: torch.device) -> None:
    torch.random.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators as they were found."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
