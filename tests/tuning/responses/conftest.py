"""A small network, images of noise, and responses that a changed copy of the network predicts."""

from __future__ import annotations

import runpy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from featpipe.stimuli import StimulusSet

NET = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU()))
    net.add_module("body", nn.Sequential(nn.Conv2d(8, 12, 3, stride=2), nn.ReLU()))
    net.add_module("top", nn.Conv2d(12, 4, 1))
    size = {"resize": 16, "crop": [16, 16], "interpolation": "bilinear"}
    return net, {**size, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
"""
N_STIMULI, N_TARGETS = 500, 24


@pytest.fixture(scope="session")
def small_world(tmp_path_factory):
    """500 stimuli; what names the net and its images to a tuner; responses ``y``, and ``noise`` in their place."""
    folder = tmp_path_factory.mktemp("responses")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (N_STIMULI, 16, 16, 3), dtype=np.uint8)
    np.save(folder / "images.npy", pixels)
    (folder / "net.py").write_text(NET)
    stimuli = StimulusSet.from_source(folder / "images.npy")
    hidden = _hidden(runpy.run_path(str(folder / "net.py"))["build"]()[0], pixels)
    y = hidden @ rng.standard_normal((hidden.shape[1], N_TARGETS)) / hidden.shape[1] ** 0.5
    return SimpleNamespace(
        ids=np.array(stimuli.ids),
        y=(3 + 2 * y + 0.4 * rng.standard_normal(y.shape)).astype(np.float32),
        noise=rng.standard_normal(y.shape).astype(np.float32),
        network={
            "model": f"python:{folder / 'net.py'}:build",
            "layer": "body:grid:2",
            "trust": True,
            "stimuli": stimuli,
        },
        device="cpu",
    )


def _hidden(net, pixels) -> np.ndarray:
    """Return standardised features of a copy of the net with noise on its convolutions, (n_stimuli, 48)."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (net.stem[0].weight, net.body[0].weight):
            weight += 0.7 * weight.std() * torch.randn(weight.shape, generator=generator)
        x = (torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        features = F.adaptive_avg_pool2d(net.body(net.stem(x)), 2).flatten(1).numpy()
    return (features - features.mean(0)) / features.std(0)
