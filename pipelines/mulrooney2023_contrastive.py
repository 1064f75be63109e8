"""AlexNet tuned by contrasting its outputs with the responses to the images, and ridge on the tuned features.

    featpipe fit mulrooney2023_contrastive --data algonauts2023:DIR --subject 1 --target EBA --out contrastive
    featpipe fit mulrooney2023_contrastive --variant regression --data algonauts2023:DIR --subject 1 --target EBA --out regressed
    featpipe fit mulrooney2023_contrastive --variant untuned --data algonauts2023:DIR --subject 1 --target EBA --out untuned

The features are AlexNet's 1000 outputs. The loss is the report's equation 1 over batches of 1024: responses are the
anchors, and the image that belongs to a response is not in its denominator. A penalty is chosen on features of networks
that were tuned on other stimuli. `untuned` is the control, `regression` the network regressed directly onto the
responses. The report leaves temperature, learning rates and number of epochs open; those here are the estimators'.
Without `--target` all responses tune one network; the report has a network for each ROI.
"""

from sklearn.pipeline import Pipeline

from featpipe import LayerScaler, RidgeEncoder
from featpipe.recipes import Recipe
from featpipe.tuning.responses import ContrastiveTuner, ResponseTuner

ALEXNET = ("torchvision:alexnet", "output")


def encoding(tuner):
    return Pipeline([("tuner", tuner), ("scale", LayerScaler()), ("ridge", RidgeEncoder())])


RECIPE = Recipe(
    summary="AlexNet tuned by a contrastive loss on responses, ridge on its outputs; untuned and regressed beside it",
    citation=(
        "Mulrooney & Brockmeier (2023), fMRI encoding of visual cortex with contrastive learning, sections "
        "'Contrastive Learning Network' (equation 1) and 'Linear encoding models'."
    ),
    data=("algonauts2023", "table", "synthetic"),
    pipeline=encoding(ContrastiveTuner(*ALEXNET, batch_size=1024, micro_batch=128)),
    variants={
        "untuned": encoding(ContrastiveTuner(*ALEXNET, max_epochs=0)),
        "regression": encoding(ResponseTuner(*ALEXNET)),
    },
)
