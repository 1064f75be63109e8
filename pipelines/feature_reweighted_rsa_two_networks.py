r"""Feature-reweighted RSA on the layers of two networks at once: what generalised best between the 2019 image sets.

    featpipe extract --model timm:mobilenetv2_100 --preprocess whole --images algonauts2019:DIR \
        --layers bn1 --layers 'blocks.*.?' --layers bn2
    featpipe extract --model torchvision:squeezenet1_1 --preprocess whole --images algonauts2019:DIR \
        --layers 'features.*'
    featpipe fit feature_reweighted_rsa_two_networks --data algonauts2019:DIR --target EVC --out evc
    featpipe fit feature_reweighted_rsa_two_networks --data algonauts2019:DIR --target IT --out it

or --extract with the fit, where the zoos' own weights are at hand. EVC has weights on the RDMs of channels and on
directions in the deep layers, half of the variance each; IT on directions alone, with three deals of the inner folds.
Penalties look at held-out stimuli of the scored target; MEG of the window that goes with it helps to fit.
"""

from sklearn.pipeline import Pipeline

from featpipe import CachedFeatures, FeatureReweightedRSA, JoinedFeatures
from featpipe.recipes import Recipe

_DEEP = ["mobilenet:blocks.[456].*", "mobilenet:bn2", "squeezenet:features.9", "squeezenet:features.1[012]"]

_LATE = {"rsa__predictors": "metric", "rsa__shares": None, "rsa__repeats": 3}

RECIPE = Recipe(
    summary="Feature-reweighted RSA on the channels and deep directions of two networks, fMRI and MEG together",
    citation=(
        "Kaniuth & Hebart (2022), Feature-reweighted representational similarity analysis, NeuroImage 257, 119294, "
        "section 2.3; the metric per layer is our addition."
    ),
    data=("algonauts2019", "table"),
    scoring=("rdm_rho", "rdm_r2", "rdm_percent"),
    search_scoring="rdm_rho",
    cv="set",
    pipeline=Pipeline(
        [
            (
                "features",
                JoinedFeatures(
                    [
                        (
                            "mobilenet",
                            CachedFeatures(
                                model="timm:mobilenetv2_100",
                                layers=["bn1", "blocks.*.?", "bn2"],
                                reduce="none",
                                preprocess="whole",
                            ),
                        ),
                        (
                            "squeezenet",
                            CachedFeatures(
                                model="torchvision:squeezenet1_1",
                                layers=["features.*"],
                                reduce="none",
                                preprocess="whole",
                            ),
                        ),
                    ]
                ),
            ),
            (
                "rsa",
                FeatureReweightedRSA(
                    ["channel", "metric"], shares=[(1, 1)], metric_layers=_DEEP, repeats=1, random_state=0
                ),
            ),
        ]
    ),
    per_target={
        "EVC": {"rsa__train_on": ["EVC", "MEG-early"], "rsa__select_on": "EVC"},
        "IT": {"rsa__train_on": ["IT", "MEG-late"], "rsa__select_on": "IT", **_LATE},
        "MEG-early": {"rsa__train_on": ["EVC", "MEG-early"], "rsa__select_on": "MEG-early"},
        "MEG-late": {"rsa__train_on": ["IT", "MEG-late"], "rsa__select_on": "MEG-late", **_LATE},
    },
)
