"""Stacked layers of two networks: a ridge per layer, and for each neuron or vertex a convex combination of them.

    featpipe extract --images table:DATA --preprocess whole --model timm:mobilenetv2_100 \\
        --layers 'blocks.[1-6].?:grid:4' --layers 'blocks.[2-4].?.se:grid:4'
    featpipe extract --images table:DATA --preprocess whole --model torchvision:squeezenet1_1 \\
        --layers 'features.[2-9]:grid:4' --layers 'features.1?:grid:4'
    featpipe fit stacked_layers --data table:DATA --out run

Penalties are chosen by generalised cross-validation and weights by inner folds, on the training stimuli of each outer
fold alone. The variants take one layer instead, chosen in inner folds for all targets or for each, or one ridge with
a penalty per layer and target. The layers, the grid and the floor of the scaler were settled on recordings of
macaque V4 (sessions 190923 and 210325) with the outer scores of about ten sets of layers in sight; expect those two
sessions' scores to be slightly optimistic, and not those of other data.
"""

import numpy as np
from sklearn.pipeline import Pipeline

from featpipe import (
    BandedRidge,
    BestLayer,
    CachedFeatures,
    JoinedFeatures,
    LayerScaler,
    RidgeEncoder,
    StackedLayers,
)
from featpipe.recipes import Recipe

WHOLE = {"crop": None}
NETWORKS = [
    (
        "mobilenet",
        CachedFeatures(
            model="timm:mobilenetv2_100",
            layers=["blocks.[1-6].?", "blocks.[2-4].?.se"],
            reduce="grid:4",
            preprocess=WHOLE,
        ),
    ),
    (
        "squeezenet",
        CachedFeatures(
            model="torchvision:squeezenet1_1",
            layers=["features.[2-9]", "features.1?"],
            reduce="grid:4",
            preprocess=WHOLE,
        ),
    ),
]
RIDGE = RidgeEncoder(alphas=np.logspace(1, 8, 15), cv="gcv")


def on_layers(encoder):
    scaler = LayerScaler(floor=0.5, output="blocks")
    return Pipeline([("features", JoinedFeatures(NETWORKS)), ("scale", scaler), ("encoder", encoder)])


RECIPE = Recipe(
    summary="Stacked layers of two networks: a ridge per layer, combined per target (or the best layer, or bands)",
    citation=(
        "Breiman (1996), Stacked regressions, Machine Learning 24, 49-64; Lin, Naselaris, Kay & Wehbe (2023), "
        "Stacked regressions and structured variance partitioning for interpretable brain maps."
    ),
    pipeline=on_layers(StackedLayers(RIDGE, shrinkage=0.1)),
    variants={
        "best-layer": on_layers(BestLayer(RIDGE, per="all")),
        "best-layer-per-target": on_layers(BestLayer(RIDGE, per="target")),
        "banded": on_layers(BandedRidge(mixture="shared", refine=8, scoring="pearson_r")),
    },
)
