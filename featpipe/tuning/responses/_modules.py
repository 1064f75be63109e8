"""A network with what maps its features to responses, or to a space that responses are mapped to as well."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from featpipe.encoding import LayerScaler
from featpipe.tuning.network import Body
from featpipe.tuning.responses._projection import SharedProjection
from featpipe.tuning.responses._stopping import flat


class Standardised(nn.Module):
    """Features as the untuned network spread them over the fitted stimuli: a fixed part of the linear map behind it.

    Without it the channels that happen to be large would learn first.
    """

    origin: torch.Tensor
    unit: torch.Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("origin", torch.zeros(n_features))
        self.register_buffer("unit", torch.ones(n_features))

    def learn(self, features: np.ndarray) -> np.ndarray:
        """Take the moments of features (n_stimuli, n_features), and return them standardised."""
        scaler = LayerScaler().fit(features)
        self.origin.copy_(torch.as_tensor(scaler.mean_))
        self.unit.copy_(torch.as_tensor(scaler.scale_))
        return scaler.transform(features)

    def forward(self, layers: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return (n_batch, n_features) of layers (n_batch, *row)."""
        return (flat(layers) - self.origin) / self.unit


class ContrastiveModule(nn.Module):
    """The network and `SharedProjection`, called with rows and responses.

    Parameters
    ----------
    body : Body
    n_features : int
    projection : SharedProjection
    """

    def __init__(self, body: Body, n_features: int, projection: SharedProjection) -> None:
        super().__init__()
        self.body, self.standardised, self.projection = body, Standardised(n_features), projection

    def forward(
        self, rows: torch.Tensor, responses: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (z of responses, z of images), each (n_batch, n_projected)."""
        return self.projection(self.standardised(self.body(rows, generator)), responses)


class Readout(nn.Module):
    """The network and a linear map of its layers to responses.

    Parameters
    ----------
    body : Body
    n_features, n_targets : int
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, body: Body, n_features: int, n_targets: int) -> None:
        super().__init__()
        self.body, self.standardised = body, Standardised(n_features)
        self.linear = nn.utils.skip_init(nn.Linear, n_features, n_targets)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("mean", torch.zeros(n_targets))
        self.register_buffer("scale", torch.ones(n_targets))

    def forward(self, rows: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Return standardised responses, (n_batch, n_targets)."""
        return self.linear(self.standardised(self.body(rows, generator)))

    def predict(self, rows: torch.Tensor) -> torch.Tensor:
        """Return responses in their unit, (n_batch, n_targets)."""
        return self(rows, None) * self.scale + self.mean
