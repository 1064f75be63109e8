"""CLIP's image embedding and one linear map per ROI and hemisphere: as a ridge, and as the report trained it.

    featpipe extract --recipe chimisso2023_clip_linear --data algonauts2023:DIR --subject 1
    featpipe fit chimisso2023_clip_linear --data algonauts2023:DIR --subject 1 --out run
    featpipe fit chimisso2023_clip_linear --variant adamw-per-roi --data algonauts2023:DIR --subject 1 --out adamw

Each vertex of a ridge map has a penalty of its own, so that one fit of all vertices is the fit of every ROI;
in `ridge-per-roi` the vertices of a ROI share one. The report's form is a linear layer trained with AdamW and
stopped early: all vertices at once (`adamw-all`), or per ROI and hemisphere, each stopped by itself
(`adamw-per-roi`), which was its best model. The scores are given per ROI and hemisphere. The embedding is the
tower's output before normalisation, 512 numbers for ViT-B/32.
"""

import numpy as np
from sklearn.pipeline import Pipeline

from featpipe import CachedFeatures, LayerScaler, LinearHead, PerROI, RidgeEncoder
from featpipe.recipes import Recipe


def on_clip(name, head):
    features = CachedFeatures(model="open_clip:ViT-B-32/openai", layers=["output"], reduce="none")
    return Pipeline([("features", features), ("scale", LayerScaler()), (name, head)])


# by R²: penalties chosen by r leave the noise of weakly predicted vertices unshrunk, of which a whole brain has many
RIDGE = RidgeEncoder(alphas=np.logspace(0, 7, 15), cv=5, scoring="r2")

RECIPE = Recipe(
    summary="CLIP image embedding, one linear map per ROI and hemisphere (ridge, or AdamW as in the report)",
    citation=(
        "Chimisso, Buršić, Marocco, Vizzari & Ognibene (2023), Exploration and comparison of deep learning "
        "architectures to predict brain response to realistic pictures, section 2.1 and the table of section 4."
    ),
    data=("algonauts2023", "table", "synthetic"),
    pipeline=on_clip("ridge", RIDGE),
    variants={
        "ridge-per-roi": on_clip("rois", PerROI(RIDGE, penalty="group")),
        "adamw-all": on_clip("head", LinearHead("all", learning_rate=1e-3, decay=0.5, decay_every=10)),
        "adamw-per-roi": on_clip("head", LinearHead(learning_rate=1e-4, decay=0.75, decay_every=10)),
    },
)
