"""Caches made by hand: known rows under known specs, without a network."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from featpipe.features import READS
from featpipe.spec import FeatureSpec, Preprocessing, Reduction
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache

IDS = tuple(f"image_{number}" for number in range(24))
WHOLE = Preprocessing((32, 32), None, "bilinear", (0.5,) * 3, (0.25,) * 3)
CROPPED = Preprocessing(36, (32, 32), "bilinear", (0.5,) * 3, (0.25,) * 3)


def _manifest(ids=IDS, *, salt="", name="tiny"):
    sha256 = tuple(hashlib.sha256(f"{salt}{i}".encode()).hexdigest() for i in ids)
    return StimulusManifest(tuple(ids), sha256, name, "")


def _spec(**changes):
    given = {
        "model": "timm:tiny",
        "weights": "a" * 64,
        "layer": "layer1",
        "preprocessing": WHOLE,
        "reduction": Reduction("mean"),
    }
    return FeatureSpec(**(given | changes))


def _rows(n_stimuli, shape, seed=0):
    return np.random.default_rng(seed).standard_normal((n_stimuli, *shape)).astype(np.float32)


def _add(root, rows, *, manifest=None, shards=None, provenance=None, **changes):
    cache, manifest = FeatureCache(root), manifest or _manifest()
    shard_rows = cache.add_stimuli(manifest, shard_rows=8).shard_rows
    spec = _spec(**changes)
    dims = ("channel", "height", "width")[: rows.ndim - 1]
    writer = cache.writer(spec, manifest.digest, row_shape=rows.shape[1:], dims=dims, codec="none")
    for shard in writer.array.missing if shards is None else shards:
        part = rows[shard * shard_rows : (shard + 1) * shard_rows].astype(spec.store_dtype)
        writer.publish(
            shard, part, {"weights_label": "made up", "weights_asked": "default", **(provenance or {})}
        )
    return cache.array(writer.array.key)


@pytest.fixture(scope="session")
def make_manifest():
    return _manifest


@pytest.fixture(scope="session")
def add_features():
    """Return a function that puts rows into a cache under a spec whose fields may be given."""
    return _add


@pytest.fixture(scope="session")
def make_rows():
    return _rows


@pytest.fixture(scope="session")
def cropped():
    return CROPPED


@pytest.fixture(autouse=True)
def _fresh_reads():
    """Let no test find the layers that another one read."""
    limit = READS.limit
    READS.clear()
    yield
    READS.clear()
    READS.limit = limit


@pytest.fixture(scope="session")
def filled(tmp_path_factory):
    """A cache of two layers, maps and vectors, and their rows by layer."""
    root = tmp_path_factory.mktemp("filled") / "cache"
    rows = {"layer1": _rows(24, (3, 2, 2), 1), "layer2": _rows(24, (5,), 2)}
    for order, (layer, values) in enumerate(rows.items()):
        _add(root, values, layer=layer, provenance={"layer_order": order})
    return root, rows


@pytest.fixture
def ids():
    return np.array(IDS)
