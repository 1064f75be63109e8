"""featpipe: from images to scored encoding models of visual cortex.

``featpipe extract`` writes the embeddings of a network's layers to a cache; scikit-learn estimators read
them by stimulus id; ``featpipe fit`` runs a recipe. Names below are imported on first use, so that a
script pays only for what it touches; only heads and tuners need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "BandedRidge": "featpipe.encoding",
    "BestLayer": "featpipe.encoding",
    "CachedFeatures": "featpipe.features",
    "ChannelMask": "featpipe.rsa",
    "ChannelMaskTuner": "featpipe.tuning",
    "ContrastiveTuner": "featpipe.tuning",
    "DeepHead": "featpipe.tuning",
    "FeatureRDM": "featpipe.rsa",
    "FeatureReweightedRSA": "featpipe.rsa",
    "JoinedFeatures": "featpipe.features",
    "LayerBlocks": "featpipe.blocks",
    "LayerScaler": "featpipe.encoding",
    "LayerWeightedRSA": "featpipe.rsa",
    "LinearHead": "featpipe.tuning",
    "PerROI": "featpipe.encoding",
    "RDMs": "featpipe.rsa",
    "ResponseTuner": "featpipe.tuning",
    "RidgeEncoder": "featpipe.encoding",
    "SiameseGroupConvTuner": "featpipe.tuning",
    "SiameseTuner": "featpipe.tuning",
    "StackedLayers": "featpipe.encoding",
    "StimulusSet": "featpipe.stimuli",
    "VertexPositionHead": "featpipe.tuning",
    "evaluate": "featpipe.model_selection",
    "partition_variance": "featpipe.model_selection",
}
__all__ = [
    "BandedRidge",
    "BestLayer",
    "CachedFeatures",
    "ChannelMask",
    "ChannelMaskTuner",
    "ContrastiveTuner",
    "DeepHead",
    "FeatureRDM",
    "FeatureReweightedRSA",
    "JoinedFeatures",
    "LayerBlocks",
    "LayerScaler",
    "LayerWeightedRSA",
    "LinearHead",
    "PerROI",
    "RDMs",
    "ResponseTuner",
    "RidgeEncoder",
    "SiameseGroupConvTuner",
    "SiameseTuner",
    "StackedLayers",
    "StimulusSet",
    "VertexPositionHead",
    "evaluate",
    "partition_variance",
]

if TYPE_CHECKING:
    from featpipe.blocks import LayerBlocks
    from featpipe.encoding import BandedRidge, BestLayer, LayerScaler, PerROI, RidgeEncoder, StackedLayers
    from featpipe.features import CachedFeatures, JoinedFeatures
    from featpipe.model_selection import evaluate, partition_variance
    from featpipe.rsa import ChannelMask, FeatureRDM, FeatureReweightedRSA, LayerWeightedRSA, RDMs
    from featpipe.stimuli import StimulusSet
    from featpipe.tuning import (
        ChannelMaskTuner,
        ContrastiveTuner,
        DeepHead,
        LinearHead,
        ResponseTuner,
        SiameseGroupConvTuner,
        SiameseTuner,
        VertexPositionHead,
    )


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featpipe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
