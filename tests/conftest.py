"""Fixtures for all tests. Nothing is downloaded, and nothing outside the test's folder is written."""

from __future__ import annotations

import os
from pathlib import Path

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
