r"""The RDM of fixed layers: 1 - Pearson r of flattened activations, nothing fitted.

    featpipe extract --model timm:resnet50 --layers layer2 --layers layer3 --images algonauts2019:DIR
    featpipe fit baseline_algonauts2019 --data algonauts2019:DIR --target EVC --out run \
        --set features__layers='["layer3"]'

Model, weights and reduction are taken from the cache where only one is there. Several layers are put side by
side before they are correlated (--set rdm__combine=mean averages the standardised RDMs of the layers instead).
To let the other stimulus set choose the layer:

    featpipe fit baseline_algonauts2019 … --search features__layers='[["layer2"], ["layer3"]]'
"""

from sklearn.pipeline import Pipeline

from featpipe import CachedFeatures, FeatureRDM
from featpipe.recipes import Recipe

RECIPE = Recipe(
    summary="RDM of fixed layers, 1 - r of their activations: the baseline of Algonauts 2019",
    citation=(
        "Cichy et al. (2019), The Algonauts Project, arXiv:1905.05675, section 'Baseline model'; "
        "Kriegeskorte, Mur & Bandettini (2008), Front. Syst. Neurosci. 2:4."
    ),
    data=("algonauts2019", "table"),
    scoring=("rdm_rho", "rdm_r2", "rdm_percent"),
    search_scoring="rdm_rho",
    cv="set",
    pipeline=Pipeline(
        [
            ("features", CachedFeatures(output="blocks")),
            ("rdm", FeatureRDM(metric="correlation")),
        ]
    ),
)
