r"""Weights on the RDMs of single channels and on directions in the deep layers, by ridge.

    featpipe extract --model timm:resnet50 --layers 'layer[1-4].*' --preprocess whole --images algonauts2019:DIR
    featpipe fit feature_reweighted_rsa --data algonauts2019:DIR --target EVC --out run

Every cached layer of the only network takes part; name some with --set features__layers=… and deep ones for the
directions with --set rsa__metric_layers=…. Penalties are chosen on inner held-out stimuli of the scored target. fMRI is
fitted together with the MEG window that it goes with; --set rsa__train_on='["EVC"]' leaves MEG out. IT has weights on
directions alone, which generalised better between image sets. feature_reweighted_rsa_two_networks takes two networks.

Other forms: --set rsa__predictors=channel, --set rsa__form=correlation, --set rsa__signed=false (non-negative),
--set rsa__main_effects=features.
"""

from sklearn.pipeline import Pipeline

from featpipe import CachedFeatures, FeatureReweightedRSA
from featpipe.recipes import Recipe

_LATE = {"rsa__predictors": "metric", "rsa__shares": None, "rsa__repeats": 3}

RECIPE = Recipe(
    summary="Ridge weights on the RDMs of channels and of directions in feature space, fMRI and MEG together",
    citation=(
        "Kaniuth & Hebart (2022), Feature-reweighted representational similarity analysis, NeuroImage 257, 119294, "
        "section 2.3."
    ),
    data=("algonauts2019", "table"),
    scoring=("rdm_rho", "rdm_r2", "rdm_percent"),
    search_scoring="rdm_rho",
    cv="set",
    pipeline=Pipeline(
        [
            ("features", CachedFeatures(layers=["**"], output="blocks")),
            (
                "rsa",
                FeatureReweightedRSA(["channel", "metric"], shares=[(1, 1)], repeats=1, random_state=0),
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
