"""Learning to aggregate, train all: one coefficient per channel over five stages, and SE-ResNeXt-50 itself.

    featpipe fit gaziv2019_train_all --data algonauts2019:DIR --target EVC --out run

`--target` EVC, IT, MEG-early or MEG-late takes the configuration of Table 1: for IT the network is frozen and the
mask trained alone. MEG is sampled over its time axis; where the data are averaged over time, say
--set tuner__time_sampling=mean. Random crops of 87.5 % are drawn anew for every batch.

The report holds out pairs; here the epoch is chosen by stimuli, unless you say

    --set tuner__validation=pairs

Beside it, the network as it came and the mask alone:

    --set tuner__max_epochs=0
    --set 'tuner__frozen=**'

What lets the result generalise better, and what takes far fewer passes through the network:

    --set tuner__loss=correlation      correlation within each stimulus set
    --set tuner__line=true             a scale and an offset per stimulus set
    --set tuner__sampling=stimuli      a batch is 40 stimuli with all their pairs, not 40 pairs
"""

from sklearn.pipeline import Pipeline

from featpipe import ChannelMaskTuner
from featpipe.recipes import Recipe

_MEG = {"tuner__time_sampling": "gaussian", "tuner__max_epochs": 40}

RECIPE = Recipe(
    summary="A learned coefficient per channel of five stages and the network's weights, so that 1 - r matches RDMs",
    citation="Gaziv (2019), Learning to aggregate feature representations, arXiv:1907.00950, section 2 and Table 1.",
    data=("algonauts2019", "table"),
    scoring=("rdm_rho", "rdm_r2", "rdm_percent"),
    search_scoring="rdm_rho",
    cv="set",
    pipeline=Pipeline(
        [
            (
                "tuner",
                ChannelMaskTuner(
                    "timm:legacy_seresnext50_32x4d",
                    ["pool0", "layer1", "layer2", "layer3", "layer4"],
                    augmentation="crop:0.875",
                ),
            )
        ]
    ),
    per_target={
        "EVC": {"tuner__train_on": ["EVC", "MEG-early"], **_MEG, "tuner__max_epochs": 15},
        "IT": {"tuner__frozen": "**", "tuner__reliability": False},
        "MEG-early": _MEG,
        "MEG-late": _MEG,
    },
)
