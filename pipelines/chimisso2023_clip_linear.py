"""CLIP's image embedding and a linear map per ROI and hemisphere, in its ridge form.

    featpipe extract --recipe chimisso2023_clip_linear --data algonauts2023:DIR --subject 1
    featpipe fit chimisso2023_clip_linear --data algonauts2023:DIR --subject 1 --out run

Chimisso et al. train one linear layer per ROI with AdamW; each vertex of a ridge map has a penalty of its
own, so that one fit of all vertices is the fit of every ROI. The scores are given per ROI and hemisphere.
The embedding is the tower's output before normalisation, 512 numbers for ViT-B/32.
"""

import numpy as np
from sklearn.pipeline import Pipeline

from featpipe import CachedFeatures, LayerScaler, RidgeEncoder
from featpipe.recipes import Recipe

RECIPE = Recipe(
    summary="CLIP image embedding, one linear map per ROI and hemisphere (ridge form)",
    citation=(
        "Chimisso, Buršić, Marocco, Vizzari & Ognibene (2023), Exploration and comparison of deep learning "
        "architectures to predict brain response to realistic pictures, section 2.1."
    ),
    data=("algonauts2023", "table", "synthetic"),
    pipeline=Pipeline(
        [
            ("features", CachedFeatures(model="open_clip:ViT-B-32/openai", layers=["output"], reduce="none")),
            ("scale", LayerScaler()),
            ("ridge", RidgeEncoder(alphas=np.logspace(0, 7, 15), cv=5, scoring="pearson_r")),
        ]
    ),
)
