"""Tuning tests share a small problem and the naive loop that everything is compared with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from featpipe.tuning import Training
from featpipe.tuning._steps import seed_of, shuffled


@pytest.fixture
def problem():
    """70 stimuli of 5 features and the responses of 6 targets in units of their own."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((70, 5)).astype(np.float32)
    Y = X @ rng.standard_normal((5, 6)) + 0.5 * rng.standard_normal((70, 6))
    return X, 3 + 2 * Y


@pytest.fixture
def naive_training():
    return _naive_training


def _naive_training(module, X, Y, training: Training, rows, held_out, weight=None):
    """Train any module on one ROI, as in the first tutorial of torch; return its losses and its best epoch."""
    X, Y = torch.as_tensor(X), torch.as_tensor(np.asarray(Y, dtype=np.float32))
    weight = torch.ones(len(X)) if weight is None else torch.as_tensor(weight, dtype=torch.float32)
    optimiser = torch.optim.AdamW(
        module.parameters(),
        lr=training.learning_rate,
        betas=training.betas,
        weight_decay=training.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, training.decay_every, training.decay)
    losses, best, kept = [], np.inf, None
    for epoch in range(1, training.max_epochs + 1):
        module.train()
        for batch in shuffled(rows, training.batch_size, seed_of(training.seed, epoch)):
            optimiser.zero_grad()
            _masked_mse(module(X[batch]), Y[batch], weight[batch]).backward()
            optimiser.step()
        schedule.step()
        module.eval()
        with torch.no_grad():
            losses.append(float(_masked_mse(module(X[held_out]), Y[held_out], weight[held_out])))
        if losses[-1] < best:
            best, kept = losses[-1], {k: v.clone() for k, v in module.state_dict().items()}
            best_epoch = epoch
        if epoch - best_epoch >= training.patience:
            break
    module.load_state_dict(kept)
    return np.array(losses), best_epoch


def _masked_mse(predicted, measured, weight):
    """The loss of one ROI, written out."""
    there = ~measured.isnan() * weight[:, None]
    error = F.mse_loss(predicted, measured.nan_to_num(), reduction="none")
    return (there * error).sum() / there.sum()
