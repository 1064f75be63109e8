"""A cache of format 1 that lies in the repository can be read, and would be written the same again.

``format1.zip`` was made once, by ``python tests/store/test_pinned_format.py FILE.zip``. Where bytes differ, caches on
disks could not be read, or would be computed again: bump the format then, and pin another file beside this one.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from featpipe.spec import FeatureSpec, Preprocessing, Reduction
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache

N_STIMULI = 21
PROVENANCE = {"batch_size": 8, "device": "cpu", "written": "2026-01-01T00:00:00+00:00"}
DIMS = ("channel", "height", "width")
LAYERS = {"stem": ((3, 4, 4), "none", "float32"), "blocks.1": ((5, 2, 2), "zstd", "float16")}


def manifest() -> StimulusManifest:
    ids = tuple(f"92/bïld_{row}" for row in range(N_STIMULI))
    return StimulusManifest(
        ids, tuple(hashlib.sha256(name.encode()).hexdigest() for name in ids), "pinned", ""
    )


def spec(layer: str) -> FeatureSpec:
    preprocessing = Preprocessing(
        resize=256,
        crop=(224, 224),
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    return FeatureSpec(
        model="timm:tiny",
        weights="2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
        layer=layer,
        preprocessing=preprocessing,
        model_args=(("pad_type", "same"),),
        reduction=Reduction.parse("grid:4") if layer == "stem" else Reduction.parse("none"),
        store_dtype=LAYERS[layer][2],
    )


def rows(layer: str) -> np.ndarray:
    """Return rows by a formula that every language has: ((7 r + 13 i) mod 64) / 8 − 2, negatives set to 0."""
    shape, _, dtype = LAYERS[layer]
    values = (7 * np.arange(N_STIMULI)[:, None] + 13 * np.arange(np.prod(shape))) % 64 / 8 - 2
    return np.maximum(values, 0).astype(dtype).reshape(N_STIMULI, *shape)


def write(root: Path) -> FeatureCache:
    cache = FeatureCache(root)
    digest = cache.add_stimuli(manifest(), shard_rows=8) and manifest().digest
    for layer, (shape, codec, _) in LAYERS.items():
        writer = cache.writer(spec(layer), digest, row_shape=shape, dims=DIMS, codec=codec)
        for shard in range(writer.array.layout.n_shards):
            part = writer.array.layout.rows_of(shard)
            writer.publish(shard, rows(layer)[part.start : part.stop], PROVENANCE)
    return cache


def files(root: Path) -> dict[str, bytes]:
    """Return the content of every file by its name below the cache."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


@pytest.fixture
def pinned(tmp_path):
    """The folder of the cache that is in the repository."""
    with zipfile.ZipFile(Path(__file__).with_name("format1.zip")) as packed:
        packed.extractall(tmp_path / "pinned")
    return tmp_path / "pinned"


@pytest.mark.parametrize("layer", LAYERS)
def test_it_is_read(pinned, layer):
    (array,) = FeatureCache(pinned).holding(spec(layer))
    np.testing.assert_array_equal(array.read(), rows(layer))
    assert (array.ids, array.manifest) == (manifest().ids, manifest())
    assert array.provenance == PROVENANCE


def test_it_is_sound(pinned):
    assert FeatureCache(pinned).verify() == []


def test_the_same_bytes_would_be_written(pinned, tmp_path):
    write(tmp_path / "again")
    old, new = files(pinned), files(tmp_path / "again")
    assert sorted(old) == sorted(new)
    assert [name for name in old if old[name] != new[name]] == []


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(sys.argv[1], "x") as packed:
        for name, content in files(Path(write(Path(folder)).root)).items():
            packed.writestr(zipfile.ZipInfo(name), content)
