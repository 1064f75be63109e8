"""What a tuner trains: a module around the network, what it minimises, and what stops it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from featpipe.tuning._loop import Objective

# seed of an epoch -> its batches, tensors that the objective is called with
Batches = Callable[[int], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Plan:
    """One training of a network.

    Parameters
    ----------
    module : nn.Module
        Has the `Body` as ``body``; whatever else it has is the tuner's head.
    objective : callable (batch, generator) -> (sums of losses, weights), tensors of shape (1,)
    batches : ndarray of int, or callable (seed) -> sequence of tensors
        Rows to shuffle and divide, or the batches of an epoch themselves.
    held_out : ndarray of int, or callable () -> ndarray of shape (1,), optional
        Rows whose loss stops the training, or what is to be lowest after each epoch: held-out stimuli only.
    groups : sequence of mapping, optional
        Parameter groups with learning rates of their own; all that is trainable with one rate by default.
    """

    module: nn.Module
    objective: Objective
    batches: np.ndarray | Batches
    held_out: np.ndarray | Callable[[], np.ndarray] | None = None
    groups: Sequence[Mapping[str, Any]] | None = field(default=None)
