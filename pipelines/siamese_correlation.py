"""Siamese tuning by correlation: 1 - r at a layer is trained to correlate with dissimilarities within each set.

    featpipe fit siamese_correlation --data algonauts2019:DIR --target EVC --out run
    featpipe fit siamese_correlation --variant untuned --data algonauts2019:DIR --target EVC --out untuned

The squared loss of `agrawal2019_siamese` mostly learns how dissimilar each stimulus set is on the whole. Here batches
are stimuli of one set with all pairs between them, the loss is 1 - Pearson's r within the set, and the number of
epochs is the one that is best on average over five folds of the training stimuli. Networks are small, because 210
stimuli teach little: SqueezeNet for early targets, where MEG of the same latency helps to fit EVC, and MobileNetV2 for
late ones.
"""

from sklearn.pipeline import Pipeline

from featpipe import SiameseTuner
from featpipe.recipes import Recipe

_EARLY = {"tuner__model": "torchvision:squeezenet1_1", "tuner__layer": "features.7"}
_LATE = {
    "tuner__model": "timm:mobilenetv2_100",
    "tuner__layer": "blocks.5",
    "tuner__frozen": "..blocks.2",
    "tuner__learning_rate": 3e-4,
    "tuner__batch_size": 32,
}


def siamese(**params):
    adam = {"optimiser": "adam", "learning_rate": 1e-3, "batch_size": 60, "max_epochs": 8}
    loss = {"loss": "correlation", "sampling": "stimuli", "validation_folds": 5}
    return Pipeline(
        [("tuner", SiameseTuner("torchvision:squeezenet1_1", "features.7", **(loss | adam | params)))]
    )


RECIPE = Recipe(
    summary="A small network tuned until 1 - r at a layer correlates with the dissimilarities within each set",
    citation=(
        "After Agrawal (2019), Dissimilarity learning via Siamese network predicts brain imaging data, with the "
        "correlation loss that its Methods name and do not use."
    ),
    data=("algonauts2019", "table"),
    scoring=("rdm_rho", "rdm_r2", "rdm_percent"),
    search_scoring="rdm_rho",
    cv="set",
    pipeline=siamese(),
    variants={"untuned": siamese(validation_folds=None, max_epochs=0)},
    per_target={
        "EVC": {**_EARLY, "tuner__train_on": ["EVC", "MEG-early"]},
        "IT": _LATE,
        "MEG-early": _EARLY,
        "MEG-late": _LATE,
    },
)
