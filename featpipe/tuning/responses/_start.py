"""Where linear maps begin: at ridge on the untuned features, so that a network is moved by what a linear map misses."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from featpipe.encoding import RidgeEncoder
from featpipe.errors import RequestError
from featpipe.tuning.responses._projection import SharedProjection

_FEWEST = 4  # two folds of two stimuli


def ridge_map(features: np.ndarray, Y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights (n_targets, n_features) and intercepts (n_targets,) of ridge, float32.

    The penalty of each target is chosen by cross-validation over these stimuli, (n_stimuli, n_features) and
    (n_stimuli, n_targets).
    """
    if len(Y) < _FEWEST:
        raise RequestError(
            f"start='ridge' chooses penalties on the stimuli that are fitted, of which there are {len(Y)}; at least "
            f"{_FEWEST} are needed. Give more, or set another start."
        )
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
    """Set g_Y to the v₁ principal axes of what ridge predicts of the responses, and g_A to the same of the prediction.

    Both modalities of a stimulus then enter the head near each other, and with a v₁ well below the number of targets
    the directions are those that images have a part in. Axes that predictions do not have are drawn.
    """
    weight, bias = ridge_map(features, Y)
    with torch.no_grad():
        of_responses, of_features = projection.of_responses, projection.of_features
        of_responses.weight.copy_(principal_axes(features, weight, len(of_responses.weight), generator))
        of_responses.bias.zero_()
        of_features.weight.copy_(of_responses.weight @ weight)
        of_features.bias.copy_(of_responses.weight @ bias)


def principal_axes(
    features: np.ndarray, weight: torch.Tensor, n_axes: int, generator: torch.Generator
) -> torch.Tensor:
    """Return orthonormal rows (n_axes, n_targets): those that predictions vary along most come first.

    Parameters
    ----------
    features : ndarray of shape (n_stimuli, n_features)
    weight : tensor of shape (n_targets, n_features)
    n_axes : int
    generator : torch.Generator
    """
    centred = torch.as_tensor(features - features.mean(axis=0))
    spread = torch.linalg.qr(centred, mode="r").R @ weight.T  # predictions, rotated to few rows
    axes = torch.linalg.svd(spread, full_matrices=False).Vh[:n_axes]
    others = torch.randn(len(weight), n_axes - len(axes), generator=generator)
    return torch.linalg.qr(torch.cat([axes.T, others], dim=1)).Q.T
