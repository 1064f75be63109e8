"""Both tuners on real recordings: macaque V4, real MobileNetV2 weights."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.pipeline import Pipeline

from featpipe import LayerScaler, RidgeEncoder, StimulusSet
from featpipe.metrics import pearson_r
from featpipe.tuning.responses import ContrastiveTuner, ResponseTuner


@pytest.fixture
def v4(real_data):
    """Ids, responses, and what names network and images: the fourth stage is tuned, on images of their own size."""
    folder = real_data / "v4" / "210325"
    stimuli = StimulusSet.from_source(folder / "images.zip")
    network = {
        **{
            "model": "timm:mobilenetv2_100",
            "weights": str(real_data / "weights/mobilenetv2_100.safetensors"),
        },
        **{"model_args": {"pad_type": "same"}, "mean": (0.5,) * 3, "std": (0.5,) * 3, "image_size": 112},
        **{"layer": "blocks.3:grid:4", "frozen": "..blocks.2", "stimuli": stimuli, "device": "cpu"},
    }
    return np.array(stimuli.ids), np.load(folder / "responses.npy"), network


def held_out_r(tuner, ids, y) -> float:
    """Return the mean r over neurons of every fifth stimulus."""
    test = np.arange(len(ids)) % 5 == 0
    model = Pipeline([("tuner", tuner), ("scale", LayerScaler()), ("ridge", RidgeEncoder())])
    model.fit(ids[~test], y[~test])
    return float(pearson_r(y[test], model.predict(ids[test])).mean())


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(900)
def test_tuning_is_not_worse_than_the_untuned_network(v4):
    ids, y, network = v4
    how = {"max_epochs": 8, "patience": 4, "cross_fit": 2}
    untuned = held_out_r(ResponseTuner(**network, max_epochs=0), ids, y)
    regressed = held_out_r(ResponseTuner(**network, learning_rate=1e-3, **how), ids, y)
    contrasted = held_out_r(ContrastiveTuner(**network, **how), ids, y)
    assert untuned > 0.55
    assert regressed > untuned - 0.005
    assert contrasted > untuned - 0.005
