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


@pytest.fixture
def score_of(session, tmp_path):
    """Extract one layer, fit, and return the mean held-out r."""

    def score(weights):
        cache, out = tmp_path / "cache", tmp_path / "run"
        pixels = ("--mean", ".5,.5,.5", "--std", ".5,.5,.5", "--layers", "blocks.3:grid:4")
        network = ("--model", "timm:mobilenetv2_100", "--model-arg", "pad_type=same", "--weights", weights)
        run("extract", *network, *pixels, "--images", session / "stimuli.zip", "--cache", cache, "--json")
        chosen = ("--set", 'features__layers=["blocks.3"]')
        run("fit", "baseline_ridge", "--data", f"table:{session}", "--cache", cache, "--out", out, *chosen)
        return json.loads((out / "summary.json").read_text())["scores"]["pearson_r"]["overall"]

    return score


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(900)
@pytest.mark.parametrize("session", ["190923", "210325"], indirect=True)
def test_trained_features_predict_v4(score_of, real_data):
    assert score_of(real_data / WEIGHTS) >= 0.56


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(900)
@pytest.mark.parametrize("session", ["210325"], indirect=True)
def test_random_features_predict_v4_less(score_of):
    assert score_of("random:0") <= 0.44
