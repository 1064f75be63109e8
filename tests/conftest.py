"""Fixtures for all tests. Nothing is downloaded, and nothing outside the test's folder is written."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # before NumPy and torch start their threads: the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _own_user_cache(tmp_path_factory, monkeypatch):
    """Give every test its own table of remembered digests and no network for model hubs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def tiny_stimuli(tmp_path):
    """A folder of 20 PNGs of 40×48 pixels: smooth noise, no two alike."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(20):
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC).save(
            folder / f"image_{number}.png"
        )
    return folder


@pytest.fixture(scope="session")
def real_data():
    """The real data, where they lie beside the project."""
    folder = Path(os.environ.get("FEATPIPE_DATA", PROJECT.parent / "shared" / "data"))
    if not (folder / "v4").is_dir():
        pytest.skip(f"the real data are not at {folder} (set FEATPIPE_DATA)")
    return folder


@pytest.fixture(scope="session")
def s3():
    """An S3 server on loopback, one for the session."""
    pytest.importorskip("moto")
    from featpipe.testing import s3_server

    with s3_server() as server:
        yield server


@pytest.fixture
def s3_bucket(s3, monkeypatch):
    """The URL of a new bucket, and in the environment what leads there."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3.make_bucket(f"bucket-{secrets.token_hex(8)}")


TINY_NET = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(inplace=True))
    head = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(inplace=True), nn.Conv2d(16, 4, 1))
    net = nn.Sequential()
    net.add_module("stem", stem)
    net.add_module("head", head)
    size = {"resize": 36, "crop": [32, 32], "interpolation": "bilinear"}
    return net, {**size, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
"""


@pytest.fixture
def tiny_backbone(tmp_path):
    """Two convolutions and a third, as a ``python:`` model: ``stem``, ``head``, input 32×32."""
    path = tmp_path / "tiny.py"
    path.write_text(TINY_NET)
    return f"python:{path}:build"


@pytest.fixture
def tiny_cache(tmp_path, tiny_backbone, tiny_stimuli):
    """The 20 tiny stimuli in ``stem`` (mean) and ``head`` (none) of the tiny backbone."""
    from featpipe.extraction import Order, extract
    from featpipe.models import ModelRequest
    from featpipe.spec import LayerRequest
    from featpipe.stimuli import StimulusSet
    from featpipe.store import FeatureCache

    layers = tuple(LayerRequest.parse(text) for text in ("stem:mean", "head:mean"))
    order = Order(ModelRequest(tiny_backbone, trust=True), layers)
    extract(order, StimulusSet.from_source(tiny_stimuli), FeatureCache(tmp_path / "cache"))
    return tmp_path / "cache"
