"""A dataset, its features in a cache, and a run, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from featpipe.cli import main
from featpipe.recipes import load_recipe
from featpipe.runs import FitRequest, fit
from featpipe.testing import make_images, make_table_dataset

TINY_NET = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(inplace=True)))
    net.add_module("head", nn.Conv2d(8, 4, 3, stride=2))
    size = {"resize": [32, 32], "crop": None, "interpolation": "bilinear"}
    return net, {**size, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
"""
ALPHAS = [1.0, 100.0, 10000.0]


def extract(root: Path, data: str, *more: str) -> None:
    words = [
        "extract",
        "--model",
        f"python:{root / 'tiny.py'}:build",
        "--trust",
        "--cache",
        str(root / "cache"),
    ]
    layers = ["--layers", "stem:grid:3", "--layers", "head:grid:3", "--json"]
    with pytest.raises(SystemExit) as end:
        main([*words, *layers, "--images", data, *more])
    assert end.value.code == 0


def request(root: Path, data: Path | str, out: Path, *, params=None, search=None, **given) -> FitRequest:
    model = f"python:{root / 'tiny.py'}:build"
    chosen = {"features__model": model, "features__layers": ["stem"], "ridge__alphas": ALPHAS, "ridge__cv": 3}
    chosen |= params or {}
    recipe = load_recipe("baseline_ridge").with_params(chosen).with_search(search or {})
    text = data if isinstance(data, str) else f"table:{data}"
    return FitRequest(recipe, text, str(out), str(root / "cache"), **given)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Folder of the tiny net, two datasets (one with splits and repeats), new images, and their features."""
    root = tmp_path_factory.mktemp("runs")
    (root / "tiny.py").write_text(TINY_NET)
    make_table_dataset(root / "plain", n=48, noise_ceiling=0.8)
    make_table_dataset(root / "split", n=40, noise_ceiling=0.8, splits=True, seed=4)
    make_images(root / "new", [f"new_{number}.png" for number in range(5)], seed=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("runs-cache")))
        for name in ("plain", "split"):
            extract(root, f"table:{root / name}")
    return root


@pytest.fixture(scope="session")
def make_request(root):
    """Return a function that asks for a fit of baseline_ridge on the tiny features."""
    return lambda data, out, **given: request(root, data, out, **given)


@pytest.fixture(scope="session")
def extract_more(root):
    """Return a function that puts the features of more images into the cache."""
    return lambda data, *more: extract(root, data, *more)


@pytest.fixture(scope="session")
def plain(root):
    """A run on data without splits."""
    return fit(request(root, root / "plain", root / "run-plain"))


@pytest.fixture(scope="session")
def split(root):
    """A run on data with a test split."""
    return fit(request(root, root / "split", root / "run-split"))
