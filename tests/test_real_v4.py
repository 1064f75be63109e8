"""The main job on real recordings: macaque V4, real MobileNetV2 weights, from the command line."""

from __future__ import annotations

import json

import pytest

from featpipe.cli import main

WEIGHTS = "weights/mobilenetv2_100.safetensors"


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0


@pytest.fixture
def session(real_data, tmp_path, request):
    """A table dataset of links, as a user would lay one out."""
    folder = tmp_path / request.param
    folder.mkdir()
    source = real_data / "v4" / request.param
    (folder / "stimuli.zip").symlink_to(source / "images.zip")
    (folder / "responses.npy").symlink_to(source / "responses.npy")
    return folder


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("session", ["190923", "210325"], indirect=True)
def test_trained_features_predict_v4_and_random_ones_less(session, real_data, tmp_path):
    cache, model = tmp_path / "cache", ["--model", "timm:mobilenetv2_100", "--model-arg", "pad_type=same"]
    pixels = ["--mean", ".5,.5,.5", "--std", ".5,.5,.5", "--layers", "blocks.3:grid:4"]
    reached = {}
    for name, weights in (("real", real_data / WEIGHTS), ("random", "random:0")):
        images = ["--images", session / "stimuli.zip", "--cache", cache]
        run("extract", *model, *pixels, "--weights", weights, *images, "--json")
        run(
            *("fit", "baseline_ridge", "--data", f"table:{session}", "--cache", cache, "--out", tmp_path / name),
            *("--set", 'features__layers=["blocks.3"]', "--set", f"features__weights={weights}"),
        )
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        reached[name] = summary["scores"]["pearson_r"]["overall"]
    assert reached["real"] >= 0.56
    assert reached["random"] <= 0.44
