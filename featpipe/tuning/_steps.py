"""The steps of a training: which batches an epoch has, what is random in it, and one change of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from featpipe.errors import RequestError
from featpipe.tuning._parts import Parts
from featpipe.tuning._training import Training

# rows (n_batch,), generator (None in evaluation) -> sums of losses, weights: each (n_parts,)
Objective = Callable[[torch.Tensor, torch.Generator | None], tuple[torch.Tensor, torch.Tensor]]
# stimuli to shuffle and divide, or seed of an epoch -> its batches
Rows = np.ndarray | Callable[[int], Sequence[torch.Tensor]]


class Steps:
    """Forward, backward, and a change of the weights.

    Parameters
    ----------
    objective : Objective
    training : Training
    optimiser : torch.optim.Optimizer
    parts : Parts
    device : torch.device
    """

    def __init__(
        self,
        objective: Objective,
        training: Training,
        optimiser: torch.optim.Optimizer,
        parts: Parts,
        device: torch.device,
    ) -> None:
        self._objective, self._training, self._device = objective, training, device
        self._optimiser, self._parts = optimiser, parts
        self._low = low_precision(training, device)

    def begin(self, rows: Rows, epoch: int) -> tuple[Sequence[torch.Tensor], torch.Generator]:
        """Return the batches of an epoch and the source of what is random in it.

        Raises
        ------
        RequestError
            There are none.
        """
        for group in self._optimiser.param_groups:
            for p in group["params"] if "from_epoch" in group else ():
                p.requires_grad_(epoch >= group["from_epoch"])
        self._parts.watch()
        seed = seed_of(self._training.seed, epoch)
        seed_global(seed, self._device)  # for modules that know no generator
        batches = rows(seed) if callable(rows) else shuffled(rows, self._training.batch_size, seed)
        if not len(batches):
            raise RequestError("There are no stimuli to fit: rows gives no batch.")
        return batches, torch.Generator(self._device).manual_seed(seed)

    def __call__(
        self, batch: torch.Tensor, generator: torch.Generator, factor: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Do a step with all learning rates times `factor`; return sums of losses and weights, (n_parts,)."""
        for group in self._optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self._optimiser.zero_grad(set_to_none=True)
        with self._low:
            losses, weights = self._objective(batch.to(self._device), generator)
        (losses / weights.clamp(min=1e-12)).sum().backward()
        if self._training.clip is not None:
            self._parts.clip(self._training.clip, self._optimiser)
        self._optimiser.step()
        return losses.detach(), weights


def trainable(module: nn.Module, *, none: bool = False) -> list[Mapping[str, Any]]:
    """Return one parameter group of everything in a module that is trainable.

    Raises
    ------
    RequestError
        Nothing is, and that is not asked for.
    """
    found = [p for p in module.parameters() if p.requires_grad]
    if not found and not none:
        raise RequestError(
            "There is nothing to train: all parameters are frozen. Free a layer, or set max_epochs=0."
        )
    return [{"params": found}]


def shuffled(rows: np.ndarray, batch_size: int, seed: int) -> Sequence[torch.Tensor]:
    """Shuffle rows and divide them evenly: drawn on the CPU, so that a GPU sees the same batches."""
    rows = torch.as_tensor(rows)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order].tensor_split(-(-len(rows) // batch_size)) if len(rows) else ()


def low_precision(training: Training, device: torch.device) -> AbstractContextManager:
    """Return the context of forward passes, to be entered any number of times."""
    if training.precision != "bf16":
        return nullcontext()
    # no cache of cast weights: it lives as long as the outermost context, here the whole training
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def seed_of(seed: int, epoch: int) -> int:
    """Return the seed of all that is random in an epoch."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def seed_global(seed: int, device: torch.device) -> None:
    """Seed torch's global generators, of the CPU and of a device."""
    torch.random.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators as they were found."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
