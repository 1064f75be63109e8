"""The baseline of the Algonauts 2023 development kit: AlexNet, 100 principal components, least squares.

    featpipe fit baseline_algonauts2023 --data algonauts2023:DIR --subject 1 --extract --out run

Images are resized to 224×224 without crop. Components are those of the training stimuli of each fold; the kit's
own layer is `features.2`, and `--set features__layers` takes any other.
"""

from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from featpipe import CachedFeatures, RidgeEncoder
from featpipe.recipes import Recipe

RECIPE = Recipe(
    summary="The challenge's baseline: AlexNet features.2, 100 principal components, least squares per vertex",
    citation=(
        "Gifford, Lahner, Saba-Sadiya, Vilas, Lascelles, Oliva, Kay, Roig & Cichy (2023), The Algonauts Project "
        "2023 challenge: how the human brain makes sense of natural scenes, arXiv 2301.03198, section 4 and its "
        "development kit."
    ),
    data=("algonauts2023", "table", "synthetic"),
    pipeline=Pipeline(
        [
            (
                "features",
                CachedFeatures(model="torchvision:alexnet", layers=["features.2"], preprocess="whole"),
            ),
            ("scale", StandardScaler(copy=False)),
            ("pca", PCA(n_components=100, svd_solver="randomized", random_state=0)),
            ("least_squares", RidgeEncoder(alpha=0.0)),  # without a penalty
        ]
    ),
)
