"""Learning to aggregate: one coefficient per channel over five stages of SE-ResNeXt-50, fitted to RDMs.

    featpipe extract --recipe gaziv2019_channel_mask --data algonauts2019:DIR
    featpipe fit gaziv2019_channel_mask --data algonauts2019:DIR --target EVC --out run

`--target` EVC, IT, MEG-early or MEG-late takes the configuration of Table 1 with the backbone left fixed. MEG is
sampled over its time axis; where the data are averaged over time, say --set mask__time_sampling=mean.

The finer resolution of 17 stages, one stage alone, one coefficient per stage, and random crops:

    --set features__layers='["pool0", "layer[1-4].*"]'     (extract with the same --set)
    --set features__layers='["layer3"]'
    --set mask__resolution=stage
    --set features__views=4                                (extract with the same --set: four crops of 87.5 %)

The loss on raw dissimilarities mostly learns their mean. These repairs let the mask generalise better:

    --set mask__line=true              a scale and an offset per stimulus set
    --set mask__loss=correlation       correlation within each stimulus set
"""

from sklearn.pipeline import Pipeline

from featpipe import CachedFeatures, ChannelMask
from featpipe.recipes import Recipe

_MEG = {"mask__time_sampling": "gaussian", "mask__reliability": True, "mask__epochs": 40}

RECIPE = Recipe(
    summary="A learned coefficient per channel of five stages, so that 1 - r matches the RDMs of all subjects",
    citation="Gaziv (2019), Learning to aggregate feature representations, arXiv:1907.00950, section 2 and Table 1.",
    data=("algonauts2019", "table"),
    scoring=("rdm_rho", "rdm_r2", "rdm_percent"),
    search_scoring="rdm_rho",
    cv="set",
    pipeline=Pipeline(
        [
            (
                "features",
                CachedFeatures(
                    model="timm:legacy_seresnext50_32x4d",
                    layers=["pool0", "layer1", "layer2", "layer3", "layer4"],
                    reduce="none",
                    output="blocks",
                ),
            ),
            ("mask", ChannelMask(loss="l1", solver="adam", validation="pairs", random_state=0)),
        ]
    ),
    per_target={
        "EVC": {"mask__train_on": ["EVC", "MEG-early"], **_MEG, "mask__epochs": 15},
        "IT": {"mask__reliability": False, "mask__epochs": 15},
        "MEG-early": _MEG,
        "MEG-late": _MEG,
    },
)
