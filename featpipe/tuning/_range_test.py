"""The learning-rate range test: the rate grows with each step, and the loss says where training begins and breaks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from featpipe.errors import MissingDependency, RequestError, WorkError
from featpipe.extraction._forward import precision_of
from featpipe.tuning._parts import Parts
from featpipe.tuning._steps import Objective, Rows, Steps, own_random_state, trainable
from featpipe.tuning._training import Training, number, whole

_TOO_HIGH = 3.0  # above its lowest by so many times its size: four times as high, where losses are positive
_LEAST_STEPS = 10


@dataclass(frozen=True, eq=False)
class RangeTest:
    """What a range test has seen.

    Parameters
    ----------
    rates, losses : ndarray of shape (n_done,)
        Learning rate of each step, and the loss of its batch before it.
    smoothed : ndarray of shape (n_done,)
        `smooth` of the losses.
    suggestion : float
        See `suggest`.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float

    def table(self) -> dict[str, np.ndarray]:
        """Return the columns of a table of steps: ``learning_rate``, ``loss``, ``smoothed_loss``."""
        return {"learning_rate": self.rates, "loss": self.losses, "smoothed_loss": self.smoothed}

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the curve with the suggestion marked; the name's ending says the format, such as ``.png``.

        Raises
        ------
        MissingDependency
            matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingDependency(
                "Plots need matplotlib, which is not installed: pip install 'featpipe[report]'."
            ) from error
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, ".", color="0.75", markersize=4, label="batches")
        axes.plot(self.rates, self.smoothed, color="C0", label="smoothed")
        axes.axvline(self.suggestion, color="C3", linestyle="--", label=f"suggestion {self.suggestion:.2g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=self._limits())
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=3)
        figure.savefig(path, dpi=150)

    def _limits(self) -> tuple[float, float]:
        """Leave the explosion at the end out of the picture: the fall is what one looks for."""
        low, high = min(self.losses.min(), self.smoothed.min()), np.quantile(self.losses, 0.9)
        margin = 0.1 * (max(high, self.smoothed[0]) - low)
        return low - margin, max(high, self.smoothed[0]) + 2 * margin


def range_test(
    module: nn.Module,
    objective: Objective,
    training: Training,
    *,
    rows: Rows,
    groups: Sequence[Mapping[str, Any]] | None = None,
    lowest: float = 1e-7,
    highest: float = 10.0,
    n_steps: int = 100,
    smoothing: float = 0.9,
) -> RangeTest:
    """Train with a learning rate that grows at each step, note the loss, and leave the module as it was.

    ``rate_i = lowest (highest / lowest)^(i / (n_steps - 1))``. It ends early once the running mean of the loss is
    above four times its lowest, or the loss is no number.

    Parameters
    ----------
    module, objective, training, rows, groups
        As `train` takes them. Groups with rates of their own keep their ratio to ``training.learning_rate``, which
        is what `rates` and `suggestion` stand for.
    lowest, highest : float
    n_steps : int
        At least 10; epochs are repeated as needed.
    smoothing : float
        In [0, 1): see `smooth`.

    Returns
    -------
    RangeTest

    Raises
    ------
    RequestError
        Values that make no range, or there is nothing to train or to fit.
    WorkError
        The loss does not fall, or is no number from the first.

    References
    ----------
    Smith (2015), Cyclical learning rates for training neural networks, section 3.3.
    """
    _check(lowest, highest, n_steps, smoothing)
    rates = np.geomspace(lowest, highest, n_steps)
    device = next(module.parameters()).device
    precision = precision_of("tf32" if training.precision == "tf32" else "fp32", device)
    with _as_found(module), own_random_state(device), precision:
        losses = _grow(module, objective, training, rows, groups, rates, smoothing)
    rates = rates[: len(losses)]
    smoothed = smooth(losses, smoothing)
    return RangeTest(rates, losses, smoothed, suggest(rates, losses, smoothed, smoothing))


def smooth(losses: np.ndarray, smoothing: float) -> np.ndarray:
    """Return ``Σ_j s^|i-j| l_j / Σ_j s^|i-j|``: unlike a running mean it does not lag behind.

    Losses after the lowest count as no higher than any before it, or the last would outweigh all others.
    """
    steps = np.arange(len(losses))
    weight = smoothing ** np.abs(steps[:, None] - steps)
    return weight @ np.minimum(losses, losses[: losses.argmin() + 1].max()) / weight.sum(axis=1)


def suggest(rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, smoothing: float) -> float:
    """Return the rate at which the smoothed loss falls most steeply on its way to its lowest.

    A fall, from the mean over the first half of that way, counts where it is more than three standard errors of the
    smoothed loss; noise alone makes two in a hundred that count. Second differences of the losses say how large
    the noise is.

    Raises
    ------
    WorkError
        There is no such fall.
    """
    end = int(np.argmin(smoothed))
    fall = smoothed[: max(end // 2, 1)].mean() - smoothed[end]
    noise = 1.4826 * np.median(np.abs(np.diff(losses[: max(end, 2) + 1], n=2))) / np.sqrt(6)
    error = noise * np.sqrt((1 - smoothing) / (1 + smoothing))  # of a mean with weights s^|i-j|, about
    if end == 0 or fall <= 3 * error:
        raise WorkError(
            f"The loss does not fall at any learning rate from {rates[0]:.1e} to {rates[-1]:.1e}: it is "
            f"{smoothed[0]:.4g} at first and {smoothed[end]:.4g} at its lowest, which noise explains. Try another "
            "range or more steps, or set learning_rate."
        )
    return float(rates[np.argmin(np.diff(smoothed[: end + 1]))])


def _grow(module, objective, training, rows, groups, rates, smoothing) -> np.ndarray:
    """Return the loss of each step until it breaks, (n_done,)."""
    optimiser = training.make_optimiser(groups or trainable(module))
    parts = Parts(module, None, 1)
    steps = Steps(objective, training, optimiser, parts, next(module.parameters()).device)
    module.train()
    losses: list[float] = []
    mean, lowest = 0.0, np.inf
    for rate, (batch, generator) in zip(rates, _endless(steps, rows), strict=False):
        sums, weights = steps(batch, generator, rate / training.learning_rate)
        loss = float((sums / weights.clamp(min=1e-12)).mean())
        if not np.isfinite(loss):
            break
        losses.append(loss)
        mean = smoothing * mean + (1 - smoothing) * loss
        smoothed = mean / (1 - smoothing ** len(losses))
        lowest = min(lowest, smoothed)
        if smoothed > _too_high(lowest):
            break
    if len(losses) < 3:
        raise WorkError(
            f"The loss is no number at a learning rate of {rates[len(losses)]:.1e}. Check what goes in."
        )
    return np.array(losses)


def _endless(steps: Steps, rows: Rows) -> Iterator[tuple[torch.Tensor, torch.Generator]]:
    epoch = 0
    while True:
        epoch += 1
        batches, generator = steps.begin(rows, epoch)
        for batch in batches:
            yield batch, generator


@contextmanager
def _as_found(module: nn.Module) -> Iterator[None]:
    """Give a module back with the weights, buffers, gradients and modes that it came with."""
    parts = Parts(module, None, 1)
    modes = {part: part.training for part in module.modules()}
    found = {p: (p.grad, p.requires_grad) for p in module.parameters()}
    try:
        yield
    finally:
        parts.restore()
        for part, mode in modes.items():
            part.training = mode
        for p, (gradient, free) in found.items():
            p.grad = gradient
            p.requires_grad_(free)


def _too_high(loss: float) -> float:
    return loss + _TOO_HIGH * abs(loss)


def _check(lowest: float, highest: float, n_steps: int, smoothing: float) -> None:
    number("lowest", lowest, above=0.0)
    number("highest", highest, above=float(lowest))
    whole("n_steps", n_steps, _LEAST_STEPS)
    number("smoothing", smoothing, least=0.0, below=1.0)
    if not np.isfinite(highest / lowest):
        raise RequestError(f"highest / lowest must be finite, got {highest:g} / {lowest:g}.")
