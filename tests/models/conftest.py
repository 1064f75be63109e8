"""Networks for the tests: small, with random weights, and a CLIP of a few thousand parameters."""

from __future__ import annotations

import json

import pytest

from featpipe.models import ModelRequest, load

SWIN = "timm:swin_tiny_patch4_window7_224"
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """The name of a tiny CLIP that open_clip knows."""
    from featpipe.models._zoo_open_clip import import_open_clip

    file = tmp_path_factory.mktemp("configs") / "featpipe-tiny.json"
    file.write_text(json.dumps(TINY_CLIP))
    import_open_clip().add_model_config(file)
    return "featpipe-tiny"


@pytest.fixture(scope="session")
def networks(tiny_clip):
    """Load a network once per test run: ``networks(model, weights="random:0")``."""
    loaded = {}
    smaller = {SWIN: (("embed_dim", 24),)}

    def get(model, weights="random:0", **asked):
        asked = {"model_args": smaller[model], **asked} if model in smaller else asked
        key = (model, weights, tuple(sorted(asked.items())))
        if key not in loaded:
            loaded[key] = load(ModelRequest(model, weights, **asked))
        return loaded[key]

    return get


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hugging Face cache that holds what ``put(repository, name, data)`` laid there."""
    cache = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def put(repository, name, data):
        folder = cache / f"models--{repository.replace('/', '--')}"
        file = folder / "snapshots" / ("0" * 40) / name
        file.parent.mkdir(parents=True)
        file.write_bytes(data)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
        return file

    return put
