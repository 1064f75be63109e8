"""Ridge from any layers of any model to responses: what every other recipe has to beat.

    featpipe extract --model timm:resnet50 --layers 'layer3:grid:4' --images DATA/stimuli.zip
    featpipe fit baseline_ridge --data table:DATA --set features__layers='["layer3"]' --out run

Model, weights and reduction are taken from the cache where only one is there. Several layers are put side by
side; to let each training set choose one of them, search:

    featpipe fit baseline_ridge … --search features__layers='[["layer2"], ["layer3"]]'
"""

import numpy as np
from sklearn.pipeline import Pipeline

from featpipe import CachedFeatures, LayerScaler, RidgeEncoder
from featpipe.recipes import Recipe

RECIPE = Recipe(
    summary="Ridge per target from any layers of any cached model, penalties chosen inside each fold",
    citation=(
        "Naselaris, Kay, Nishimoto & Gallant (2011), Encoding and decoding in fMRI, NeuroImage 56, 400-410; "
        "ridge as in Hastie, Tibshirani & Friedman (2009), section 3.4.1."
    ),
    pipeline=Pipeline(
        [
            # output="blocks" keeps layers apart, so that the scaler floors deviations within each of them
            ("features", CachedFeatures(output="blocks")),
            ("scale", LayerScaler()),
            ("ridge", RidgeEncoder(alphas=np.logspace(0, 8, 17), cv=5, scoring="pearson_r")),
        ]
    ),
)
