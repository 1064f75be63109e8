"""A Siamese AlexNet with a head of interleaved group convolutions, trained end to end to give dissimilarities.

    featpipe fit jacob_katti2019_siamese_group_conv --data algonauts2019:DIR --target EVC --out run
    featpipe fit jacob_katti2019_siamese_group_conv --variant untuned --data algonauts2019:DIR --target EVC --out raw

The maps of two images are interleaved channel by channel, so that each of 16 groups sees the same channels of both
(512 → 32, 3×3), then ReLU, average pooling and a linear layer 128 → 1. Targets are the mean RDM over subjects, brought
to [0, 1] by the training pairs. The learning rate is that of a range test (Smith 2015). The head is trained alone for
15 epochs, then with the network; the report runs about 1 000 epochs more, here stimuli held out of the training set say
when to stop (`best_epoch` in run.json). `untuned` is 1 - r of the maps as they come. Every epoch sends pairs through
the network; stimuli of a set with all pairs between them are many times faster:

    --set tuner__sampling=stimuli --set tuner__batch_size=32
"""

from sklearn.pipeline import Pipeline

from featpipe import SiameseGroupConvTuner, SiameseTuner
from featpipe.recipes import Recipe

ALEXNET = ("torchvision:alexnet", "features")

RECIPE = Recipe(
    summary="AlexNet and a group convolution over the interleaved maps of two images give their dissimilarity",
    citation=(
        "Jacob & Katti (2019), Predicting population neural activity in the Algonauts challenge using end-to-end "
        "trained Siamese networks and group convolutions, Methods and Figure 1."
    ),
    data=("algonauts2019", "table"),
    scoring=("rdm_rho", "rdm_r2", "rdm_percent"),
    search_scoring="rdm_rho",
    cv="set",
    pipeline=Pipeline(
        [("tuner", SiameseGroupConvTuner(*ALEXNET, frozen_epochs=15, learning_rate="auto", max_epochs=1000))]
    ),
    variants={"untuned": Pipeline([("tuner", SiameseTuner(*ALEXNET, max_epochs=0))])},
)
