"""One convolution over the vertices of a ROI, which is told where on the cortex each of them lies.

    featpipe fit chimisso2023_vertex_position --data algonauts2023:DIR --subject 1 --extract --out run \\
        --surface lh=lh.white,rh=rh.white

The challenge's files hold no coordinates: `--surface` reads a surface of fsaverage (GIFTI or FreeSurfer), or the
targets of other data have columns x, y and z. The trunk is the identity for CLIP; in `sam` it is a stack of
two-dimensional convolutions of SAM's map of 256×64×64. `residual` adds residual blocks, at twice the learning rate.
"""

from sklearn.pipeline import Pipeline

from featpipe import CachedFeatures, LayerScaler, VertexPositionHead
from featpipe.recipes import Recipe

CLIP = CachedFeatures(model="open_clip:ViT-B-32/openai", layers=["output"], reduce="none")
SAM = CachedFeatures(model="timm:samvit_base_patch16", layers=["neck"], reduce="none", output="blocks")
DROPOUT = VertexPositionHead(learning_rate=7.5e-6, decay=0.75, decay_every=5)
RESIDUAL = VertexPositionHead(learning_rate=1.5e-5, decay=0.75, decay_every=5, residual=True)

RECIPE = Recipe(
    summary="CLIP or SAM features and a convolution over vertices that knows their positions, per ROI",
    citation=(
        "Chimisso, Buršić, Marocco, Vizzari & Ognibene (2023), Exploration and comparison of deep learning "
        "architectures to predict brain response to realistic pictures, section 2.3 and the table of section 4."
    ),
    data=("algonauts2023", "table", "synthetic"),
    pipeline=Pipeline([("features", CLIP), ("scale", LayerScaler()), ("head", DROPOUT)]),
    variants={
        "residual": Pipeline([("features", CLIP), ("scale", LayerScaler()), ("head", RESIDUAL)]),
        "sam": Pipeline([("features", SAM), ("scale", LayerScaler(output="blocks")), ("head", DROPOUT)]),
    },
)
