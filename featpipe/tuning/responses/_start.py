"""Where linear maps begin: at ridge on the untuned features, so that a network is moved by what a linear map misses."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from featpipe.encoding import RidgeEncoder
from featpipe.tuning.responses._projection import SharedProjection


def ridge_map(features: np.ndarray, Y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights (n_targets, n_features) and intercepts (n_targets,) of ridge, float32.

    The penalty of each target is chosen by cross-validation over these stimuli, (n_stimuli, n_features) and
    (n_stimuli, n_targets).
    """
    ridge = RidgeEncoder(cv=min(5, len(Y) // 2)).fit(features, Y)
    return torch.as_tensor(ridge.coef_).float(), torch.as_tensor(ridge.intercept_).float()


def solve_readout(linear: nn.Linear, features: np.ndarray, Y: np.ndarray) -> None:
    """Set a read-out to ridge."""
    with torch.no_grad():
        for parameter, solved in zip((linear.weight, linear.bias), ridge_map(features, Y), strict=True):
            parameter.copy_(solved)


def solve_projection(
    projection: SharedProjection, features: np.ndarray, Y: np.ndarray, generator: torch.Generator
) -> None:
    """Set g_Y to v₁ orthonormal directions of the responses, and g_A to the same of what ridge predicts of them.

    Both modalities of a stimulus then enter the head near each other, instead of in places that are drawn.
    """
    weight, bias = ridge_map(features, Y)
    with torch.no_grad():
        of_responses, of_features = projection.of_responses, projection.of_features
        nn.init.orthogonal_(of_responses.weight, generator=generator)
        of_responses.bias.zero_()
        of_features.weight.copy_(of_responses.weight @ weight)
        of_features.bias.copy_(of_responses.weight @ bias)
