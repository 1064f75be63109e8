"""What chooses the epoch: how well held-out stimuli are predicted from the features as they are."""

from __future__ import annotations

import numpy as np
import torch

from featpipe.encoding import LayerScaler
from featpipe.encoding.ridge._encoder import ALPHAS
from featpipe.encoding.ridge._gram import GramStatistics
from featpipe.encoding.ridge._ridge import cross_validated_scores
from featpipe.tuning.network import Body
from featpipe.tuning.responses._measured import Measured

_BATCH = 64  # images, where no gradient is needed


def held_out_correlation(features: np.ndarray, Y: np.ndarray, n_fitted: int) -> float:
    """Return the mean held-out r of ridge from features to responses.

    The first stimuli are fitted, with one penalty for all targets; the others are predicted. Of 13 penalties the one
    counts that predicts them best.

    Parameters
    ----------
    features : ndarray of shape (n_stimuli, n_features), float32
    Y : ndarray of shape (n_stimuli, n_targets)
    n_fitted : int

    Returns
    -------
    r : float
        NaN where a feature is no number.
    """
    if not np.isfinite(features).all():
        return float("nan")
    scaled = LayerScaler().fit(features[:n_fitted]).transform(features)
    split = (np.arange(n_fitted), np.arange(n_fitted, len(features)))
    scores = cross_validated_scores(
        GramStatistics(scaled), Y, np.asarray(ALPHAS), [split], scoring="pearson_r"
    )
    return float(scores.mean(axis=1).max())


class HeldOutRidge:
    """Minus the held-out r of ridge on the features of a network, whatever head trains it.

    A loss would compare a trained head with the untrained one of epoch 0, and choose later epochs for their head's
    sake. The ridge is fitted anew each time, to the stimuli that the network is trained on, so that what a network
    has learned by heart counts against it. It costs a pass without gradients over all images. Missing responses
    count as the mean.

    Parameters
    ----------
    body : Body
    measured : Measured
        With stimuli to stop by.
    """

    def __init__(self, body: Body, measured: Measured) -> None:
        assert measured.held_out is not None
        self.body = body
        self.n_fitted = len(measured.rows)
        self.rows = np.concatenate([measured.rows, measured.held_out])
        self.Y = measured.filled[self.rows]

    def __call__(self) -> np.ndarray:
        """Return an ndarray of shape (1,)."""
        features = features_of(self.body, self.rows).cpu().numpy()
        return np.array([-held_out_correlation(features, self.Y, self.n_fitted)])


def features_of(body: Body, rows: np.ndarray) -> torch.Tensor:
    """Return the layers of images as they are now, side by side: (n_rows, n_features), float32, on the device."""
    with torch.no_grad():
        return torch.cat([flat(body(part, None)) for part in torch.as_tensor(rows).split(_BATCH)])


def flat(layers: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Put layers (n_batch, *row) side by side."""
    return torch.cat([layer.flatten(1).float() for layer in layers], dim=1)
