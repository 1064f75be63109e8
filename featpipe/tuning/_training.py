"""What a training run is: one frozen value, with its optimiser and its schedule of learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import torch

from featpipe.errors import RequestError

OPTIMISERS = ("adamw", "adam", "sgd")
SCHEDULES = ("fixed", "step", "one-cycle")
PRECISIONS = ("fp32", "tf32", "bf16")
_FUSED = ("cpu", "cuda")  # devices on which torch updates all moments in one pass over the memory


@dataclass(frozen=True)
class Training:
    """How a module is trained.

    Parameters
    ----------
    learning_rate : float
        At its highest; parameter groups may have their own.
    seed : int
        Orders the batches and draws what is random in an epoch, both from (seed, epoch) alone.
    device : str
        ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    precision : {"fp32", "tf32", "bf16"}
        Of matrix products; weights, losses and moments are float32 throughout.
    optimiser : {"adamw", "adam", "sgd"}
    betas, epsilon : (float, float), float
        Of the Adams.
    momentum : float
        Of SGD.
    weight_decay : float
        Decoupled in AdamW, an L2 penalty in the others.
    batch_size : int
        Stimuli a step. An epoch is divided evenly, so that no batch has more and none is a small rest.
    max_epochs : int
        0 only where weights before training are an epoch, see `train`.
    schedule : {"fixed", "step", "one-cycle"}
        Of the learning rate: constant; times `decay` every `decay_every` epochs; or up for the first 30 % of
        all steps and down to nearly nothing, as `torch.optim.lr_scheduler.OneCycleLR` without its momentum.
    cycle_epochs : int, optional
        Epochs of the one cycle, of which `max_epochs` may be the first; all of these by default.
    clip : float, optional
        Largest norm of the gradient of each part of the module.
    patience : int, optional
        Epochs without a new lowest held-out loss after which a part stops; None never stops.
    min_epochs : int
        Epochs before which nothing stops.

    Raises
    ------
    RequestError
        A value that is none of these.
    """

    learning_rate: float
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    optimiser: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    momentum: float = 0.9
    weight_decay: float = 1e-2
    batch_size: int = 128
    max_epochs: int = 100
    schedule: str = "step"
    decay: float = 0.75
    decay_every: int = 10
    cycle_epochs: int | None = None
    clip: float | None = None
    patience: int | None = 10
    min_epochs: int = 0

    def __post_init__(self) -> None:
        one_of("optimiser", self.optimiser, OPTIMISERS)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("precision", self.precision, PRECISIONS)
        for name in ("batch_size", "decay_every"):
            whole(name, getattr(self, name), 1)
        for name in ("seed", "max_epochs", "min_epochs"):
            whole(name, getattr(self, name), 0)
        if self.cycle_epochs is not None:
            whole("cycle_epochs", self.cycle_epochs, max(self.max_epochs, 1))
        for name in ("learning_rate", "epsilon", "decay"):
            number(name, getattr(self, name), above=0.0)
        for name in ("weight_decay", "momentum"):
            number(name, getattr(self, name), least=0.0)
        if self.patience is not None:
            whole("patience", self.patience, 1)
        if self.clip is not None:
            number("clip", self.clip, above=0.0)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise RequestError(f"betas must be two numbers in [0, 1), got {self.betas!r}.")

    def essentials(self) -> dict[str, Any]:
        """Return the values that decide what an epoch does: not the device, nor what the others leave unused."""
        unused = {"device"}
        unused |= {"betas", "epsilon"} if self.optimiser == "sgd" else {"momentum"}
        unused |= set() if self.schedule == "step" else {"decay", "decay_every"}
        unused |= {"max_epochs"} if self.schedule != "one-cycle" or self.cycle_epochs is not None else set()
        unused |= set() if self.schedule == "one-cycle" else {"cycle_epochs"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in unused}

    def make_optimiser(self, groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimiser of parameter groups, each a mapping with ``params`` and maybe its own ``lr``."""
        groups = [{"lr": self.learning_rate, **group, "params": list(group["params"])} for group in groups]
        if self.optimiser == "sgd":
            made: torch.optim.Optimizer = torch.optim.SGD(
                groups, momentum=self.momentum, weight_decay=self.weight_decay
            )
        else:
            kind = torch.optim.AdamW if self.optimiser == "adamw" else torch.optim.Adam
            fused = all(p.device.type in _FUSED for group in groups for p in group["params"])
            made = kind(
                groups, betas=self.betas, eps=self.epsilon, weight_decay=self.weight_decay, fused=fused
            )
        for group in made.param_groups:
            group["initial_lr"] = group["lr"]
        return made

    def rate(self, step: int, steps_an_epoch: int) -> float:
        """Return what the learning rates are multiplied by at a step, counted from 0 over all epochs."""
        if self.schedule == "fixed":
            return 1.0
        if self.schedule == "step":
            return float(self.decay ** (step // steps_an_epoch // self.decay_every))
        return one_cycle(step, steps_an_epoch * (self.cycle_epochs or self.max_epochs))


def one_cycle(
    step: int, n_steps: int, *, rise: float = 0.3, start: float = 1 / 25, end: float = 1e-4
) -> float:
    """Return a factor that rises from `start` to 1 and falls to ``start · end``, each along a cosine.

    References
    ----------
    Smith & Topin (2018), Super-convergence; with the defaults of torch's ``OneCycleLR``.
    """
    peak = rise * n_steps - 1
    if step <= peak:
        return _cosine(start, 1.0, step / peak)
    return _cosine(1.0, start * end, (step - peak) / max(n_steps - 1 - peak, 1))


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise `RequestError` unless a parameter is one of some names."""
    if value not in choices:
        raise RequestError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def whole(name: str, value: Any, least: int) -> None:
    """Raise `RequestError` unless a parameter is a whole number from `least` on."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise RequestError(f"{name} must be an int >= {least}, got {value!r}.")


def number(
    name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> None:
    """Raise `RequestError` unless a parameter is a finite number within its range."""
    given = float(value) if isinstance(value, Real) else math.nan
    if math.isfinite(given) and given >= least and above < given < below:
        return
    limits = [(">=", least), (">", above), ("<", below)]
    wanted = " and ".join(f"{sign} {limit:g}" for sign, limit in limits if math.isfinite(limit))
    raise RequestError(f"{name} must be a number {wanted}, got {value!r}.")
