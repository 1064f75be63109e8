"""Siamese tuning: the correlation distance at a layer of AlexNet or VGG-16 is trained to be the dissimilarity.

    featpipe fit agrawal2019_siamese --data algonauts2019:DIR --target EVC --out run
    featpipe fit agrawal2019_siamese --variant untuned --data algonauts2019:DIR --target EVC --out untuned
    featpipe extract --model local:run/tuned.safetensors --layers features.7:mean --images DIR

`--target` EVC, IT, MEG-early or MEG-late takes the report's network, layer and frozen range: AlexNet without conv5 and
what follows for the early targets, VGG-16 from conv5_3 on for IT and as a whole for MEG-late, whose images are 300×300
when it predicts. Layers are counted as in MatConvNet in the report: its 10, 12 and 34 are `features.7`, `features.9`
(after ReLU) and `classifier.3` (fc7 before it) of torchvision. Momentum and weight decay are MatConvNet's. MatConvNet
slides fc6 over the larger map of a 300×300 image; `--set tuner__fully_convolutional=false` averages the map instead,
as torchvision does.

The report took epoch and layer by the test set. Here stimuli held out of each training set choose the epoch, and the
layer among several where they are given:

    --set tuner__read_layers='["features.4", "features.7", "features.9"]'

`siamese_correlation` has the loss that does not learn the mean dissimilarity of each stimulus set.
"""

from sklearn.pipeline import Pipeline

from featpipe import SiameseTuner
from featpipe.recipes import Recipe

_VGG = {"tuner__model": "torchvision:vgg16", "tuner__layer": "classifier.3"}
_MEG = {"tuner__rescale": (2, 5), "tuner__batch_size": 16}


def siamese(**params):
    sgd = {
        "optimiser": "sgd",
        "learning_rate": 0.005,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "batch_size": 32,
    }
    early = {"frozen": "features.10..", "max_epochs": 250, "patience": 30}
    return Pipeline([("tuner", SiameseTuner("torchvision:alexnet", "features.7", **(sgd | early | params)))])


RECIPE = Recipe(
    summary="AlexNet or VGG-16 tuned on pairs of images until 1 - r at a layer is their measured dissimilarity",
    citation="Agrawal (2019), Dissimilarity learning via Siamese network predicts brain imaging data, Methods.",
    data=("algonauts2019", "table"),
    scoring=("rdm_rho", "rdm_r2", "rdm_percent"),
    search_scoring="rdm_rho",
    cv="set",
    pipeline=siamese(),
    variants={"untuned": siamese(max_epochs=0)},
    per_target={
        "EVC": {},
        "IT": {**_VGG, "tuner__frozen": "..features.26"},
        "MEG-early": {"tuner__layer": "features.9", **_MEG},
        "MEG-late": {
            **_VGG,
            "tuner__frozen": None,
            **_MEG,
            "tuner__predict_size": 300,
            "tuner__fully_convolutional": True,
        },
    },
)
