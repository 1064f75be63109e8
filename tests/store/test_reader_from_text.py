"""A reader written from cache/README.md alone, with no line of featpipe, reads a cache and checks all its digests."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import rfc8785

N_STIMULI = 21


class Reader:
    """What someone would write in another language."""

    def __init__(self, root):
        self.root = root
        self.keys = sorted(path.name for path in (root / "arrays").iterdir())

    def spec(self, key):
        content = (self.root / "arrays" / key / "spec.json").read_bytes()
        assert hashlib.sha256(content).hexdigest() == key
        return json.loads(content)

    def images(self, digest):
        document = self.checked(self.root / "stimuli" / digest / "stimuli.json")
        pairs = rfc8785.dumps(document["images"])
        assert hashlib.sha256(pairs).hexdigest() == digest
        return document["images"], document["shard_rows"]

    def checked(self, path):
        """Read a document with a checksum of its own."""
        content = path.read_bytes()
        document = json.loads(content)
        assert rfc8785.dumps(document) == content
        rest = {name: value for name, value in document.items() if name != "checksum"}
        assert hashlib.sha256(rfc8785.dumps(rest)).hexdigest() == document["checksum"]
        assert document["format"] == 1
        return document

    def commits(self, key):
        folder = self.root / "arrays" / key
        records = [self.checked(folder / "commits" / f"{shard}.json") for shard in range(3)]
        for record in records:
            for name, digest in record["static"].items():
                assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
            assert hashlib.sha256(self.shard(key, record["shard"])).hexdigest() == record["sha256"]
        assert self.checked(folder / "sealed.json")["commits"] == records
        return records

    def shard(self, key, shard):
        folder = self.root / "arrays" / key / "data.zarr" / "features"
        axes = len(json.loads((folder / "zarr.json").read_bytes())["shape"]) - 1
        content = folder.joinpath("c", str(shard), *["0"] * axes).read_bytes()
        assert (
            len(content) == json.loads((folder.parents[1] / "commits" / f"{shard}.json").read_bytes())["size"]
        )
        return content

    def index(self, key, shard, n_chunks):
        """Return (offset, size) of each chunk of a shard, from its end."""
        content = self.shard(key, shard)
        packed, crc = content[-16 * n_chunks - 4 : -4], content[-4:]
        assert google_crc32c.value(packed) == int.from_bytes(crc, "little")
        return [struct.unpack_from("<QQ", packed, 16 * chunk) for chunk in range(n_chunks)]

    def ids(self, key):
        content = (self.root / "arrays" / key / "data.zarr/stimulus/c/0").read_bytes()
        ids, at = [], 4
        for _ in range(struct.unpack_from("<I", content)[0]):
            (length,) = struct.unpack_from("<I", content, at)
            ids.append(content[at + 4 : at + 4 + length].decode())
            at += 4 + length
        return ids


@pytest.fixture
def reader(tmp_path):
    with zipfile.ZipFile(Path(__file__).with_name("format1.zip")) as packed:
        packed.extractall(tmp_path)
    return Reader(tmp_path)


def _values(shape):
    values = (7 * np.arange(N_STIMULI)[:, None] + 13 * np.arange(np.prod(shape))) % 64 / 8 - 2
    return np.maximum(values, 0).reshape(N_STIMULI, *shape)


def test_keys_ids_digests_and_commits_agree(reader):
    for key in reader.keys:
        images, shard_rows = reader.images(reader.spec(key)["stimuli"])
        assert shard_rows == 8
        assert reader.ids(key) == [name for name, _ in images]
        assert [record["rows"] for record in reader.commits(key)] == [[0, 8], [8, 16], [16, 21]]


def test_a_key_is_made_again_from_its_fields(reader):
    """Every field at its default is left out, and the rest hashed as canonical JSON."""
    keys = []
    for layer, reduction, dtype in [("stem", "grid:4", "float32"), ("blocks.1", "none", "float16")]:
        images = [
            [f"92/bïld_{row}", hashlib.sha256(f"92/bïld_{row}".encode()).hexdigest()]
            for row in range(N_STIMULI)
        ]
        fields = {
            "format": 1,
            "stimuli": hashlib.sha256(rfc8785.dumps(images)).hexdigest(),
            "model": "timm:tiny",
            "weights": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
            "layer": layer,
            "model_args": {"pad_type": "same"},
            "preprocessing": {
                "resize": 256,
                "crop": [224, 224],
                "interpolation": "bicubic",
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
                "decoder": "pillow-rgb1",
            },
        }
        fields |= {"reduction": reduction} if reduction != "none" else {}
        fields |= {"store_dtype": dtype} if dtype != "float32" else {}
        keys.append(hashlib.sha256(rfc8785.dumps(fields)).hexdigest())
    assert sorted(keys) == reader.keys


def test_uncompressed_rows_lie_in_place(reader):
    (key,) = [key for key in reader.keys if reader.spec(key)["layer"] == "stem"]
    expected = _values((3, 4, 4)).astype("<f4")
    for shard, stop in enumerate([8, 16, 21]):
        (start, size), *_ = reader.index(key, shard, 1)
        chunk = np.frombuffer(reader.shard(key, shard)[start : start + size], "<f4").reshape(8, 3, 4, 4)
        n_rows = stop - 8 * shard
        np.testing.assert_array_equal(chunk[:n_rows], expected[8 * shard : stop])
        assert np.isnan(chunk[n_rows:]).all()


def test_tensorstore_reads_features_and_digests(reader):
    tensorstore = pytest.importorskip("tensorstore")
    for key in reader.keys:
        spec, group = reader.spec(key), reader.root / "arrays" / key / "data.zarr"

        def read(name, group=group):
            store = {"driver": "file", "path": str(group / name)}
            return tensorstore.open({"driver": "zarr3", "kvstore": store}, open=True).result().read().result()

        features = read("features")
        np.testing.assert_array_equal(features, _values(features.shape[1:]).astype(features.dtype))
        images, _ = reader.images(spec["stimuli"])
        assert [row.tobytes().hex() for row in read("image_sha256")] == [digest for _, digest in images]
