"""CLIP's image embedding and a deep head per ROI and hemisphere.

    featpipe fit chimisso2023_deep --data algonauts2023:DIR --subject 1 --extract --out run
    featpipe fit chimisso2023_deep --variant shared-trunk --data algonauts2023:DIR --subject 1,2 --target OFA --out both

Four blocks of a linear layer, batch norm and LeakyReLU, and a linear layer to the vertices. The first and the third
block are 1.25 times as wide as what they are given, with 5 % dropout; the second and the fourth are residual. All
ROIs are trained in one batched pass, each stopped by itself. `plain` is what the report began with: four blocks of
one width without residuals and dropout. `shared-trunk` has one trunk for all ROIs, and for all subjects where several
are joined: what the report calls cross-subject.
"""

from sklearn.pipeline import Pipeline

from featpipe import CachedFeatures, DeepHead, LayerScaler
from featpipe.recipes import Recipe


def deep(**params):
    features = CachedFeatures(model="open_clip:ViT-B-32/openai", layers=["output"], reduce="none")
    head = DeepHead(learning_rate=5e-6, decay=0.75, decay_every=10, **params)
    return Pipeline([("features", features), ("scale", LayerScaler()), ("head", head)])


RECIPE = Recipe(
    summary="CLIP image embedding, a deep residual head per ROI and hemisphere, or one trunk for all",
    citation=(
        "Chimisso, Buršić, Marocco, Vizzari & Ognibene (2023), Exploration and comparison of deep learning "
        "architectures to predict brain response to realistic pictures, section 2.2 and the table of section 4."
    ),
    data=("algonauts2023", "table", "synthetic"),
    pipeline=deep(),
    variants={"shared-trunk": deep(share="all"), "plain": deep(residual=False, widening=1.0, dropout=0.0)},
)
