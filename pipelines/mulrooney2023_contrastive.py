"""AlexNet tuned by contrasting its outputs with the responses to the images, and ridge on the tuned features.

    featpipe fit mulrooney2023_contrastive --data algonauts2023:D --subject 1 --target EBA --out cl
    featpipe fit mulrooney2023_contrastive --variant regression --data algonauts2023:D --subject 1 --target EBA --out r
    featpipe fit mulrooney2023_contrastive --variant untuned --data algonauts2023:D --subject 1 --target EBA --out raw
    featpipe compare-runs raw r cl

The features are AlexNet's 1000 outputs. The loss is the report's equation 1 over batches of 1024: responses are the
anchors, and the image that belongs to a response is not in its denominator. Epoch and penalties are chosen by a tenth
of the training stimuli, to which the network was not tuned (--set tuner__validation_fraction=0.2 takes more). `untuned`
is the control, `regression` the network regressed directly onto the responses. The report leaves temperature, learning
rates and number of epochs open; those here are the estimators'. Without `--target` all responses tune one network; the
report has a network for each ROI.
"""

from sklearn.pipeline import Pipeline

from featpipe import ContrastiveTuner, LayerScaler, ResponseTuner, RidgeEncoder
from featpipe.recipes import Recipe

ALEXNET = ("torchvision:alexnet", "output")


def encoding(tuner, **params):
    one_network = {"output": "blocks", "cross_fit": None}
    scale, ridge = LayerScaler(output="blocks"), RidgeEncoder(cv="held-out")
    return Pipeline([("tuner", tuner(*ALEXNET, **one_network, **params)), ("scale", scale), ("ridge", ridge)])


RECIPE = Recipe(
    summary="AlexNet tuned by a contrastive loss on responses, ridge on its outputs; untuned and regressed beside it",
    citation=(
        "Mulrooney & Brockmeier (2023), fMRI encoding of visual cortex with contrastive learning, sections "
        "'Contrastive Learning Network' (equation 1) and 'Linear encoding models'."
    ),
    data=("algonauts2023", "table", "synthetic"),
    pipeline=encoding(ContrastiveTuner, batch_size=1024, micro_batch=128),
    variants={
        "untuned": encoding(ContrastiveTuner, max_epochs=0),
        "regression": encoding(ResponseTuner),
    },
)
